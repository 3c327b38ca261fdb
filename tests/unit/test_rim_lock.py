"""Lock files: written, checked, drifted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from islet_cli.cli.main import run
from islet_cli.errors import InputError
from islet_cli.rim import lock
from islet_cli.rim.capabilities import BUILT_IN, Capabilities
from islet_cli.rim.request import of_command_line, of_manifest
from rim_files import BASE, MANIFEST, write


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write(tmp_path)


def test_a_lock_of_a_manifest_holds_until_something_changes(here: Path) -> None:
    (here / "rim.lock").write_bytes(lock.make(of_manifest(Path("realm.toml")), here))
    value = json.loads((here / "rim.lock").read_text())
    assert [(item["what"], item["path"]) for item in value["inputs"]] == [
        ("manifest", "realm.toml"),
        ("kernel", "kernel"),
        ("initrd", "initrd"),
    ]
    assert str(here) not in json.dumps(value["inputs"]) + json.dumps(value["explanation"]["files"])
    assert lock.check(here / "rim.lock").equal
    (here / "realm.toml").write_text(MANIFEST.replace('id = "a"', 'id = "b"'))
    unmeasured = lock.check(here / "rim.lock")
    assert unmeasured.equal and unmeasured.changed == ("manifest realm.toml",)
    (here / "realm.toml").write_text(MANIFEST + "[launch]\nmemory_mib = 1024\n")
    drifted = lock.check(here / "rim.lock")
    assert not drifted.equal and drifted.changed == ("manifest realm.toml",)
    assert "/memory reg" in [cause.where for cause in drifted.comparison.causes]


def test_a_lock_of_a_command_line_from_elsewhere(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "ci").mkdir()
    assert run(["rim", "compute", "--lock-out", "ci/rim.lock", "--", "run", *BASE]) == 0
    monkeypatch.chdir("/")
    assert run(["rim", "check", str(here / "ci" / "rim.lock")]) == 0
    data = bytearray((here / "kernel").read_bytes())
    data[30000] ^= 1
    (here / "kernel").write_bytes(data)
    capsys.readouterr()
    assert run(["rim", "check", "--json", str(here / "ci" / "rim.lock")]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["changed_inputs"] == ["kernel ../kernel"] and not shown["equal"]
    (cause,) = shown["comparison"]["causes"]
    assert cause["detail"].startswith("1 of 1 blocks of 1 MiB differs: block 0 ")
    assert run(["rim", "check", str(here / "ci" / "rim.lock")]) == 1
    assert capsys.readouterr().out.startswith("the RIM has drifted\nchanged input: kernel ../kernel\n")


def test_a_lock_of_the_second_dialect(here: Path) -> None:
    request = of_command_line(BASE, dialect="realm-measurements", host=_host(), host_name="fvp")
    (here / "rim.lock").write_bytes(lock.make(request, here))
    assert lock.check(here / "rim.lock").equal


def _host() -> Capabilities:

    return BUILT_IN["fvp"]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"kind": "islet-rim-lock", "schema": 2}'])
def test_damaged_locks_are_refused(here: Path, content: bytes) -> None:
    (here / "rim.lock").write_bytes(content)
    with pytest.raises(InputError) as refused:
        lock.check(here / "rim.lock")
    assert refused.value.code == "rim-lock"


def test_a_lock_with_another_rim_than_its_explanation(here: Path) -> None:
    value = json.loads(lock.make(of_manifest(Path("realm.toml")), here))
    (here / "rim.lock").write_text(json.dumps(value | {"rim": "00" * 32}))
    with pytest.raises(InputError, match="do not belong together"):
        lock.check(here / "rim.lock")
