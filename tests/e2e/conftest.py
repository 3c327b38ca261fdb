"""The installed command as a user runs it, in workspaces that share one cached realm image.

Everything listens on loopback, every service is stopped at the end of its test.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

RUN_LIMIT_S = 600


@dataclass
class Result:
    """What a command left: exit code and both streams."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Islet:
    """Runs `islet` in one workspace."""

    root: Path
    environment: dict[str, str]

    def __call__(self, *arguments: str | Path, code: int | None = 0, **kwargs: Any) -> Result:
        """Run a command and require its exit code (None: any)."""
        done = subprocess.run(
            self.argv(*arguments),
            cwd=kwargs.pop("cwd", self.root),
            env={**self.environment, **kwargs.pop("env", {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_LIMIT_S,
            **kwargs,
        )
        result = Result(done.returncode, done.stdout, done.stderr)
        if code is not None and result.code != code:
            pytest.fail(
                f"islet {' '.join(map(str, arguments))}: exit code {result.code}, expected {code}\n"
                f"--- stdout\n{result.out}\n--- stderr\n{result.err}"
            )
        assert "Traceback" not in result.err, result.err
        return result

    def argv(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "islet_cli", *map(str, arguments)]

    def spawn(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start a command without waiting for it."""
        return subprocess.Popen(
            self.argv(*arguments),
            cwd=self.root,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def state(self) -> Path:
        return self.root / ".islet"


def wait_until(condition: Any, what: str, timeout_s: float = 60) -> Any:
    """Poll `condition` until it returns something true; return that."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    pytest.fail(f"waited {timeout_s:.0f} s in vain: {what}")


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of every command: software emulation, a private run directory, the machine's package cache."""
    runtime = tmp_path_factory.mktemp("run")
    runtime.chmod(0o700)
    return {**os.environ, "ISLET_ACCEL": "tcg", "XDG_RUNTIME_DIR": str(runtime), "NO_COLOR": "1"}


@pytest.fixture(scope="session")
def built_workspace(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """A workspace with its realm image built and published, made once."""
    root = tmp_path_factory.mktemp("built") / "w"
    islet = Islet(root.parent, environment)
    islet("init", root, "--listen", "127.0.0.1:0")
    islet = Islet(root, environment)
    islet("realm", "build")
    islet("realm", "publish")
    return root


@pytest.fixture
def islet(built_workspace: Path, environment: dict[str, str], tmp_path: Path) -> Iterator[Islet]:
    """A fresh copy of the built workspace; its services are stopped at the end."""
    root = tmp_path / "w"
    shutil.copytree(built_workspace, root, symlinks=True)
    command = Islet(root, environment)
    yield command
    command("down")


@pytest.fixture
def services(islet: Islet) -> Islet:
    """The same with platform, registry and warden up."""
    for name in ("platform", "registry", "warden"):
        islet(name, "up")
    return islet
