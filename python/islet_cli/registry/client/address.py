"""Where a registry is and how it is reached."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from islet_cli.errors import InputError
from islet_cli.fsutil import read_file

DEFAULT_PORT = 1337
SOCKET_PREFIX = "unix:"

Mode = Literal["none", "tls", "ra-tls"]

TokenProvider = Callable[[bytes], bytes]
"""Returns the CCA token for a 64-byte realm challenge."""

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_ADDRESS_6 = re.compile(r"[0-9A-Fa-f:.]{2,45}")


@dataclass(frozen=True)
class TlsOptions:
    """How the transport is secured.

    Attributes:
        mode: `none` (plain HTTP), `tls`, or `ra-tls` (the client shows a CCA token).
        root_ca: PEM file with the root that signed the registry's certificate; needed unless the mode is `none`.
        token_provider: Needed in mode `ra-tls`, and only there. Never called by two threads at once.
    """

    mode: Mode = "none"
    root_ca: Path | None = None
    token_provider: TokenProvider | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("none", "tls", "ra-tls"):
            raise InputError(f"{self.mode!r} is no TLS mode", code="tls_config", hint="use none, tls or ra-tls")
        if (self.mode != "none") != (self.root_ca is not None):
            problem = "needs a root certificate" if self.root_ca is None else "takes no root certificate"
            raise InputError(f"TLS mode {self.mode} {problem}", code="tls_config")
        if (self.mode == "ra-tls") != (self.token_provider is not None):
            problem = "needs a source of attestation tokens" if self.token_provider is None else "shows no token"
            raise InputError(f"TLS mode {self.mode} {problem}", code="tls_config")


@dataclass(frozen=True)
class Credentials:
    """A user of a registry and the password, which no text of this object shows."""

    user: str
    password: str = field(repr=False)

    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def read_credentials(path: Path) -> Credentials:
    """Read a file with one line, `USER:PASSWORD`, that only its owner may read.

    Raises:
        InputError: `credentials_invalid`, `not-private`, or the file cannot be read.
    """
    data = read_file(path, limit=4096)
    if path.stat().st_mode & 0o077:
        raise InputError(f"{path}: others may read it", code="not-private", hint=f"run: chmod 600 {path}")
    user, colon, password = data.decode("utf-8", "replace").rstrip("\r\n").partition(":")
    if not user or not colon or not (user + password).isprintable():
        raise InputError(f"{path}: is not one line USER:PASSWORD", code="credentials_invalid")
    return Credentials(user, password)


@dataclass(frozen=True)
class Address:
    """Host and port. The host as given is also the TLS server name.

    Attributes:
        socket: A Unix socket that is connected to instead.
    """

    host: str
    port: int
    socket: Path | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether nothing that is sent there leaves this machine."""
        return self.socket is not None or self.host in ("localhost", "::1") or self.host.startswith("127.")

    def __str__(self) -> str:
        if self.socket is not None:
            return f"{SOCKET_PREFIX}{self.socket}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: str, mode: Mode) -> Address:
    """Read `HOST`, `HOST:PORT`, `[IPv6]:PORT` or `unix:/PATH`; a scheme in front must fit the mode.

    Raises:
        InputError: `address_invalid`.
    """
    if text.startswith(f"{SOCKET_PREFIX}/") and mode == "none" and text.isprintable():
        return Address("localhost", 80, Path(text.removeprefix(SOCKET_PREFIX)))
    scheme, found, rest = text.partition("://")
    rest = rest.rstrip("/") if found else text
    if found and scheme != ("http" if mode == "none" else "https"):
        raise InputError(f"{text!r}: the scheme does not fit TLS mode {mode}", code="address_invalid")
    match = re.fullmatch(r"(?:\[([^\]]*)\]|([^:\[\]]*))(?::([0-9]{1,5}))?", rest)
    bad = InputError(f"{text[:300]!r} is not the address of a registry", code="address_invalid", hint="use HOST:PORT")
    if match is None:
        raise bad
    host6, host, port = match.groups()
    if (_ADDRESS_6.fullmatch(host6) if host6 is not None else _HOST.fullmatch(host)) is None:
        raise bad
    number = int(port) if port is not None else DEFAULT_PORT
    if not 1 <= number <= 65535:
        raise bad
    return Address(host6 if host6 is not None else host, number)
