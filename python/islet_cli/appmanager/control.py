"""The control channel: a byte stream to the host on one of three transports, and its frames.

The realm connects, the host asks. On a virtio-serial port, which has no connections of its own, each new
start is marked with a preamble that no frame can begin with.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from islet_cli import framing
from islet_cli.appmanager.ports import find_port
from islet_cli.errors import OperationError, UnavailableError

if TYPE_CHECKING:
    import socket

PORT_NAME = "islet.ctl.0"
PREAMBLE = b"ISLET-REALM-HI\n\0"
HOST_CID = 2
CONNECT_LIMIT_S = 300.0
_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 8.0


class Stream(Protocol):
    """A connected byte stream."""

    def receive(self, count: int) -> bytes: ...

    def send(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class PortStream:
    """A virtio-serial port."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            path.chmod(0o600)
            self.send(PREAMBLE)
        except BaseException:
            os.close(self._descriptor)
            raise

    def receive(self, count: int) -> bytes:
        return os.read(self._descriptor, count)

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


class SocketStream:
    """A vsock or Unix socket."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def receive(self, count: int) -> bytes:
        return self._socket.recv(count)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def close(self) -> None:
        import socket

        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def opener(kind: str, *, vsock_port: int = 0, path: Path | None = None) -> Callable[[], Stream]:
    """A function that connects once over the transport `kind`: `vsock`, `virtio-serial` or `unix`."""

    def vsock() -> Stream:
        import socket

        endpoint = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        return _connect(endpoint, (HOST_CID, vsock_port))

    def unix() -> Stream:
        import socket

        return _connect(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), str(path))

    def port() -> Stream:
        return PortStream(find_port(PORT_NAME))

    return {"vsock": vsock, "unix": unix, "virtio-serial": port}[kind]


def _connect(endpoint: socket.socket, address: Any) -> Stream:
    try:
        endpoint.connect(address)
    except BaseException:
        endpoint.close()
        raise
    return SocketStream(endpoint)


def connect(open_once: Callable[[], Stream], *, limit_s: float = CONNECT_LIMIT_S) -> Channel:
    """Connect, trying again with growing delays.

    Raises:
        UnavailableError: Nothing answered within `limit_s` seconds.
    """
    deadline = time.monotonic() + limit_s
    delay = _FIRST_DELAY_S
    while True:
        try:
            return Channel(open_once())
        except (OSError, UnavailableError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            if time.monotonic() + delay > deadline:
                raise UnavailableError(f"no connection to the host: {reason}", code="no-host") from error
        time.sleep(delay)
        delay = min(delay * 2, _LONGEST_DELAY_S)


class ChannelClosedError(OperationError):
    """The host is gone."""

    default_code = "host-gone"


class Channel:
    """Frames over a stream. Sending is safe from any thread; one thread receives."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._sending = threading.Lock()
        self._closed = False

    def receive(self) -> Any:
        """The next message's JSON value.

        Raises:
            ChannelClosedError: The stream ended or broke.
            framing.FramingError: A prefix announces more than the limit; the stream is out of step.
            framing.BodyError: The body is not strict JSON; the stream is still in step.
        """
        header = self._exactly(framing.PREFIX.size)
        return framing.decode_body(self._exactly(framing.decode_length(header)))

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            try:
                part = self._stream.receive(min(count, 1 << 16))
            except OSError as error:
                raise ChannelClosedError(f"the host is gone: {error.strerror}") from error
            if not part:
                raise ChannelClosedError("the host is gone")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def send(self, value: Any) -> None:
        """Send one message.

        Raises:
            ChannelClosedError: The host is gone.
        """
        frame = framing.encode(value)
        with self._sending:
            if self._closed:
                raise ChannelClosedError("the host is gone")
            try:
                self._stream.send(frame)
            except OSError as error:
                raise ChannelClosedError(f"the host is gone: {error.strerror}") from error

    def close(self) -> None:
        """Close the stream; a thread that receives sees its end."""
        with self._sending:
            self._closed = True
            self._stream.close()
