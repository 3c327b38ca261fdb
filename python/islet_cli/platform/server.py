"""The platform process: its management socket and one thread per connection.

Threads, because every connection is a simple sequence of blocking steps (read, copy and measure, answer), and
a realm whose peer is stuck must not hold up the others.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from islet_cli import framing
from islet_cli.errors import UnavailableError
from islet_cli.fsutil import exclusive_lock, require_private
from islet_cli.platform.hes import Hes
from islet_cli.platform.management import Answer, Channels, Session, error_answer
from islet_cli.platform.peers import is_own_peer, listen_private
from islet_cli.platform.rmm import Measure, Rmm, measure_launch

MAX_CONNECTIONS = 128
_LOG = logging.getLogger(__name__)


class PlatformServer:
    """A platform that listens; made by `serve`."""

    def __init__(self, hes: Hes, listener: socket.socket, socket_path: Path, measure: Measure) -> None:
        self.socket_path = socket_path
        self._listener = listener
        self._rmm = Rmm(hes, measure=measure)
        self._channels = Channels(self._rmm, socket_path.parent)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.is_serving = False

    def run(self) -> None:
        """Serve until `stop` is called or a client asks for shutdown."""
        self.is_serving = True
        try:
            self._accept_until_woken()
        finally:
            self.is_serving = False
            self.close()

    def _accept_until_woken(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake_reader, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _events in selector.select()}
                if self._wake_reader in ready:
                    return
                self._accept()

    def stop(self) -> None:
        """Make `run` return; may be called from any thread, and more than once."""
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"x")

    def close(self) -> None:
        """End every connection and channel."""
        self._listener.close()
        self._channels.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._wake_reader.close()
        self._wake_writer.close()

    def _accept(self) -> None:
        try:
            connection, _address = self._listener.accept()
        except OSError as error:
            _LOG.warning("accept: %s", error)
            return
        with self._lock:
            admitted = len(self._connections) < MAX_CONNECTIONS and is_own_peer(connection)
            if admitted:
                self._connections.add(connection)
        if not admitted:
            connection.close()
            return
        threading.Thread(target=self._serve, args=(connection,), name="management", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        session = Session(self._rmm, self._channels, self.stop)
        try:
            with connection:
                self._converse(connection, session)
        except (OSError, framing.FramingError) as error:
            _LOG.info("management connection ended: %s", error)
        finally:
            with self._lock:
                self._connections.discard(connection)
            session.close()

    @staticmethod
    def _converse(connection: socket.socket, session: Session) -> None:
        while True:
            try:
                request = framing.read_frame(connection.recv)
            except framing.BodyError as error:
                _send(connection, error_answer("input", error.message))
                continue
            if request is None:
                return
            _send(connection, session.handle(request))


def _send(connection: socket.socket, answer: Answer) -> None:
    """Send an answer, close its files whether or not they arrived, and do what comes after it."""
    try:
        frame = framing.encode(answer.value)
        if answer.files:
            sent = socket.send_fds(connection, [frame], [file.descriptor for file in answer.files])
            frame = frame[sent:]
        connection.sendall(frame)
    finally:
        for file in answer.files:
            file.close()
        if answer.after is not None:
            answer.after()


@contextlib.contextmanager
def serve(hes: Hes, socket_path: Path, *, measure: Measure = measure_launch) -> Iterator[PlatformServer]:
    """Listen on `socket_path` for the block; call `run` on the server inside it.

    Args:
        hes: The platform.
        socket_path: In a directory of this user's that nobody else may write to.
        measure: How launches are measured.

    Raises:
        UnavailableError: `locked` (another platform serves there), `socket` (it cannot be made).
        InputError: `not-private`.
    """
    require_private(socket_path.parent)
    lock = socket_path.with_suffix(".serving")
    with exclusive_lock(lock, blocking=False, busy_message=f"{socket_path}: the platform"):
        # Whoever holds the lock is the only platform here: sockets that are still there are dead.
        for stale in (socket_path, *socket_path.parent.glob("rsi-*.sock")):
            stale.unlink(missing_ok=True)
        try:
            listener = listen_private(socket_path, backlog=64)
        except OSError as error:
            raise UnavailableError(
                f"{socket_path}: {error.strerror or error}",
                code="socket",
                hint="a Unix socket path holds at most 107 bytes; set XDG_RUNTIME_DIR to a short private directory",
            ) from error
        server = PlatformServer(hes, listener, socket_path, measure)
        try:
            yield server
        finally:
            server.close()
            socket_path.unlink(missing_ok=True)
