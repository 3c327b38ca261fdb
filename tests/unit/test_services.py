"""Background services: records, liveness, refusals."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from islet_cli import services
from islet_cli.config import Workspace
from islet_cli.developer.workspace import make_workspace
from islet_cli.errors import IsletError
from islet_cli.process import start_time


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)
    return make_workspace(tmp_path / "w").workspace


def test_an_announced_service_is_found_until_it_ends(workspace: Workspace) -> None:
    assert services.find(workspace, "registry") is None
    with services.announce(workspace, "registry", {"address": "127.0.0.1:1"}):
        running = services.find(workspace, "registry")
        assert running is not None
        assert running.pid == os.getpid()
        assert running.info == {"address": "127.0.0.1:1"}
    assert services.find(workspace, "registry") is None


def test_a_record_of_another_process_with_the_same_pid_counts_as_absent(workspace: Workspace) -> None:
    started = start_time(os.getpid())
    assert started is not None
    record = {"pid": os.getpid(), "started": started - 1, "info": {}}
    (workspace.run_dir / "warden.json").write_text(json.dumps(record))
    assert services.find(workspace, "warden") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}'])
def test_a_damaged_record_counts_as_absent(workspace: Workspace, text: str) -> None:
    (workspace.run_dir / "warden.json").write_text(text)
    assert services.find(workspace, "warden") is None


def test_a_service_that_ends_at_once_says_why(workspace: Workspace) -> None:
    with pytest.raises(IsletError, match=r"the registry did not start: .*frobnicate"):
        services.start(workspace, "registry", ["frobnicate"])
    assert services.find(workspace, "registry") is None
