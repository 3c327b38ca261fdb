"""Keys of an application's two partitions, derived from the realm sealing key and never stored.

Two families stand side by side. The v2 derivation (the default) separates every job by its own label and
gives 64-byte keys. The compatible one reproduces the upstream app-manager byte for byte.

All keys are returned as `bytearray`, so that the holder can `wipe` them.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Literal

IMAGE_KEY_SIZE = 64
DATA_KEY_SIZE = 64
RECORD_KEY_SIZE = 48
COMPAT_KEY_SIZE = 32

_IMAGE_LABEL = b"islet/v2/image\0"
_DATA_LABEL = b"islet/v2/data\0"
_RECORD_LABEL = b"islet/v2/record\0"

_COMPAT_LABEL = b"App manager label"
_COMPAT_SALT = bytes.fromhex("8a3bda84cdbc4b862eddd8327a08e27eb6c8f0209676ff90d886862369bf874c")

Mode = Literal["hkdf", "dummy"]


def wipe(secret: bytearray | None) -> None:
    """Overwrite a secret with zeros. Copies that the interpreter made are beyond reach."""
    if secret is not None:
        secret[:] = bytes(len(secret))


def _hkdf(ikm: bytes | bytearray, info: bytes, size: int, salt: bytes | None = None) -> bytearray:
    """HKDF with SHA-256 (RFC 5869); no salt means 32 zero bytes."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return bytearray(HKDF(SHA256(), size, salt, info).derive(bytes(ikm)))


def image_key(ikm: bytes | bytearray, name: str) -> bytearray:
    """The 64-byte dm-crypt key of the image partition of application `name`."""
    return _hkdf(ikm, _IMAGE_LABEL + name.encode(), IMAGE_KEY_SIZE)


def record_key(ikm: bytes | bytearray, name: str) -> bytearray:
    """The 48-byte key that authenticates the record of the image partition."""
    return _hkdf(ikm, _RECORD_LABEL + name.encode(), RECORD_KEY_SIZE)


def data_key(
    ikm: bytes | bytearray,
    name: str,
    vendor_spki: bytes,
    security_version: int,
    image_config: bytes | None = None,
) -> bytearray:
    """The 64-byte dm-crypt key of the data partition.

    Args:
        ikm: The realm sealing key.
        name: The application's name.
        vendor_spki: The vendor's public key, SubjectPublicKeyInfo DER.
        security_version: The signed label `io.islet.security-version`, 0..2^64-1.
        image_config: The exact configuration bytes when the sealing flags have Rim, else None.
    """
    info = _DATA_LABEL + hashlib.sha384(vendor_spki).digest() + name.encode() + b"\0"
    info += struct.pack("<Q", security_version)
    if image_config is not None:
        info += hashlib.sha384(image_config).digest()
    return _hkdf(ikm, info, DATA_KEY_SIZE)


def v2_keys(
    ikm: bytes | bytearray,
    name: str,
    vendor_spki: bytes,
    security_version: int,
    image_config: bytes | None = None,
) -> tuple[bytearray, bytearray, bytearray]:
    """Return (image key 64 bytes, data key 64 bytes, record key 48 bytes); see the functions of each."""
    return (
        image_key(ikm, name),
        data_key(ikm, name, vendor_spki, security_version, image_config),
        record_key(ikm, name),
    )


def compat_image_key(mode: Mode, ikm: bytes | bytearray) -> bytearray:
    """Upstream's 32-byte image key, the same for every application of the realm."""
    if mode == "dummy":
        return bytearray(hashlib.sha256(bytes(ikm) + _COMPAT_LABEL).digest())
    return _hkdf(ikm, _COMPAT_LABEL, COMPAT_KEY_SIZE)


def compat_keys(
    mode: Mode,
    ikm: bytes | bytearray,
    name: str,
    vendor_data: Sequence[bytes],
    image_hash: bytes,
    use_image_hash: bool,
) -> tuple[bytearray, bytearray, bytearray]:
    """Upstream's derivation.

    Args:
        mode: `hkdf`, or `dummy` (plain hashes; for tests only).
        ikm: The realm sealing key, or the configured stub.
        name: The application's name.
        vendor_data: Vendor public key and the CA's signature over it, as the annotations hold them.
        image_hash: SHA-384 of the image configuration.
        use_image_hash: True when the sealing flags have Rim; `dummy` never mixes it in.

    Returns:
        (image key, application sealing key, data key), 32 bytes each.
    """
    vendor = b"".join(vendor_data)
    if mode == "dummy":
        app_slk = bytearray(hashlib.sha256(bytes(ikm) + vendor).digest())
        return compat_image_key(mode, ikm), app_slk, bytearray(hashlib.sha256(bytes(app_slk) + name.encode()).digest())
    info = vendor + image_hash if use_image_hash else vendor
    app_slk = _hkdf(ikm, info, COMPAT_KEY_SIZE, _COMPAT_SALT)
    return compat_image_key(mode, ikm), app_slk, _hkdf(app_slk, name.encode(), COMPAT_KEY_SIZE)
