"""The appraiser's files and the access log."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

import pytest
from registry_support import RIM, ZERO_REMS, Setting, make_setting, write_reference

from islet_cli.attestation.challenge import realm_challenge
from islet_cli.errors import VerificationError
from islet_cli.registry import log
from islet_cli.registry.admission import Admission, Policy

NONCE, SPKI = bytes(range(64)), b"public key"


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return make_setting(tmp_path)


def admission(setting: Setting, allow_emulated: bool = True) -> Admission:
    policy = setting.options(allow_emulated=allow_emulated).policy
    assert policy is not None
    return Admission(policy)


def test_the_identity_is_short_and_says_what_it_is(setting: Setting) -> None:
    token = setting.platform.token(realm_challenge(NONCE, SPKI))
    identity = json.loads(admission(setting).appraise(token, NONCE, SPKI))
    assert identity["rim"] == RIM.hex() and identity["emulated"] is True
    assert set(identity) == {
        "reference",
        "rim",
        "hash_algo",
        "personalization",
        "instance_id",
        "emulated",
        "warning",
    }


@pytest.mark.parametrize(("nonce", "spki"), [(bytes(64), SPKI), (NONCE, b"other key"), (NONCE[:-1], b"\x3f" + SPKI)])
def test_evidence_counts_for_one_nonce_and_one_key(setting: Setting, nonce: bytes, spki: bytes) -> None:
    token = setting.platform.token(realm_challenge(NONCE, SPKI))
    if nonce + spki == NONCE + SPKI:
        # The hash is over a concatenation; the fixed length of the nonce is what keeps the two apart.
        return
    with pytest.raises(VerificationError) as caught:
        admission(setting).appraise(token, nonce, spki)
    assert caught.value.code == "challenge"


def test_files_are_read_again_when_they_change(setting: Setting) -> None:
    judge = admission(setting)
    assert [value.rim for value in judge.references()] == [RIM]
    write_reference(setting.directory / "reference-2.json", rim=b"\2" * 32)
    assert len(judge.references()) == 2
    other = write_reference(setting.directory / "reference-2.json", rim=b"\3" * 32)
    os.utime(other, ns=(1, 1))
    assert sorted(value.rim for value in judge.references()) == sorted((RIM, b"\3" * 32))
    other.unlink()
    assert len(judge.references()) == 1


def test_an_unchanged_file_is_read_once(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = admission(setting)
    first = judge.references()[0]
    assert judge.references()[0] is first


@pytest.mark.parametrize("content", [b"", b"{}", b'{"realm": 1}', b"\xff"])
def test_a_broken_file_is_left_out_and_reported_once(
    setting: Setting, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (setting.directory / "reference-broken.json").write_bytes(content)
    judge = admission(setting)
    for _ in range(3):
        assert len(judge.references()) == 1
    assert caplog.text.count("reference-broken.json is left out") == 1


def test_sets_of_running_realms_admit_nobody(setting: Setting) -> None:
    extended = (b"\1" * 32, *ZERO_REMS[1:])
    reference = setting.directory / "reference-pull.json"
    for rems, kind, count in (
        ((extended,), "running", 0),
        ((ZERO_REMS,), "running", 0),
        ((extended,), None, 0),
        ((extended, ZERO_REMS), None, 1),
    ):
        write_reference(reference, rems=rems, kind=kind)
        values = admission(setting).references()
        assert len(values) == count
        assert all(value.rems == (ZERO_REMS,) for value in values)


def test_upstreams_example_platform_key_is_not_taken(setting: Setting, caplog: pytest.LogCaptureFixture) -> None:
    import vectors

    key = vectors.path("ISLET_VECTORS_ATTESTATION").parent / "cpak_public.bin"
    assert Admission(Policy([], [("real", key)])).cpaks() == []
    assert "default-cpak" in caplog.text


def test_a_fault_of_ours_refuses(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = admission(setting)

    def faulty() -> list[object]:
        raise ZeroDivisionError

    monkeypatch.setattr(judge, "cpaks", faulty)
    with pytest.raises(VerificationError) as caught:
        judge.appraise(b"", NONCE, SPKI)
    assert caught.value.code == "internal"


def test_the_log_is_private_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    access = log.AccessLog(path)
    access.record("127.0.0.1:1", "refused", "rim", "RIM 00 is not known")
    access.record("127.0.0.1:2", "admitted", "", '{"rim": "ab", "reference": "r"}')
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    refused, admitted = log.read(path)
    assert (refused["code"], refused["reason"], refused["peer"]) == ("rim", "RIM 00 is not known", "127.0.0.1:1")
    assert admitted["realm"]["reference"] == "r"
    assert log.read(path, last=1) == [admitted]
    assert "refused  rim: RIM 00 is not known" in log.render(refused)


def test_hostile_text_is_defused(tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    log.AccessLog(path).record("p", "refused", "x\x1b]0;", "\x1b[2J\r\n{'event':'admitted'}\u202e" + "a" * 5000)
    (event,) = log.read(path)
    assert len(event["reason"]) < 700 and event["reason"].isprintable() and event["code"].isprintable()
    # A line that somebody else wrote into the file is defused when it is shown.
    with path.open("a") as file:
        file.write('{"event": "refused", "code": "\\u001b[2J", "reason": "\\n"}\nnonsense\n[1]\n')
    assert all(log.render(event).isprintable() for event in log.read(path))
    assert len(log.read(path)) == 2


def test_the_log_does_not_grow_without_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "MAX_FILE", 2000)
    path = tmp_path / "access.jsonl"
    access = log.AccessLog(path)
    for number in range(200):
        access.record("p", "refused", "rim", str(number))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 5000
    assert log.read(path)[-1]["reason"] == "199"


def test_a_log_that_cannot_be_written_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log.AccessLog(tmp_path / "absent" / "file").record("p", "refused", "rim", "x")
    assert "No such file" in caplog.text


def test_without_a_file_events_go_to_the_programs_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log.AccessLog(None).record("peer", "refused", "rim", "why")
    assert "rim: why" in caplog.text
