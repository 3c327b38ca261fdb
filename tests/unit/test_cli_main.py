"""Exit codes and error text of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from islet_cli.cli import main
from islet_cli.cli.main import COMMANDS, run


def test_every_listed_command_exists_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        assert run([name, "--help"]) == 0, name
        assert "Usage: islet" in capsys.readouterr().out


def test_an_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["frobnicate"]) == 2
    assert "error: No such command 'frobnicate'" in capsys.readouterr().err


def test_errors_name_the_input_and_the_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ISLET_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert run(["down"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [f"error: no islet.toml in {tmp_path} or above it", "hint: run: islet init"]


def test_init_prints_one_json_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", str(tmp_path / "w"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["workspace"] == str(tmp_path / "w")
    assert set(document["keys"]) == {"root CA", "vendor", "realm metadata"}


def test_a_fault_of_our_own_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("islet_cli.developer.workspace.make_workspace", broken)
    assert main.run(["init", str(tmp_path / "w")]) == 4
    assert "internal fault: RuntimeError: boom" in capsys.readouterr().err
