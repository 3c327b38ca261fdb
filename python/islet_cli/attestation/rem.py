"""Realm extensible measurements: the extension formula and what applications add. Runs inside realms.

Source: RMM specification, "Realm Extensible Measurement"; the app-manager of the Islet project
(64-byte chunks, all applications after installation, in order).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from islet_cli.errors import InputError

CHUNK_SIZE = 64
REM_COUNT = 4

_ALGORITHMS = {"sha256": "sha256", "sha-256": "sha256", "sha512": "sha512", "sha-512": "sha512"}


def _hash_name(algo: str) -> str:
    try:
        return _ALGORITHMS[algo]
    except KeyError:
        raise InputError(f"{algo!r} is not a realm measurement algorithm", code="hash-algo") from None


def hash_size(algo: str) -> int:
    """Bytes of a measurement under `algo` (`sha256`, `sha512`, also with a hyphen)."""
    return hashlib.new(_hash_name(algo)).digest_size


def extend(rem: bytes, data: bytes, algo: str) -> bytes:
    """Return H(old || data).

    Args:
        rem: The old value; its first hash-length bytes count, so that a 64-byte slot can be given.
        data: 1 to 64 bytes.
        algo: The realm's measurement algorithm.

    Raises:
        InputError: `size`: no data, or more than 64 bytes.
    """
    if not 1 <= len(data) <= CHUNK_SIZE:
        raise InputError(f"a measurement extension takes 1 to {CHUNK_SIZE} bytes, not {len(data)}", code="size")
    name = _hash_name(algo)
    size = hashlib.new(name).digest_size
    return hashlib.new(name, rem[:size] + data).digest()


def application_measurement(vendor_data: Iterable[bytes], image_hash: bytes) -> bytes:
    """What one application contributes.

    Args:
        vendor_data: Vendor public key and the CA's signature over it, as the image's annotations hold them.
        image_hash: SHA-384 of the image configuration.
    """
    return b"".join(vendor_data) + image_hash


def chunks(measurement: bytes) -> list[bytes]:
    """Cut one application's measurement into what is extended, 64 bytes at a time.

    Raises:
        InputError: `size`: it is empty.
    """
    if not measurement:
        raise InputError("an application's measurement is empty", code="size")
    return [measurement[at : at + CHUNK_SIZE] for at in range(0, len(measurement), CHUNK_SIZE)]


def predict(apps: Sequence[bytes], algo: str, *, index: int = 0) -> list[bytes]:
    """The four REMs of a realm after it provisioned `apps`.

    Args:
        apps: The `application_measurement` of each application, in the order of installation.
        algo: The realm's measurement algorithm.
        index: Which REM (0..3) the realm's configuration extends.

    Returns:
        REM0..REM3, hash length each.
    """
    rems = [bytes(hash_size(algo))] * REM_COUNT
    for app in apps:
        for chunk in chunks(app):
            rems[index] = extend(rems[index], chunk, algo)
    return rems
