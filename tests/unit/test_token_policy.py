"""What strict verification refuses, with which code and which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cbor2
import pytest
from evidence_factory import CHALLENGE, RIM, Factory

from islet_cli.attestation import cose, reference
from islet_cli.attestation.cpak import Cpak, load_cpak, parse_cpak, parse_pin
from islet_cli.attestation.errors import TokenError
from islet_cli.attestation.reference import ReferenceValues
from islet_cli.attestation.verify import EMULATED_WARNING, verify_token
from islet_cli.errors import InputError, VerificationError
from islet_cli.keys import ecc
from islet_cli.platform import derivation, evidence, identity

ZERO = (bytes(32),) * 4
VALUES = ReferenceValues(RIM, (ZERO,), "sha-256", name="good", kind="pull")


def refusal(factory: Factory, **arguments: Any) -> TokenError:
    options = {"cpaks": [factory.pin()], "challenge": CHALLENGE, "references": [VALUES]} | arguments
    with pytest.raises(TokenError) as caught:
        verify_token(factory.token(), **options)
    assert isinstance(caught.value, VerificationError) and caught.value.exit_code == 1
    assert "\n" not in caught.value.message
    return caught.value


def test_a_good_token_is_accepted() -> None:
    factory = Factory()
    verdict = verify_token(factory.token(), cpaks=[factory.pin()], challenge=CHALLENGE, references=[VALUES])
    assert not verdict.emulated and verdict.reference == VALUES and verdict.challenge_checked
    shown = verdict.to_json()
    assert shown["accepted"] is True and shown["rim"] == RIM.hex() and "warning" not in shown
    assert (shown["reference"], shown["reference_kind"]) == ("good", "pull")


@pytest.mark.parametrize(
    ("part", "changes", "code"),
    [
        ("platform", {"lifecycle": 0x4000}, "lifecycle"),
        ("platform", {"lifecycle": 0x2FFF}, "lifecycle"),
        ("platform", {"instance_id": b"\x01" + bytes(32)}, "instance-id"),
        ("platform", {"profile": None}, "missing-claim"),
        ("platform", {"challenge": bytes(32)}, "binding"),
        ("realm", {"challenge": bytes(64)}, "challenge"),
        ("realm", {"challenge": bytes(32)}, "challenge-length"),
        ("realm", {"rim": bytes(48)}, "measurement-length"),
        ("realm", {"rems": [bytes(32)] * 3 + [bytes(31)]}, "measurement-length"),
        ("realm", {"hash_algo": "sha-384"}, "measurement-length"),
        ("realm", {"rpv": bytes(63)}, "rpv-length"),
        ("realm", {"rim": bytes(32)}, "rim"),
        ("realm", {"rems": [bytes(32)] * 3 + [b"\1" * 32]}, "rems"),
        ("realm", {"key_hash": "md5"}, "format"),
    ],
)
def test_strict_refusals(part: str, changes: dict[str, Any], code: str) -> None:
    factory = Factory()
    getattr(factory, part).update(changes)
    assert refusal(factory).code == code


@pytest.mark.parametrize(
    "attribute", ["challenge", "instance_id", "lifecycle", "implementation_id", "configuration", "hash_algo"]
)
def test_a_missing_platform_claim_is_refused(attribute: str) -> None:
    factory = Factory(platform={attribute: None})
    assert refusal(factory).code == ("binding" if attribute == "challenge" else "missing-claim")


@pytest.mark.parametrize("attribute", ["challenge", "rpv", "rim", "hash_algo"])
def test_a_missing_realm_claim_is_refused(attribute: str) -> None:
    assert refusal(Factory(realm={attribute: None})).code == "missing-claim"


def test_bytes_after_the_token_are_refused() -> None:
    factory = Factory()
    with pytest.raises(TokenError) as caught:
        verify_token(factory.token() + b"\0", cpaks=[factory.pin()])
    assert caught.value.code == "trailing"
    assert verify_token(factory.token() + b"\0", strict=False).cpak is None


def test_trailing_bytes_inside_a_part_are_refused() -> None:
    factory = Factory()
    platform = evidence.sign(factory.platform_claims().encode(), factory.cpak)
    realm = evidence.sign(factory.realm_claims().encode(), factory.rak)
    with pytest.raises(TokenError) as caught:
        verify_token(evidence.wrap(platform, realm + b"\0"), cpaks=[factory.pin()])
    assert caught.value.code == "trailing"


def test_without_a_platform_key_evidence_proves_nothing() -> None:
    assert refusal(Factory(), cpaks=[]).code == "no-cpak"


def test_the_pinned_key_is_found_by_instance_id_among_several() -> None:
    factory = Factory()
    others = [Cpak(ecc.private_from_scalar(number).public.sec1, source=f"other{number}") for number in (3, 4)]
    verdict = verify_token(factory.token(), cpaks=[*others, factory.pin(source="mine")])
    assert verdict.cpak is not None and verdict.cpak.source == "mine"
    assert refusal(factory, cpaks=others).code == "cpak-unknown"
    foreign = refusal(factory, cpaks=others[:1])
    assert foreign.code == "signature" and "other3" in foreign.message


def test_self_made_evidence_is_refused() -> None:
    """Whoever knows public reference values can write both halves; only the platform key stops that."""
    genuine, forger = Factory(), Factory(cpak=ecc.private_from_scalar(99))
    forger.platform["instance_id"] = genuine.pin().instance_id
    assert refusal(forger, cpaks=[genuine.pin()]).code == "signature"


def test_emulated_evidence_needs_permission_and_an_emulated_pin() -> None:
    factory = Factory().emulated()
    assert refusal(factory, cpaks=[factory.pin("emulated")]).code == "emulated"
    assert refusal(factory, cpaks=[factory.pin("real")]).code == "emulated-pin"
    assert refusal(factory, cpaks=[factory.pin("real")], allow_emulated=True).code == "emulated-pin"
    verdict = verify_token(factory.token(), cpaks=[factory.pin("emulated")], allow_emulated=True)
    assert verdict.emulated and verdict.to_json()["warning"] == EMULATED_WARNING


def test_a_key_pinned_as_emulated_is_never_taken_for_real() -> None:
    factory = Factory()
    assert refusal(factory, cpaks=[factory.pin("emulated")]).code == "emulated"
    assert verify_token(factory.token(), cpaks=[factory.pin("emulated")], allow_emulated=True).emulated


def test_debug_lifecycle_of_a_real_platform_stays_refused_when_emulated_is_allowed() -> None:
    factory = Factory(platform={"lifecycle": 0x4000})
    assert refusal(factory, allow_emulated=True).code == "lifecycle"


def test_the_example_key_of_upstream_is_refused(tmp_path: Path) -> None:
    scalar = derivation.cpak_scalar(identity.DEFAULT_BL_HASH, identity.DEFAULT_GUK)
    factory = Factory(cpak=ecc.private_from_scalar(scalar))
    assert factory.pin().is_default
    assert refusal(factory).code == "default-cpak"
    assert verify_token(factory.token(), cpaks=[factory.pin()], allow_default_cpak=True).cpak == factory.pin()
    (tmp_path / "cpak.bin").write_bytes(factory.cpak.public.sec1)
    with pytest.raises(InputError) as caught:
        load_cpak(tmp_path / "cpak.bin")
    assert caught.value.code == "default-cpak"


def test_platform_keys_are_read_in_three_forms(tmp_path: Path) -> None:
    key = ecc.private_from_scalar(5).public
    for data in (key.sec1, key.spki, key.pem()):
        assert parse_cpak(data).sec1 == key.sec1
    for data in (b"", b"\x04" + bytes(96), key.sec1[:-1], b"PEM"):
        with pytest.raises(InputError):
            parse_cpak(data)
    assert parse_pin("emulated:a/b") == ("emulated", Path("a/b"))
    assert parse_pin("real:x") == ("real", Path("x"))
    assert parse_pin("C:/x") == ("real", Path("C:/x"))


def test_missing_reference_values_mean_refusal_and_reasons_name_the_values() -> None:
    factory = Factory()
    assert refusal(factory, references=[]).code == "no-reference"
    other = ReferenceValues(bytes(32), (ZERO,), "sha-256", name="other", kind="running")
    wrong_rim = refusal(factory, references=[other])
    assert wrong_rim.code == "rim"
    assert wrong_rim.message == f"RIM {RIM.hex()} is not among the reference values of other (running)"
    running = Factory(realm={"rems": [b"\2" * 32] + [bytes(32)] * 3})
    wrong_rems = refusal(running, references=[other, VALUES])
    assert wrong_rems.code == "rems"
    assert "REM0 " + "02" * 32 in wrong_rems.message and "good (pull)" in wrong_rems.message
    verdict = verify_token(factory.token(), cpaks=[factory.pin()], references=[other, VALUES])
    assert verdict.reference == VALUES


def test_a_later_token_revision_is_named() -> None:
    with pytest.raises(TokenError, match=r"907.*not supported") as caught:
        verify_token(cbor2.dumps(cbor2.CBORTag(907, {})), strict=False)
    assert caught.value.code == "tag"


def test_a_host_cannot_enter_with_a_challenge_made_from_its_own_key() -> None:
    """The attack: the host asks its realm for a token whose challenge is the hash of the host's TLS key."""
    from islet_cli.attestation.challenge import host_challenge, realm_challenge

    nonce, host_spki = bytes(64), b"the host's own key"
    wanted = realm_challenge(nonce, host_spki)
    factory = Factory(realm={"challenge": host_challenge(wanted)})
    assert refusal(factory, challenge=wanted).code == "challenge"


