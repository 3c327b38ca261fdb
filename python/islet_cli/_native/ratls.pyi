"""RA-TLS: a blocking client stream and a listener that appraises clients and proxies to a Unix socket."""

from collections.abc import Callable
from os import PathLike
from typing import Literal, final

@final
class Client:
    """A client configuration; one RA-TLS key for all its connections.

    Raises:
        InputError: `tls_config`: `root_ca` holds no usable PEM certificate.
    """

    def __new__(cls, root_ca: bytes, token_provider: Callable[[bytes], bytes] | None = None) -> Client: ...
    def connect(self, host: str, port: int, connect_timeout: float, timeout: float) -> ClientStream:
        """Connect and shake hands; `host` is also the TLS server name.

        Raises:
            OSError: The transport failed (`TimeoutError` after `timeout` seconds without a byte).
            VerificationError: `server_certificate`, `ratls_challenge`, `ratls_not_requested`, `ratls_refused`,
                `tls_protocol`.
            Exception: Whatever the token provider raised.
        """

@final
class ClientStream:
    """A connected TLS stream."""

    def recv(self, size: int) -> bytes:
        """Return 1 to `size` bytes; empty at the orderly end. The server's refusal shows here (`ratls_refused`)."""

    def sendall(self, data: bytes) -> None: ...
    def settimeout(self, seconds: float) -> None: ...
    def export_keying_material(self, label: bytes, context: bytes | None, length: int) -> bytes:
        """RFC 8446 7.5: bytes that only the two ends of this connection can derive."""

    def close(self) -> None: ...

@final
class Server:
    """A listener that serves on threads of its own from construction until `stop`.

    Args:
        listen: `HOST:PORT`; port 0 takes any.
        backend: Unix socket that plain HTTP is forwarded to.
        store: The directory below which the backend may name files in `X-Islet-Sendfile`.
        record: `record(peer, "admitted" | "refused", code, message or identity)`, called from other threads.
        certificate: PEM chain; needed unless the mode is `none`, like `key` (PEM).
        appraise: `appraise(token, nonce, spki) -> identity JSON`; an exception refuses, its `code` and text are
            recorded. Called from other threads, several at a time.

    Raises:
        OSError: The address cannot be bound, the store does not exist.
        InputError: `tls_config`: certificate or key are not usable.
    """

    def __new__(
        cls,
        listen: str,
        mode: Literal["none", "tls", "ra-tls"],
        *,
        backend: str | PathLike[str],
        store: str | PathLike[str],
        record: Callable[[str, str, str, str], None],
        certificate: bytes | None = None,
        key: bytes | None = None,
        appraise: Callable[[bytes, bytes, bytes], str] | None = None,
        max_connections: int = 512,
        handshake_timeout: float = 60.0,
        idle_timeout: float = 60.0,
    ) -> Server: ...
    @property
    def address(self) -> str:
        """The bound `HOST:PORT`."""

    def stop(self, grace: float = 2.0) -> None:
        """Close every connection; wait at most `grace` seconds for callbacks that still run."""

def certificate_evidence(certificate: bytes) -> tuple[bytes, bytes]:
    """Return token and DER SubjectPublicKeyInfo of a DER client certificate.

    Raises:
        VerificationError: `certificate`, `no-token`.
    """

def nonce_name(nonce: bytes) -> bytes:
    """The 88 bytes that carry a 64-byte nonce as the distinguished name of a certificate request."""
