"""ASGI applications on Unix sockets, and what a listener that cannot be bound means."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from islet_cli.errors import InputError, OperationError, UnavailableError
from islet_cli.fsutil import os_error

if TYPE_CHECKING:
    from starlette.types import ASGIApp

MAX_SOCKET_PATH = 107
"""Bytes that the name of a Unix socket can have."""
_BACKLOG = 256
_KEEP_ALIVE_S = 3600
"""The listener decides when a connection is idle; the backend must never be the first to hang up."""


@contextlib.contextmanager
def backend(app: ASGIApp, path: Path) -> Iterator[Path]:
    """Run an ASGI application on a Unix socket (0600) and a thread of its own, for the length of the block."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        # Before listen: until then nobody can connect, whatever the umask made of the mode.
        path.chmod(0o600)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise os_error(error, path) from error
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=128 << 10,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="backend", daemon=True)
    thread.start()
    try:
        yield path
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listening.close()
        path.unlink(missing_ok=True)


def bind_error(listen: str, error: OSError) -> Exception:
    """What a user should see when an address cannot be bound."""
    if error.errno == errno.EADDRINUSE:
        port = listen.rpartition(":")[2]
        return UnavailableError(
            f"{listen}: the port is in use",
            code="port-busy",
            hint=f"stop what holds it (ss -ltnp 'sport = :{port}'), or choose another: --listen ADDR:PORT, "
            "or listen in islet.toml",
        )
    if error.errno == errno.EADDRNOTAVAIL or error.errno is None:
        return InputError(f"{listen}: not an address of this machine: {error}", code="bad-address")
    if error.errno == errno.EACCES:
        return UnavailableError(
            f"{listen}: this user may not listen there", code="permission", hint="choose a port above 1023"
        )
    return OperationError(f"{listen}: {error.strerror}", code="io")
