"""Where a registry is and how it is reached."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from islet_cli.errors import InputError

DEFAULT_PORT = 1337

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
class Address:
    """Host and port. The host as given is also the TLS server name."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: str, mode: Mode) -> Address:
    """Read `HOST`, `HOST:PORT` or `[IPv6]:PORT`; a scheme in front must fit the mode.

    Raises:
        InputError: `address_invalid`.
    """
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
