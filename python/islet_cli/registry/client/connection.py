"""HTTP connections over plain sockets and over the native TLS stream.

Importing this module loads `http.client`; the client does so at its first request.
"""

from __future__ import annotations

import http.client
import io
import socket
from typing import TYPE_CHECKING, Any

from islet_cli.errors import IsletError
from islet_cli.registry.client.address import Address

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from islet_cli._native.ratls import Client, ClientStream

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0

_HINTS = {
    "ratls_refused": "the registry wrote the reason down; there, run: islet registry log",
    "ratls_not_requested": "is the registry running with --tls ra-tls?",
    "ratls_challenge": "is the registry running with --tls ra-tls?",
    "server_certificate": "the certificate must name this host and be signed by the given root",
    "tls_protocol": "does the registry speak TLS on this port?",
}


class _TlsSocket:
    """As much of a socket as `http.client` uses, over a native stream.

    Like a socket it stays open until every file made of it is closed too, because a response is read
    after its connection object has let go of it.
    """

    def __init__(self, stream: ClientStream) -> None:
        self.stream = stream
        self._users = 1

    def sendall(self, data: bytes) -> None:
        self.stream.sendall(bytes(data))

    def makefile(self, _mode: str = "rb", _buffering: int | None = None) -> io.BufferedReader:
        self._users += 1
        return io.BufferedReader(_Raw(self), 64 << 10)

    def close(self) -> None:
        self._users -= 1
        if self._users == 0:
            self.stream.close()


class _Raw(io.RawIOBase):
    def __init__(self, owner: _TlsSocket) -> None:
        self._owner = owner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        data = self._owner.stream.recv(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._owner.close()


class Connection(http.client.HTTPConnection):
    """One HTTP/1.1 connection to a registry.

    Args:
        address: Where to connect.
        tls: The native client configuration, None for plain HTTP.
    """

    def __init__(self, address: Address, tls: Client | None) -> None:
        super().__init__(address.host, address.port)
        self._tls = tls
        self._address = address

    def connect(self) -> None:
        """Connect and, with TLS, shake hands.

        Raises:
            OSError: The transport failed.
            IsletError: The handshake was refused by either side; the hint says where to look.
        """
        if self._address.socket is not None:
            local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            local.settimeout(READ_TIMEOUT_S)
            local.connect(str(self._address.socket))
            self.sock = local
            return
        if self._tls is None:
            plain = socket.create_connection((self.host, self.port), CONNECT_TIMEOUT_S)
            plain.settimeout(READ_TIMEOUT_S)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sock = plain
            return
        try:
            stream = self._tls.connect(self.host, self.port, CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
        except IsletError as error:
            raise explain(error, self._address) from None
        tls_socket: Any = _TlsSocket(stream)
        self.sock = tls_socket


def explain(error: IsletError, address: Address) -> IsletError:
    """Name the registry in an error of the TLS layer and say how to mend it; other errors pass unchanged."""
    hint = _HINTS.get(error.code)
    if hint is None:
        return error
    if "CertificateRequired" in error.message:
        hint = "this registry admits attested realms only (ra-tls)"
    return type(error)(f"{address}: {error.message}", code=error.code, hint=hint)
