"""Private Unix sockets: mode 0600, and only processes of the same user."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

_CREDENTIALS = struct.Struct("=iII")


def listen_private(path: Path, backlog: int = 8) -> socket.socket:
    """Listen on a Unix stream socket with mode 0600.

    Raises:
        OSError: The path is taken, too long, or its directory is not ours.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        # The directory is 0700, so nobody else comes between bind and chmod.
        path.chmod(0o600)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def is_own_peer(connection: socket.socket) -> bool:
    """Whether the process at the other end runs as this user (SO_PEERCRED)."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(raw)
    return bool(uid == os.geteuid())
