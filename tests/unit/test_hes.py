"""The identity of the emulated platform: made once, complete or not at all, never replaced."""

from __future__ import annotations

import dataclasses
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from islet_cli.attestation.cose import P521, key_to_cose
from islet_cli.attestation.cpak import Cpak
from islet_cli.attestation.token import parse_platform
from islet_cli.attestation.verify import EMULATED_IMPLEMENTATION_ID, verify_platform
from islet_cli.errors import InputError, InternalError, IsletError
from islet_cli.platform import derivation, hes, identity, sealing
from islet_cli.platform.slots import Measurement, MeasurementSlots, SlotError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "platform"


def test_a_new_identity(directory: Path) -> None:
    made = hes.create_identity(directory)
    assert sorted(path.name for path in directory.iterdir()) == ["cpak.bin", "cpak.pem", "hes.json"]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "hes.json").stat().st_mode) == 0o600
    content = json.loads((directory / "hes.json").read_text())
    assert content["lifecycle"] == 0x4000 and content["schema"] == 1
    assert bytes.fromhex(content["implementation_id"]) == b"islet-emulated-platform-not-cca!"
    assert content["verification_service"] == "urn:islet:emulated" and content["configuration"] == "00000000"
    assert [entry["type"] for entry in content["boot"]] == ["EMU-BL", "EMU-RMM"]
    assert (directory / "cpak.bin").read_bytes() == made.cpak.public.sec1
    again = hes.load(directory)
    assert again.identity == made.identity and again.instance_id == made.instance_id and again.vhuks() == made.vhuks()
    assert not list(directory.parent.glob(".*")), "nothing is left beside it"


def test_an_identity_may_be_made_in_an_empty_directory_only(directory: Path) -> None:
    directory.mkdir()
    hes.create_identity(directory)
    before = (directory / "hes.json").read_bytes()
    with pytest.raises(InputError) as caught:
        hes.create_identity(directory)
    assert caught.value.code == "exists" and (directory / "hes.json").read_bytes() == before
    assert hes.load_or_create(directory)[1] is False


@pytest.mark.parametrize("name", hes.FILES)
def test_a_missing_file_beside_others_is_an_error(directory: Path, name: str) -> None:
    hes.create_identity(directory)
    (directory / name).unlink()
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    for open_ in (hes.load, hes.load_or_create):
        with pytest.raises(InputError, match=name) as caught:
            open_(directory)
        assert caught.value.code == "damaged" and "reset" in (caught.value.hint or "")
    with pytest.raises(InputError):
        hes.create_identity(directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before, "nothing is replaced"


@pytest.mark.parametrize(
    "damage",
    [
        {"huk": "00"},
        {"huk": 1},
        {"guk": "zz" * 32},
        {"schema": 2},
        {"lifecycle": "16384"},
        {"lifecycle": True},
        {"extra": 1},
        {"boot": 5},
        {"boot": [{"type": "x"}]},
        {"configuration": "00" * 33},
        {"boot": [{"type": "x", "version": "1", "algorithm": "md5", "signer_id": "00" * 32, "value": "00"}]},
    ],
)
def test_a_damaged_identity_is_an_error(directory: Path, damage: dict[str, Any]) -> None:
    hes.create_identity(directory)
    content = json.loads((directory / "hes.json").read_text())
    (directory / "hes.json").write_text(json.dumps(content | damage))
    with pytest.raises(InputError) as caught:
        hes.load(directory)
    assert caught.value.code == "damaged"
    assert content["huk"] not in str(caught.value) and content["guk"] not in str(caught.value)


def test_files_of_two_identities_do_not_go_together(directory: Path, tmp_path: Path) -> None:
    hes.create_identity(directory)
    other = hes.create_identity(tmp_path / "other")
    (directory / "cpak.bin").write_bytes(other.cpak.public.sec1)
    with pytest.raises(InputError, match=r"cpak\.bin"):
        hes.load(directory)


def test_reset_makes_a_new_identity_even_of_a_damaged_one(directory: Path) -> None:
    first = hes.create_identity(directory).instance_id
    (directory / "cpak.pem").unlink()
    assert hes.reset(directory).instance_id != first
    assert hes.load(directory)
    (directory / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        hes.reset(directory)
    assert hes.load(directory)


@pytest.mark.parametrize("member", ["huk", "guk", "bl_hash"])
def test_published_secrets_are_refused(directory: Path, member: str) -> None:
    hes.create_identity(directory)
    default = {"huk": identity.DEFAULT_HUK, "guk": identity.DEFAULT_GUK, "bl_hash": identity.DEFAULT_BL_HASH}[member]
    content = json.loads((directory / "hes.json").read_text())
    (directory / "hes.json").write_text(json.dumps(content | {member: default.hex()}))
    with pytest.raises(InputError) as caught:
        hes.load(directory)
    assert caught.value.code == "default-secrets"


def test_fillers_of_upstream_are_refused_as_sealing_roots() -> None:
    bound_to: dict[str, Any] = {"rpv": bytes(64), "rim": bytes(64), "svn": 0, "metadata": None}
    for flags in (0, 1):
        with pytest.raises(InputError) as caught:
            sealing.sealing_key(b"\xaa" * 32, b"\x33" * 32, flags=flags, **bound_to)
        assert caught.value.code == "default-secrets"


def test_secrets_appear_in_no_representation(directory: Path) -> None:
    own = hes.create_identity(directory).identity
    assert own.huk.hex() not in repr(own) and repr(own.huk) not in repr(own)


def test_the_platform_token_is_for_the_delegated_key_only(directory: Path) -> None:
    made = hes.create_identity(directory)
    with pytest.raises(InputError) as caught:
        made.platform_token(bytes(97))
    assert caught.value.code == "InvalidArgument"
    key = made.delegated_key()
    with pytest.raises(InputError):
        made.platform_token(bytes(97))
    data = made.platform_token(key_to_cose(key.public.sec1))
    platform = verify_platform(data, Cpak(made.cpak.public.sec1))
    platform.require_claims()
    assert platform.claims[2396] == EMULATED_IMPLEMENTATION_ID and platform == parse_platform(data)[0]


def test_the_delegated_key_follows_every_slot(directory: Path) -> None:
    made = hes.create_identity(directory)
    before, vhuks = made.delegated_key(), made.vhuks()
    made.slots.extend(7, Measurement("FW", "1", "sha-256", bytes(32), b"x" * 32))
    assert made.delegated_key() != before
    assert made.vhuks()[0] != vhuks[0] and made.vhuks()[1] != vhuks[1]


def test_malformed_measurements_are_refused() -> None:
    good = Measurement("FW", "1", "sha-256", bytes(32), bytes(32))
    for changes in (
        {"algorithm": "md5"},
        {"signer_id": bytes(31)},
        {"sw_type": "x" * 33},
        {"sw_version": "x" * 15},
        {"value": b""},
        {"value": bytes(65)},
    ):
        with pytest.raises(SlotError) as caught:
            MeasurementSlots().extend(0, dataclasses.replace(good, **changes))
        assert caught.value.code == "InvalidArgument"


def test_derivation_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IsletError) as caught:
        derivation.generate_seed(b"", bytes(31), b"label")
    assert caught.value.code == "key-size"
    with pytest.raises(IsletError) as caught:
        derivation.ec_scalar(P521, bytes(32), b"")
    assert caught.value.code == "curve"
    monkeypatch.setattr(derivation, "hkdf", lambda *_: b"\xff" * 48)
    with pytest.raises(InternalError) as fault:
        derivation.cpak_scalar(bytes(32), bytes(32))
    assert fault.value.code == "kdf-range"
