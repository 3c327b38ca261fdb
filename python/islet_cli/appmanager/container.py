"""Contained processes: start through the native crate, signals, output, wait status."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from islet_cli import _native
from islet_cli.errors import OperationError

_STATUS = struct.Struct("=i")
_DRAIN_S = 2.0


@dataclass(frozen=True)
class ProcessSpec:
    """What to run and in which surroundings; see `_native.guest.spawn`."""

    root: Path
    argv: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    hostname: str
    binds: tuple[tuple[Path, str], ...]


class LaunchError(OperationError):
    """A process could not be started. `not_found` and `not_executable` tell the usual reasons apart."""

    default_code = "launch"


class Process(Protocol):
    """A running application."""

    def signal(self, number: int) -> None:
        """Signal the application's process group."""

    def kill(self) -> None:
        """End it and everything in it."""

    def wait(self, timeout_s: float | None) -> int | None:
        """The raw wait status once it has ended, None when the time is over first."""


class Containers(Protocol):
    """Starts processes."""

    def start(self, spec: ProcessSpec, output: Callable[[bytes], None], ended: Callable[[int], None]) -> Process:
        """Start one.

        Args:
            spec: What to start.
            output: Called with output as it comes, from other threads.
            ended: Called once with the raw wait status, after all output.

        Raises:
            LaunchError: It could not be started.
        """


class NativeContainers:
    """Namespaces, a root of its own, few privileges."""

    def start(self, spec: ProcessSpec, output: Callable[[bytes], None], ended: Callable[[int], None]) -> Process:
        try:
            started = _native.guest.spawn(
                root=spec.root,
                argv=[os.fsencode(one) for one in spec.argv],
                env=[os.fsencode(one) for one in spec.env],
                cwd=os.fsencode(spec.cwd),
                uid=spec.uid,
                gid=spec.gid,
                groups=list(spec.groups),
                hostname=spec.hostname.encode(),
                binds=[(source, os.fsencode(target)) for source, target in spec.binds],
            )
        except OperationError as error:
            raise _launch_error(spec, error) from error
        return NativeProcess(started, output, ended)


def _launch_error(spec: ProcessSpec, error: OperationError) -> LaunchError:
    number = getattr(error, "errno", None)
    if error.code != "spawn-exec":
        return LaunchError(f"cannot be set up: {error.message}", code="launch")
    program = spec.argv[0]
    if number in (errno.ENOENT, errno.ENOTDIR):
        return LaunchError(f"{program}: no such program in the image, or its interpreter is missing", code="not_found")
    return LaunchError(f"{program}: cannot be executed: {os.strerror(number or 0)}", code="not_executable")


class NativeProcess:
    """See `Process`. Threads of its own read the output and wait for the end."""

    def __init__(
        self, started: tuple[int, int, int, int, int], output: Callable[[bytes], None], ended: Callable[[int], None]
    ) -> None:
        self._pid, stdout, stderr, self._status_pipe, self._lifeline = started
        self._ended = ended
        self._over = threading.Event()
        self._status = 0
        self._lock = threading.Lock()
        self._reaped = False
        self._readers = [
            threading.Thread(target=_pump, args=(descriptor, output), daemon=True) for descriptor in (stdout, stderr)
        ]
        for reader in self._readers:
            reader.start()
        threading.Thread(target=self._reap, daemon=True).start()

    def signal(self, number: int) -> None:
        # Under the lock the pid is certainly still ours: it is reaped under the same lock.
        with self._lock, contextlib.suppress(ProcessLookupError):
            if not self._reaped:
                os.kill(self._pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def wait(self, timeout_s: float | None) -> int | None:
        return self._status if self._over.wait(timeout_s) else None

    def _reap(self) -> None:
        # WNOWAIT first, so that the pid stays reserved until the lock is held.
        os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            _pid, own = os.waitpid(self._pid, 0)
            self._reaped = True
        for reader in self._readers:
            reader.join(_DRAIN_S)
        reported = os.read(self._status_pipe, _STATUS.size)
        os.close(self._status_pipe)
        os.close(self._lifeline)
        # Without a report the init itself was killed: its own status is the application's.
        self._status = _STATUS.unpack(reported)[0] if len(reported) == _STATUS.size else own
        self._ended(self._status)
        self._over.set()


def _pump(descriptor: int, output: Callable[[bytes], None]) -> None:
    try:
        while data := os.read(descriptor, 1 << 16):
            output(data)
    finally:
        os.close(descriptor)


def identity_files(directory: Path, hostname: str, *, fresh: bool) -> Sequence[tuple[Path, str]]:
    """Write the files that every application gets, and say where they go inside.

    Args:
        directory: Private place outside the application's root.
        hostname: Its host name.
        fresh: Whether the data volume was formatted in this provisioning.

    Returns:
        (file outside, path inside) of hosts, hostname, resolv.conf and volume.json.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    contents = {
        "hosts": f"127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\t{hostname}\n",
        "hostname": f"{hostname}\n",
        "volume.json": '{"schema":1,"fresh":%s}\n' % ("true" if fresh else "false"),
    }
    for name, content in contents.items():
        path = directory / name
        path.write_text(content)
        path.chmod(0o644)
    resolver = Path("/etc/resolv.conf")
    if not resolver.exists():
        resolver = directory / "resolv.conf"
        resolver.touch(mode=0o644)
    return [
        (directory / "hosts", "/etc/hosts"),
        (directory / "hostname", "/etc/hostname"),
        (resolver.resolve(), "/etc/resolv.conf"),
        (directory / "volume.json", "/run/islet/volume.json"),
    ]
