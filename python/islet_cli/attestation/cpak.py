"""Pinned platform attestation keys (CPAK)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from islet_cli.errors import InputError
from islet_cli.fsutil import read_file

Kind = Literal["real", "emulated"]

SEC1_SIZE = 97
DEFAULT_CPAK_SHA256 = "1be9c336d7a70b661382934a260192351ac61d24e20d882f494abee87f8a1e98"
"""SHA-256 of the SEC1 form of the key that upstream's emulators derive from published secrets."""


@dataclass(frozen=True)
class Cpak:
    """A platform attestation key that its holder trusts.

    Attributes:
        sec1: Uncompressed P-384 point, 97 bytes.
        kind: `emulated` when the platform behind it protects nothing.
        source: Where it was pinned, for messages.
    """

    sec1: bytes
    kind: Kind = "real"
    source: str = "platform key"

    @cached_property
    def instance_id(self) -> bytes:
        """0x01 || SHA-256(sec1), 33 bytes."""
        return b"\x01" + hashlib.sha256(self.sec1).digest()

    @property
    def is_default(self) -> bool:
        """Whether it is upstream's example key, whose private half anyone can compute."""
        return hashlib.sha256(self.sec1).hexdigest() == DEFAULT_CPAK_SHA256


def parse_cpak(data: bytes, kind: Kind = "real", *, what: str = "platform key") -> Cpak:
    """Read a key: 97 bytes of SEC1, or SPKI as PEM or DER.

    Raises:
        InputError: `key_invalid`.
    """
    from islet_cli.keys import ecc

    is_point = len(data) == SEC1_SIZE and data[:1] == b"\x04"
    key = ecc.PublicKey.from_point(data, what=what) if is_point else ecc.parse_public(data, what=what)
    return Cpak(key.sec1, kind, what)


def load_cpak(path: Path, kind: Kind = "real", *, allow_default: bool = False) -> Cpak:
    """Read a pinned key from a file.

    Args:
        path: See `parse_cpak` for the forms.
        kind: What the operator says the platform is.
        allow_default: For tests: take upstream's public example key.

    Raises:
        InputError: Missing or unreadable file, `key_invalid`, `default-cpak`.
    """
    cpak = parse_cpak(read_file(path, limit=64 << 10), kind, what=str(path))
    if cpak.is_default and not allow_default:
        raise InputError(
            f"{path}: the example platform key of the upstream emulators; its secret is public",
            code="default-cpak",
            hint="pin the platform key of your own machine",
        )
    return cpak


def parse_pin(text: str) -> tuple[Kind, Path]:
    """Read a command-line pin: `FILE`, or `emulated:FILE`."""
    kind, separator, rest = text.partition(":")
    if separator and kind in ("real", "emulated") and rest:
        return ("emulated" if kind == "emulated" else "real"), Path(rest)
    return "real", Path(text)
