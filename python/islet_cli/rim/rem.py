"""Predicting realm extensible measurements: given values, and what the app manager adds for signed images.

Source: RMM specification, RSI_MEASUREMENT_EXTEND; the app manager extends once for each application,
in the order of installation (docs/protocols.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from islet_cli.attestation.rem import application_measurement, chunks, extend, hash_size
from islet_cli.errors import InputError


@dataclass(frozen=True)
class Image:
    """A signed image: layout directory and tag (None: the only one)."""

    layout: Path
    tag: str | None

    @classmethod
    def parse(cls, text: str) -> Image:
        """Read `LAYOUT[:TAG]`; a path that exists as it is has no tag."""
        path, colon, tag = text.rpartition(":")
        return cls(Path(text), None) if not colon or Path(text).exists() else cls(Path(path), tag)


@dataclass(frozen=True)
class Extension:
    """One extension: why, the value, and the REM after it."""

    what: str
    value: bytes
    rem: bytes


@dataclass(frozen=True)
class Prediction:
    """All extensions in order."""

    algorithm: str
    start: bytes
    extensions: tuple[Extension, ...]

    @property
    def rem(self) -> bytes:
        """The REM after all of them."""
        return self.extensions[-1].rem if self.extensions else self.start

    @property
    def text(self) -> str:
        """For people; the REM stands last on a line of its own."""
        lines = [
            f"{item.what:<30} {item.value.hex()[:32]}{'…' if len(item.value) > 16 else ''}" for item in self.extensions
        ]
        return "\n".join([*lines, f"REM: {self.rem.hex()}"])

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        steps = [{"what": item.what, "value": item.value.hex(), "rem": item.rem.hex()} for item in self.extensions]
        return {"rem": self.rem.hex(), "hash_algo": self.algorithm, "from": self.start.hex(), "extensions": steps}


def predict(
    values: Sequence[str], images: Sequence[Image], *, start: str | None, algorithm: str, ca_pub: Path | None
) -> Prediction:
    """Extend a REM by given values, then by signed images.

    Args:
        values: Hex, 1 to 64 bytes each.
        images: In the order of installation; they are verified.
        start: The REM before, hex; None for zeroes.
        algorithm: `sha256` or `sha512`.
        ca_pub: The root CA that the images are verified against.

    Raises:
        InputError: A value is no hex or has another size; an image is malformed.
        VerificationError: An image's signatures or digests are wrong.
    """
    size = hash_size(algorithm)
    rem = first = bytes(size) if start is None else _hex("--from", start)
    if len(rem) != size:
        raise InputError(f"--from: {len(rem)} bytes; {algorithm} has {size}", code="size")
    out = []
    for what, value in [*_values(values), *_of_images(images, ca_pub)]:
        rem = extend(rem, value, algorithm)
        out.append(Extension(what, value, rem))
    return Prediction(algorithm, first, tuple(out))


def _values(texts: Sequence[str]) -> list[tuple[str, bytes]]:
    return [(f"value {number}", _hex(f"value {number}", text)) for number, text in enumerate(texts, start=1)]


def _of_images(images: Sequence[Image], ca_pub: Path | None) -> list[tuple[str, bytes]]:
    if not images:
        return []
    from islet_cli.keys.ecc import load_public
    from islet_cli.oci.layout import read_index
    from islet_cli.oci.reference import default_reference
    from islet_cli.signing.image import verify_image

    if ca_pub is None:
        raise InputError("--app: the root CA's public key is needed", code="usage", hint="add --ca-pub FILE")
    authority = load_public(ca_pub)
    out = []
    for image in images:
        reference = image.tag or default_reference(image.layout, read_index(image.layout)[0])
        verified = verify_image(image.layout, reference, authority)
        measurement = application_measurement(verified.vendor.vendor_data, hashlib.sha384(verified.config).digest())
        pieces = chunks(measurement)
        name = verified.application or image.layout.name
        out += [(f"{name} ({number}/{len(pieces)})", piece) for number, piece in enumerate(pieces, start=1)]
    return out


def _hex(what: str, text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise InputError(f"{what}: not hexadecimal", code="size") from error
