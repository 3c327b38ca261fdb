"""`islet platform` and `islet token` in a workspace."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from evidence_factory import CHALLENGE, RIM, Factory

from islet_cli import services
from islet_cli.attestation.challenge import host_challenge
from islet_cli.attestation.reference import ReferenceValues
from islet_cli.cli.main import run
from islet_cli.config import Workspace
from islet_cli.platform import hes
from islet_cli.platform.client import PlatformClient


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("ISLET_WORKSPACE", raising=False)
    root = tmp_path / "w"
    root.mkdir(mode=0o700)
    (root / "islet.toml").write_text("schema = 1\n[registry]\nallow_emulated = true\n")
    (root / ".islet").mkdir(mode=0o700)
    monkeypatch.chdir(root)
    made = Workspace.load(root)
    yield made
    services.stop(made, "platform")
    shutil.rmtree(made.run_dir, ignore_errors=True)


def test_the_service_of_a_workspace(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["platform", "status"]) == 3
    assert "islet platform up" in capsys.readouterr().err
    assert run(["platform", "up", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert run(["platform", "up", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == first, "a second start finds the first"
    assert run(["platform", "status"]) == 0
    assert "emulated: no protection from the host" in capsys.readouterr().out
    assert run(["platform", "status", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["instance_id"] == hes.load(workspace.platform_dir).instance_id.hex() and shown["realms"] == []
    assert run(["platform", "reset", "--yes"]) == 4, "not while it runs"
    with PlatformClient(workspace.platform_socket) as client:
        client.shutdown()
    assert run(["platform", "down"]) == 0
    assert not workspace.platform_socket.exists()
    assert run(["platform", "reset"]) == 2, "not without --yes"
    assert run(["platform", "reset", "--yes"]) == 0
    assert hes.load(workspace.platform_dir).instance_id.hex() != first["instance_id"]


def test_a_killed_platform_is_replaced(workspace: Workspace) -> None:
    assert run(["platform", "up"]) == 0
    first = services.find(workspace, "platform")
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    os.waitpid(first.pid, 0)
    assert run(["platform", "status"]) == 3
    assert run(["platform", "up"]) == 0
    second = services.find(workspace, "platform")
    assert second is not None and second.pid != first.pid
    assert second.info["instance_id"] == first.info["instance_id"]
    assert run(["platform", "status"]) == 0


def test_show_keeps_the_secrets(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    made = hes.create_identity(workspace.platform_dir)
    assert run(["platform", "show"]) == 0 and run(["platform", "show", "--json"]) == 0
    shown = capsys.readouterr().out
    assert made.instance_id.hex() in shown and "emulated: no protection from the host" in shown
    for secret in (made.identity.huk, made.identity.guk, made.identity.bl_hash):
        assert secret.hex() not in shown


def test_a_damaged_identity_keeps_the_platform_down(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    hes.create_identity(workspace.platform_dir)
    (workspace.platform_dir / "cpak.bin").unlink()
    assert run(["platform", "up"]) == 4
    assert "cpak.bin: missing" in capsys.readouterr().err
    assert not (workspace.platform_dir / "cpak.bin").exists()


def test_tokens_are_verified_with_what_the_workspace_pins(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    factory = Factory(realm={"challenge": host_challenge(CHALLENGE)}).emulated()
    (workspace.root / "token").write_bytes(factory.token())
    workspace.platform_dir.mkdir()
    (workspace.platform_dir / "cpak.bin").write_bytes(factory.cpak.public.sec1)
    published = workspace.published_dir("default")
    published.mkdir(parents=True)
    values = ReferenceValues(RIM, ((bytes(32),) * 4,), "sha-256", name="default", kind="running")
    (published / "reference-running.json").write_bytes(values.to_bytes())

    assert run(["token", "verify", "token", "--host-challenge", CHALLENGE.hex()]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("accepted\n") and "emulated: no protection from the host" in shown
    assert run(["token", "verify", "token", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["challenge_checked"] is False and "freshness was not checked" in captured.err
    assert run(["token", "verify", "token", "--challenge", CHALLENGE.hex()]) == 1, "raw and host challenge differ"
    assert run(["token", "verify", "token", "--challenge", "00"]) == 2
    assert run(["token", "verify", "token", "--challenge", "zz"]) == 2
    (published / "reference-running.json").unlink()
    assert run(["token", "verify", "token"]) == 1
    assert "no reference values" in capsys.readouterr().err


def test_explicit_pins_win_and_real_pins_refuse_emulated_evidence(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    factory = Factory().emulated()
    values = ReferenceValues(RIM, ((bytes(32),) * 4,), "sha-256", name="explicit")
    (workspace.root / "token").write_bytes(factory.token())
    (workspace.root / "cpak").write_bytes(factory.cpak.public.pem())
    (workspace.root / "values.json").write_bytes(values.to_bytes())
    arguments = ["token", "verify", "token", "--reference", "values.json", "--cpak"]
    assert run([*arguments, "emulated:cpak"]) == 0
    assert run([*arguments, "cpak"]) == 1
    assert "pinned as a real one" in capsys.readouterr().err
    (workspace.root / "islet.toml").write_text("schema = 1\n")
    assert run([*arguments, "emulated:cpak"]) == 1
    assert "--allow-emulated" in capsys.readouterr().err
    assert run([*arguments, "emulated:cpak", "--allow-emulated"]) == 0


def test_show_reads_without_trust(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    factory = Factory(platform={"verification_service": "\x1b[2J"}).emulated()
    (workspace.root / "token").write_bytes(factory.token())
    assert run(["token", "show", "token"]) == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out and RIM.hex() in captured.out and "nothing was verified" in captured.err
    assert captured.out.endswith("emulated: no protection from the host\n")
    assert run(["token", "show", "token", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["realm"]["claims"]["44238"] == RIM.hex()
    (workspace.root / "token").write_bytes(factory.token()[:-1])
    assert run(["token", "show", "token"]) == 2
    assert capsys.readouterr().err.startswith("error: token: ")