def test_reference_documents_keep_name_and_kind(tmp_path: Path) -> None:
    path = tmp_path / "reference-pull.json"
    path.write_bytes(VALUES.to_bytes())
    loaded = reference.load(path)
    assert (loaded.name, loaded.kind, loaded.rim, loaded.rems) == ("good", "pull", RIM, (ZERO,))
    assert loaded.source == str(path)
    document = VALUES.to_json() | {"unknown": 1, "islet": {"kind": "elsewhere", "more": []}}
    assert reference.parse(document).kind is None
    with pytest.raises(InputError) as caught:
        reference.parse(b'{"realm":{},"realm":{}}')
    assert caught.value.code == "json"


def test_headers_of_cose_messages() -> None:

    def parse(array: list[Any]) -> cose.Sign1:
        return cose.parse_sign1(cbor2.dumps(cbor2.CBORTag(18, array)), what="message")

    assert parse([cbor2.dumps({1: -35}), {}, b"", b""]).algorithm == cose.ES384
    assert parse([b"", {}, b"", b""]).algorithm is None
    assert parse([cbor2.dumps({1: "text"}), {}, b"", b""]).algorithm is None
    bad_headers = [b"\xff", cbor2.dumps([1]), b"\xa2\x01\x26\x01\x26", cbor2.dumps({1: -7}) + b"\0"]
    arrays: list[list[Any]] = [[header, {}, b"", b""] for header in bad_headers]
    for array in (*arrays, [b"", [], b"", b""], [b"", {}, "", b""], []):
        with pytest.raises(TokenError) as caught:
            parse(array)
        assert caught.value.code == "cose"
