"""The RIM lock of a published realm."""

from __future__ import annotations

from pathlib import Path

import pytest

from islet_cli.cli.main import run
from islet_cli.config import Workspace
from islet_cli.launch.manifest import load_manifest
from islet_cli.realm_image.publish import publish
from rim_files import MANIFEST, pe_kernel, write


def test_a_bundle_carries_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`islet rim check` holds for the bundle wherever it is, and names what was changed in it."""
    tmp_path.chmod(0o700)
    write(tmp_path)
    (tmp_path / "islet.toml").write_text("schema = 1\n")
    (tmp_path / "realm.toml").write_text(MANIFEST + "[launch]\nmetadata = false\n")
    published = publish(Workspace.load(tmp_path), load_manifest(tmp_path / "realm.toml"), output=tmp_path / "bundle")
    moved = tmp_path / "elsewhere"
    published.directory.rename(moved)
    monkeypatch.chdir("/")
    assert run(["rim", "check", str(moved / "rim.lock")]) == 0
    assert capsys.readouterr().out == f"the lock holds\nRIM: {published.rim.hex()}\n"
    (moved / "vmlinuz").unlink()
    (moved / "vmlinuz").write_bytes(pe_kernel()[:-1] + b"\0")
    assert run(["rim", "check", str(moved / "rim.lock")]) == 1
    assert "changed input: kernel vmlinuz" in capsys.readouterr().out
    assert run(["rim", "diff", str(moved / "rim.lock"), str(moved)]) == 1
    assert "RMI_DATA_CREATE of kernel" in capsys.readouterr().out
