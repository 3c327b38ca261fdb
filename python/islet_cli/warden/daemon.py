"""The warden process: one per workdir, a private socket, an orderly end.

SIGTERM and SIGINT stop every realm in good order; a second one kills them at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from islet_cli.errors import UnavailableError
from islet_cli.fsutil import exclusive_lock, make_private_directory, os_error
from islet_cli.warden.options import WardenOptions
from islet_cli.warden.platform_session import EmulatedPlatform, Platform
from islet_cli.warden.runner import Runner
from islet_cli.warden.runner_qemu import QemuRunner
from islet_cli.warden.server import ClientServer
from islet_cli.warden.vsock import VsockListener
from islet_cli.warden.warden import Warden

LOCK_NAME = "warden.lock"
log = logging.getLogger(__name__)


def serve(options: WardenOptions, ready: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    """Run a warden until it is told to stop.

    Args:
        options: Settings.
        ready: Entered when clients can connect, left before realms are stopped.

    Raises:
        UnavailableError: Another warden uses the workdir or the socket, or vsock is not there.
    """
    make_private_directory(options.workdir)
    with exclusive_lock(options.workdir / LOCK_NAME, blocking=False, busy_message=f"workdir {options.workdir}"):
        asyncio.run(run(options, ready))


async def run(
    options: WardenOptions,
    ready: Callable[[], contextlib.AbstractContextManager[None]],
    *,
    runner: Runner | None = None,
    platform: Platform | None = None,
) -> None:
    """`serve` inside a running loop; tests pass their own runner and platform."""
    vsock = VsockListener(options.vsock_port) if options.transport == "vsock" and runner is None else None
    if vsock is not None:
        vsock.start()
    if runner is None:
        runner = QemuRunner(options.accel, vsock=vsock, binary=options.virtualizer)
    warden = Warden(options, runner, platform or EmulatedPlatform(options.platform_socket))
    warden.load()
    clients = ClientServer(warden)
    stop = _Stop(warden)
    with _bound(options.socket, options.socket_mode) as listener, stop.installed():
        server = await asyncio.start_unix_server(clients.serve, sock=listener)
        try:
            with ready():
                await stop.wanted.wait()
        finally:
            server.close()
            await clients.stop()
            await warden.shut_down()
            if vsock is not None:
                await vsock.close()


class _Stop:
    """Signals: the first asks, the second insists."""

    def __init__(self, warden: Warden) -> None:
        self.wanted = asyncio.Event()
        self._warden = warden

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self._signalled)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _signalled(self) -> None:
        if self.wanted.is_set():
            log.warning("second signal: killing every VM")
            self._warden.kill_all()
        self.wanted.set()


@contextlib.contextmanager
def _bound(path: Path, mode: int) -> Iterator[socket.socket]:
    """A listening socket at `path` with `mode` from its first moment; removed at the end.

    Only a socket on which nobody answers is replaced, never another kind of file.
    """
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o777 & ~mode)
        try:
            listener.bind(os.fspath(path))
        except OSError as error:
            raise os_error(error, path) from error
        finally:
            os.umask(before)
        identity = path.stat().st_ino
        yield listener
        with contextlib.suppress(OSError):
            if path.stat().st_ino == identity:
                path.unlink()
    finally:
        listener.close()


def _clear(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise os_error(error, path) from error
    if not stat.S_ISSOCK(kind):
        raise UnavailableError(f"{path}: exists and is not a socket", code="unavailable", hint="choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise os_error(error, path) from error
    raise UnavailableError(f"{path}: another daemon answers there", code="locked", hint="stop it first")
