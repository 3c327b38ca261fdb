"""Readers of hostile evidence: they refuse through one error, and nothing that was changed is accepted."""

from __future__ import annotations

import math
from typing import Any

import cbor2
import pytest
from evidence_factory import CHALLENGE, Factory
from hypothesis import given, settings
from hypothesis import strategies as st

from islet_cli.attestation import cbor, certificate, cose, reference, token
from islet_cli.attestation.cpak import parse_cpak
from islet_cli.attestation.errors import TokenError
from islet_cli.attestation.verify import verify_token
from islet_cli.errors import IsletError

FACTORY = Factory()
TOKEN = FACTORY.token()

_KEYS = st.one_of(st.integers(-(2**64), 2**64 - 1), st.text(max_size=8), st.binary(max_size=8))
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**64), 2**64 - 1),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
)
VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(_KEYS, inner, max_size=5)),
    max_leaves=30,
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=70)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=20,
)


def plain(value: Any) -> Any:
    """A decoded item with `Map` as a list of pairs, so that it compares."""
    if isinstance(value, cbor.Map):
        return ("map", [(plain(key), plain(member)) for key, member in value.entries])
    return [plain(member) for member in value] if isinstance(value, list) else value


def expected(value: Any) -> Any:
    if isinstance(value, dict):
        return ("map", [(expected(key), expected(member)) for key, member in value.items()])
    return [expected(member) for member in value] if isinstance(value, list) else value


def same(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        return math.isnan(right)
    if isinstance(left, (list, tuple)) and type(left) is type(right):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return type(left) is type(right) and bool(left == right)


@given(VALUES)
def test_the_reader_agrees_with_cbor2(value: Any) -> None:
    data = cbor2.dumps(value)
    decoded, used = cbor.decode(data, what="item")
    assert used == len(data)
    assert same(plain(decoded), expected(value))


@given(st.binary(max_size=200))
def test_the_reader_refuses_only_in_its_own_way(data: bytes) -> None:
    try:
        _value, used = cbor.decode(data, what="item")
    except TokenError as error:
        assert error.code == "cbor"
    else:
        assert 0 < used <= len(data)


@given(VALUES, st.data())
def test_a_truncated_item_is_refused(value: Any, data: st.DataObject) -> None:
    encoded = cbor2.dumps(value)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(TokenError):
        cbor.decode(encoded[:cut], what="item")


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ("9f0102ff", [1, 2]),
        ("5f42010243030405ff", b"\1\2\3\4\5"),
        ("7f61616162ff", "ab"),
        ("bf0102ff", cbor.Map(((1, 2),))),
        ("a201010102", cbor.Map(((1, 1), (1, 2)))),
        ("1b0000000000000001", 1),
        ("3bffffffffffffffff", -(2**64)),
        ("c24101", cbor.Tag(2, b"\1")),
        ("d81c00", cbor.Tag(28, 0)),
        ("e0", cbor.Simple(0)),
        ("f8ff", cbor.Simple(255)),
        ("f7", cbor.Simple(23)),
    ],
)
def test_forms_that_are_read_as_they_stand(data: str, value: Any) -> None:
    assert cbor.decode(bytes.fromhex(data), what="item") == (value, len(data) // 2)


@pytest.mark.parametrize(
    "data",
    [
        "",
        "ff",
        "1c",
        "1f",
        "df00",
        "81ff",
        "a1ff00",
        "bf01ff",
        "5f6161ff",
        "5f5f4101ffff",
        "f81f",
        "61ff",
        "9bffffffffffffffff",
        "bbffffffffffffffff",
        "5bffffffffffffffff",
        "81" * 40 + "00",
        "c1" * 40 + "00",
        "9f" + "00" * 5000 + "ff",
        "5f" + "40" * 5000 + "ff",
    ],
)
def test_forms_that_are_refused(data: str) -> None:
    with pytest.raises(TokenError) as caught:
        cbor.decode(bytes.fromhex(data), what="item")
    assert caught.value.code == "cbor"


@given(st.binary(max_size=300))
def test_token_readers_refuse_only_in_their_own_way(data: bytes) -> None:
    for read in (
        token.parse_token,
        token.parse_platform,
        token.parse_realm,
        cose.key_from_cose,
        cose.key_to_cose,
        certificate.evidence_of,
    ):
        with pytest.raises(TokenError):
            read(data)


@given(VALUES, VALUES, st.sampled_from([399, 18, 1]))
def test_well_formed_nonsense_is_refused(platform: Any, realm: Any, tag: int) -> None:
    wrapped = cbor2.dumps(cbor2.CBORTag(tag, {44234: cbor2.dumps(platform), 44241: cbor2.dumps(realm)}))
    message = cbor2.dumps(cbor2.CBORTag(18, [b"", {}, cbor2.dumps(platform), b""]))
    for data in (wrapped, message, cbor2.dumps(cbor2.CBORTag(399, {44234: message, 44241: message}))):
        with pytest.raises(TokenError):
            token.parse_token(data)
        with pytest.raises(TokenError):
            verify_token(data, strict=False)


@settings(max_examples=300)
@given(st.integers(0, len(TOKEN) * 8 - 1))
def test_no_flipped_bit_of_a_token_is_accepted(bit: int) -> None:
    changed = bytearray(TOKEN)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(TokenError):
        verify_token(bytes(changed), cpaks=[FACTORY.pin()], challenge=CHALLENGE)


@settings(max_examples=200)
@given(st.integers(0, len(TOKEN)), st.integers(0, len(TOKEN)), st.binary(max_size=40))
def test_no_spliced_token_is_accepted(start: int, end: int, inserted: bytes) -> None:
    changed = TOKEN[: min(start, end)] + inserted + TOKEN[max(start, end) :]
    if changed == TOKEN:
        return
    with pytest.raises(TokenError):
        verify_token(changed, cpaks=[FACTORY.pin()], challenge=CHALLENGE)


@given(st.one_of(JSON, st.fixed_dictionaries({"realm": st.fixed_dictionaries({"reference-values": JSON})})))
def test_reference_documents_are_refused_as_bad_input(document: Any) -> None:
    try:
        reference.parse(document)
    except IsletError as error:
        assert error.code.startswith("refval-")


@given(st.binary(max_size=200))
def test_reference_files_and_platform_keys_are_refused_as_bad_input(data: bytes) -> None:
    for read in (reference.parse, parse_cpak):
        with pytest.raises(IsletError):
            read(data)
