"""`islet key`, `islet sign`, `islet verify` and `islet image` as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from islet_cli.cli.main import run
from islet_cli.keys import ecc
from islet_cli.registry.client.http import Backoff


class Shell:
    """Runs commands in a directory and remembers what they printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.error = ""

    def __call__(self, command: str, *, code: int = 0) -> str:
        result = run(command.split())
        printed = self._capsys.readouterr()
        self.error = printed.err
        assert result == code, printed.err
        assert "Traceback" not in printed.err
        return printed.out

    def data(self, command: str, *, code: int = 0) -> Any:
        return json.loads(self(f"{command} --json", code=code))


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ISLET_WORKSPACE", raising=False)
    (tmp_path / "hello").write_text("#!/bin/sh\necho hello\n")
    (tmp_path / "hello").chmod(0o755)
    return Shell(capsys)


def make_keys(shell: Shell) -> None:
    for name in ("ca", "vendor"):
        shell(f"key generate -o {name}.prv")
        shell(f"key public -i {name}.prv -o {name}.pub")
    shell("key certify -k ca.prv -i vendor.pub -o vendor.sig")


def test_keys(shell: Shell, tmp_path: Path) -> None:
    make_keys(shell)
    shown = shell.data("key show vendor.prv")
    assert shown["type"] == "private" and shown["fingerprint"] == shell.data("key show vendor.pub")["fingerprint"]
    assert f"{ecc.load_private(tmp_path / 'vendor.prv').scalar:x}" not in shell("key show vendor.prv")
    shell("key generate -o vendor.prv", code=2)
    assert "--force" in shell.error
    shell("key generate -o vendor.prv --format pem --force")
    assert (tmp_path / "vendor.prv").read_bytes().startswith(b"-----BEGIN EC PRIVATE KEY-----")
    shell("key show absent", code=2)


def test_detached_signatures(shell: Shell) -> None:
    make_keys(shell)
    shell("key sign -k ca.prv -f hello -s hello.sig")
    shell("key verify -k ca.pub -f hello -s hello.sig")
    shell("key verify -k vendor.pub -f hello -s hello.sig", code=1)
    shell("key verify -k hello -f hello -s hello.sig", code=2)


def test_build_sign_verify(shell: Shell) -> None:
    make_keys(shell)
    built = shell.data("image build hello -o layout --tag v1 --security-version 2")
    assert built["name"] == "hello" and built["warnings"]
    shell("verify layout --ca-pub ca.pub", code=1)
    assert "annotation" in shell.error
    signed = shell.data("sign layout --vendor-key vendor.prv --vendor-sig vendor.sig --ca-pub ca.pub")
    assert signed["changed"] and signed["reference"] == "v1"
    verified = shell.data("verify layout --ca-pub ca.pub --deep --app hello")
    assert (verified["ok"], verified["application"], verified["security_version"]) == (True, "hello", 2)
    refused = shell.data("verify layout --ca-pub vendor.pub", code=1)
    assert (refused["ok"], refused["error"]["code"]) == (False, "vendor_signature_invalid")
    shell("verify layout --ca-pub ca.pub --app other", code=1)
    shell("verify layout --ca-pub ca.pub --tag v2", code=2)
    shell("verify absent --ca-pub ca.pub", code=2)
    shell("verify layout", code=2)


def test_sign_elsewhere(shell: Shell) -> None:
    make_keys(shell)
    shell("image build hello -o layout")
    shell("sign layout --app renamed --tbs-out tbs")
    shell("key sign -k vendor.prv -f tbs -s tbs.sig")
    shell(
        "sign layout --app renamed --signature tbs.sig --vendor-key vendor.pub --vendor-sig vendor.sig --ca-pub ca.pub"
    )
    assert shell.data("verify layout --ca-pub ca.pub --app renamed")["ok"]


def test_signature_artifact(shell: Shell) -> None:
    make_keys(shell)
    shell("image build hello -o layout")
    shell("verify layout --ca-pub ca.pub --require either", code=1)
    signed = shell.data("sign layout --vendor-key vendor.prv --ca-key ca.prv --artifact --expires 2099-01-01T00:00:00Z")
    assert signed["artifact"].startswith("sha256:")
    for requirement in ("annotation", "artifact", "either", "both"):
        shell(f"verify layout --ca-pub ca.pub --require {requirement} --app hello")
    shell("verify layout --ca-pub vendor.pub --require artifact", code=1)
    shell("sign layout --vendor-key vendor.prv --ca-key ca.prv --artifact --expires tomorrow", code=2)


def test_wrong_key_options(shell: Shell) -> None:
    make_keys(shell)
    shell("image build hello -o layout")
    for options in ("--vendor-sig vendor.sig", "--ca-pub ca.pub", "", "--ca-key ca.prv --ca-pub ca.pub"):
        shell(f"sign layout --vendor-key vendor.prv {options}", code=2)


def test_defaults_come_from_the_workspace(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell("init ws")
    monkeypatch.chdir(tmp_path / "ws")
    shell("image build ../hello -o layout")
    shell("sign layout")
    shell("verify layout")
    monkeypatch.chdir(tmp_path)
    shell("verify ws/layout --workspace ws")


def test_inspect_and_unpack(shell: Shell, tmp_path: Path) -> None:
    shell("image build hello -o layout --env A=1 --cmd x")
    (image,) = shell.data("image inspect layout")["images"]
    assert image["config"]["Cmd"] == ["x"] and image["signed"] is False
    assert "/app/hello" in shell("image inspect layout")
    shell("image unpack layout tree")
    assert (tmp_path / "tree/app/hello").read_text() == "#!/bin/sh\necho hello\n"
    shell("image unpack layout tree", code=2)
    blob = next(path for path in (tmp_path / "layout/blobs/sha256").iterdir() if path.stat().st_size > 5000)
    data = bytearray(blob.read_bytes())
    data[3000] ^= 1
    blob.write_bytes(data)
    shell("image inspect layout", code=1)
    shell("image unpack layout other", code=1)
    assert not (tmp_path / "other").exists()


def test_terminal_controls_of_an_image_are_not_printed(shell: Shell, tmp_path: Path) -> None:
    shell("image build hello -o layout --user \x1b[31mred")
    assert "\x1b" not in shell("image inspect layout")


def test_registry_that_is_not_there(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "delay", lambda _self, _failures: 0.0)
    shell("image pull docker://127.0.0.1:1/x:latest -o out --tls none", code=3)
    shell("image pull docker://127.0.0.1:1/X:latest -o out", code=2)
    make_keys(shell)
    shell("sign docker://127.0.0.1:1/x --vendor-key vendor.prv --ca-key ca.prv", code=2)
    assert "--into" in shell.error


def test_start_up_stays_light() -> None:
    """Key and signing code runs in a realm, too: importing it must not pull in heavy modules."""
    program = (
        "import sys, islet_cli.signing.verify, islet_cli.keys.ecc, islet_cli.oci.descriptor;"
        "print([m for m in ('cryptography', 'msgspec', 'typer', 'zstandard', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=dict(os.environ))
    assert done.stdout.strip() == b"[]"
