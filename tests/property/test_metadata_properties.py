"""Metadata blocks and their manifests under arbitrary input."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from islet_cli.errors import InputError, IsletError, VerificationError
from islet_cli.keys import ecc
from islet_cli.metadata import block, create, dump, monitor
from islet_cli.metadata.keys import parse_signing_key

KEY = ecc.private_from_scalar(11)
U64 = st.integers(0, 2**64 - 1)
NAMES = st.sampled_from(["realm_id", "version", "svn", "rim", "hash_algo", "other"])
MANIFESTS = st.builds(
    create.BlockManifest,
    st.text(string.ascii_letters + string.digits + ".- ", min_size=1, max_size=128),
    st.tuples(U64, U64, U64).map(lambda numbers: ".".join(map(str, numbers))),
    st.integers(1, 2**64 - 1),
    st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.just("SHA256"),
)


@settings(max_examples=50)
@given(MANIFESTS)
def test_blocks_say_what_they_were_made_of(manifest: create.BlockManifest) -> None:
    data = create.create(manifest, KEY)
    parsed = block.verify(data)
    assert parsed.realm_id == manifest.realm_id and parsed.svn == manifest.svn
    assert ".".join(map(str, parsed.version)) == manifest.version and parsed.rim[:32].hex() == manifest.rim
    assert monitor.set_result(data) == "RMI_SUCCESS"
    assert parsed.to_bytes() == data


@settings(max_examples=100)
@given(st.integers(0, 432 * 8 - 1))
def test_no_flipped_bit_verifies(bit: int) -> None:
    data = bytearray(create.create(create.BlockManifest("realm", "1.0.0", 1, "00" * 32, "SHA256"), KEY))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(VerificationError) as caught:
        block.verify(bytes(data))
    assert caught.value.code == "signature"
    assert monitor.set_result(bytes(data)) == "RMI_ERROR_INPUT:signature"


@given(st.binary(min_size=432, max_size=432))
def test_any_432_bytes_can_be_shown(data: bytes) -> None:
    text = dump.dump_text(block.parse(data))
    assert text.startswith("fmt:        ") and text.endswith("\n")
    assert block.parse(data).to_bytes() == data
    with pytest.raises(VerificationError):
        block.verify(data)


@given(st.one_of(st.binary(max_size=300), st.text(max_size=300)))
def test_manifests_are_refused_as_bad_input(text: bytes | str) -> None:
    try:
        create.create(create.parse_manifest(text), KEY)
    except InputError as error:
        assert error.code in {"yaml", "realm-id", "version", "svn", "rim"}


@given(st.lists(st.tuples(NAMES, st.text("0123456789abcx.\"'-[]{}:&*!|>~ \n", max_size=12)), max_size=7))
def test_nearly_right_manifests_are_refused_as_bad_input(members: list[tuple[str, str]]) -> None:
    text = "".join(f"{name}: {value}\n" for name, value in members)
    try:
        create.create(create.parse_manifest(text), KEY)
    except InputError as error:
        assert error.code in {"yaml", "realm-id", "version", "svn", "rim"}


@given(st.binary(max_size=300))
def test_keys_are_refused_with_one_of_two_codes(data: bytes) -> None:
    with pytest.raises(IsletError) as caught:
        parse_signing_key(data)
    assert caught.value.code in {"key-format", "key-curve"}
