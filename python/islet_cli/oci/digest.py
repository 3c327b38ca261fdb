"""Content digests.

Source: OCI image-spec 1.1, descriptor.md, "Digests"; only the two registered algorithms, lower case.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from islet_cli.errors import InputError

if TYPE_CHECKING:
    from hashlib import _Hash

_GRAMMAR = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


class Digest(str):
    """A digest such as `sha256:…`, known to be well formed. It is a plain string to everybody else."""

    __slots__ = ()

    @property
    def algorithm(self) -> str:
        """`sha256` or `sha512`."""
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        """The hexadecimal part."""
        return self.partition(":")[2]

    def hasher(self) -> _Hash:
        """A fresh hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def matches(self, data: bytes) -> bool:
        """Whether `data` has this digest."""
        return digest_of(data, self.algorithm) == self


def parse_digest(text: object, *, what: str = "digest") -> Digest:
    """Read a digest.

    Raises:
        InputError: `digest_invalid`.
    """
    if not isinstance(text, str) or _GRAMMAR.fullmatch(text) is None:
        raise InputError(
            f"{what}: {str(text)[:160]!r} is not a digest",
            code="digest_invalid",
            hint="sha256: and 64, or sha512: and 128 lower-case hexadecimal digits",
        )
    return Digest(text)


def digest_of(data: bytes, algorithm: str = "sha256") -> Digest:
    """The digest of `data`."""
    return Digest(f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")
