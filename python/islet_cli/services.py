"""Background services of a workspace: start, find, stop.

A service is `islet … --foreground` run in a session of its own. When it is ready it writes
`NAME.json` in the run directory: pid, start time and whatever else others need to reach it
(bound port, socket). The record is removed at exit; one whose process is gone counts as absent.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from islet_cli.config import Workspace
from islet_cli.errors import OperationError, UnavailableError
from islet_cli.fsutil import exclusive_lock, make_private_directory, write_atomic
from islet_cli.process import is_alive, start_time

NAMES = ("platform", "registry", "warden")


@dataclass(frozen=True)
class Running:
    """A running service."""

    name: str
    pid: int
    started: int
    info: dict[str, Any]


def _record(workspace: Workspace, name: str) -> Path:
    return workspace.run_dir / f"{name}.json"


def find(workspace: Workspace, name: str) -> Running | None:
    """Return the running service, or None."""
    try:
        data = json.loads(_record(workspace, name).read_text())
        running = Running(name, int(data["pid"]), int(data["started"]), dict(data["info"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return running if is_alive(running.pid, running.started) else None


@contextlib.contextmanager
def announce(workspace: Workspace, name: str, info: dict[str, Any]) -> Iterator[None]:
    """Inside the service itself: publish that it is ready, and withdraw that at exit."""
    record = _record(workspace, name)
    pid = os.getpid()
    write_atomic(record, json.dumps({"pid": pid, "started": start_time(pid), "info": info}).encode())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            record.unlink()


def start(workspace: Workspace, name: str, arguments: list[str], *, timeout_s: float = 20.0) -> Running:
    """Start `islet ARGUMENTS` in the background unless the service runs already; wait until it is ready.

    Raises:
        OperationError: It ended before it was ready; the message carries the last line of its log.
        UnavailableError: Likewise when it ended with exit code 3 (a busy port, a missing program).
    """
    with exclusive_lock(workspace.run_dir / f"{name}.lock"):
        running = find(workspace, name)
        if running is not None:
            return running
        make_private_directory(workspace.log_dir)
        log = workspace.log_dir / f"{name}.log"
        with log.open("ab") as output:
            offset = output.tell()
            environment = dict(os.environ, ISLET_WORKSPACE=str(workspace.root))
            child = subprocess.Popen(
                [sys.executable, "-m", "islet_cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            running = find(workspace, name)
            if running is not None and running.pid == child.pid:
                return running
            if child.poll() is not None:
                break
            time.sleep(0.02)
        else:
            child.kill()
            child.wait()
    with log.open("rb") as written:
        written.seek(offset)
        lines = [line for line in written.read()[-4096:].decode("utf-8", "replace").splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("error")), lines[-1] if lines else "no output")
    reason = reason.removeprefix("error: ")
    hint = next((line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")), None)
    if not lines and os.statvfs(log.parent).f_bavail == 0:
        reason, hint = f"{log.parent}: No space left on device", "free some space and try again"
    kind = UnavailableError if child.returncode == 3 else OperationError
    raise kind(f"the {name} did not start: {reason}", code="service-failed", hint=hint or f"see {log}")


def stop(workspace: Workspace, name: str, *, timeout_s: float = 40.0) -> bool:
    """Stop a service in good order, by force after `timeout_s`; return whether it ran."""
    running = find(workspace, name)
    if running is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(running.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while is_alive(running.pid, running.started):
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.pid, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.05)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(running.pid, os.WNOHANG)
    with contextlib.suppress(OSError):
        _record(workspace, name).unlink()
    return True
