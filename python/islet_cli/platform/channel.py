"""The RSI channel of one realm: a socket that one QEMU process connects to, once.

That connection is the realm's identity: the path is unlinked as soon as it stands, and the realm is off when
it ends.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from islet_cli import framing
from islet_cli.platform import rsi
from islet_cli.platform.peers import is_own_peer, listen_private
from islet_cli.platform.rmm import Realm, Rmm

CONNECT_TIMEOUT_S = 120.0
"""How long an activated realm may take to connect; QEMU does so before the guest runs."""

_LOG = logging.getLogger(__name__)


class RsiChannel:
    """Serves one realm in a thread of its own, from activation to the end of its VM."""

    def __init__(self, rmm: Rmm, realm: Realm, path: Path, on_end: Callable[[Realm], None]) -> None:
        """Listen on `path` (0600).

        Raises:
            OSError: The socket cannot be made.
        """
        self._rmm = rmm
        self._realm = realm
        self._path = path
        self._on_end = on_end
        self._lock = threading.Lock()
        self._closed = False
        self._socket = listen_private(path)
        self._socket.settimeout(CONNECT_TIMEOUT_S)

    @property
    def path(self) -> Path:
        return self._path

    def start(self) -> None:
        threading.Thread(target=self._run, name=f"rsi-{self._realm.rd}", daemon=True).start()

    def close(self) -> None:
        """End the connection, or the wait for it."""
        with self._lock:
            self._closed = True
            # Closing alone would not wake a thread that waits in accept or recv.
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        try:
            connection = self._accept()
            if connection is not None:
                _LOG.info("realm %s: connected", self._realm.rd)
                with connection:
                    self._serve(connection)
        except (OSError, framing.FramingError) as error:
            _LOG.info("realm %s: channel ended: %s", self._realm.rd, error)
        except Exception:
            _LOG.exception("realm %s: channel failed", self._realm.rd)
        finally:
            self._socket.close()
            self._path.unlink(missing_ok=True)
            self._realm.power_off()
            _LOG.info("realm %s: off", self._realm.rd)
            self._on_end(self._realm)

    def _accept(self) -> socket.socket | None:
        while True:
            try:
                connection, _address = self._socket.accept()
            except TimeoutError:
                _LOG.warning("realm %s: nothing connected within %.0f s", self._realm.rd, CONNECT_TIMEOUT_S)
                return None
            if is_own_peer(connection):
                break
            connection.close()
        with self._lock:
            listener, self._socket = self._socket, connection
            closed = self._closed
        listener.close()
        self._path.unlink(missing_ok=True)
        connection.settimeout(None)
        if closed:
            connection.close()
            return None
        return connection

    def _serve(self, connection: socket.socket) -> None:
        """Answer requests until the stream ends or is out of step. A hello may come at any frame boundary: a
        manager that was started again says it."""
        opened = False
        while True:
            prefix = framing.receive_exactly(connection.recv, framing.PREFIX.size, allow_end=True)
            if prefix is None:
                return
            if prefix == rsi.HELLO[: len(prefix)]:
                rest = framing.receive_exactly(connection.recv, len(rsi.HELLO) - len(prefix))
                if rest != rsi.HELLO[len(prefix) :]:
                    return
                connection.sendall(rsi.HELLO)
                opened = True
                continue
            if not opened:
                return
            body = framing.receive_exactly(
                connection.recv, framing.decode_length(prefix, limit=rsi.REQUEST_LIMIT - framing.PREFIX.size)
            )
            assert body is not None
            connection.sendall(framing.encode(self._answer(body), limit=rsi.FRAME_LIMIT))

    def _answer(self, body: bytes) -> object:
        try:
            request = framing.decode_body(body)
        except framing.BodyError as error:
            return rsi.error_answer(errno.EINVAL, error.message)
        return rsi.handle(self._rmm, self._realm, request)
