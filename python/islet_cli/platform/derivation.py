"""Key derivations of the hardware enforced security (HES): seeds, CPAK, delegated key, virtual HUKs.

Source: Islet HES (host emulator and library): `generate_seed`, `ec_key`, labels and contexts of each key. All
integers are little-endian. Seed step: SP 800-108 counter mode with SHA-256, then AES-256-ECB.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from islet_cli.attestation.cose import P256, P384, Curve
from islet_cli.errors import InputError, InternalError
from islet_cli.platform.slots import Measurement, encode_measurements

SEED_SIZE = 32
_CPAK_LABEL = b"BL1_CPAK_SEED_DERIVATION"
_DAK_LABEL = b"BL1_DAK_SEED_DERIVATION"
_CPAK_LIFECYCLE = 3
_LE32 = struct.Struct("<I")

_ORDERS = {
    P256.name: 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    P384.name: int("ff" * 24 + "c7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16),
}


def hkdf(ikm: bytes, info: bytes, size: int, salt: bytes | None = None) -> bytes:
    """HKDF with SHA-256 (RFC 5869); no salt means 32 zero bytes."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), size, salt, info).derive(ikm)


def generate_seed(context: bytes, key: bytes, label: bytes) -> bytes:
    """Derive a 32-byte seed from a 32-byte device key.

    Raises:
        InputError: `key-size`.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    if len(key) != SEED_SIZE:
        raise InputError(f"a device key has {SEED_SIZE} bytes, not {len(key)}", code="key-size")
    digest = hashlib.sha256(_LE32.pack(1) + label + b"\0" + context + _LE32.pack(SEED_SIZE)).digest()
    # ECB over exactly two blocks is what the hardware's key ladder does; it is a derivation, not encryption of data.
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305
    return encryptor.update(digest) + encryptor.finalize()


def ec_scalar(curve: Curve, seed: bytes, info: bytes) -> int:
    """Derive a private scalar: HKDF output as a big-endian number, plus one.

    Raises:
        InputError: `curve`: neither P-256 nor P-384.
        InternalError: `kdf-range`: the number is beyond n - 2. The odds are 2^-190 for P-384; upstream would
            loop for ever.
    """
    order = _ORDERS.get(curve.name)
    if order is None:
        raise InputError(f"no delegated keys on {curve.name}", code="curve")
    number = int.from_bytes(hkdf(seed, info, curve.size), "big")
    if number > order - 2:
        raise InternalError("the derived number is no private key", code="kdf-range")
    return number + 1


def public_point(curve: Curve, scalar: int) -> bytes:
    """The uncompressed SEC1 point of a private scalar."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    kind = ec.SECP256R1() if curve is P256 else ec.SECP384R1()
    return ec.derive_private_key(scalar, kind).public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def cpak_scalar(bl_hash: bytes, guk: bytes) -> int:
    """The platform attestation key. Its lifecycle input is the constant 3, whatever the real lifecycle.

    Args:
        bl_hash: Signed hash of the second boot loader, 32, 48 or 64 bytes.
        guk: Group unique key, 32 bytes.
    """
    context = bl_hash + _LE32.pack(_CPAK_LIFECYCLE) + _LE32.pack(0)
    return ec_scalar(P384, generate_seed(context, guk, _CPAK_LABEL), b"")


def instance_id(public_sec1: bytes) -> bytes:
    """0x01 || SHA-256 of the CPAK's point, 33 bytes."""
    return b"\x01" + hashlib.sha256(public_sec1).digest()


def dak_scalar(
    bl_hash: bytes, guk: bytes, lifecycle: int, measurements: Sequence[Measurement], curve: Curve = P384
) -> int:
    """The delegated attestation key (the realm attestation key): any change in any slot changes it."""
    context = bl_hash + _LE32.pack(lifecycle) + _LE32.pack(0)
    return ec_scalar(curve, generate_seed(context, guk, _DAK_LABEL), encode_measurements(measurements))


def vhuk_a(huk: bytes, lifecycle: int, measurements: Sequence[Measurement]) -> bytes:
    """The virtual HUK that survives a firmware update by the same signers, 32 bytes."""
    authorities = b"".join(entry.signer_id + entry.sw_type.encode() for entry in measurements)
    return generate_seed(authorities + _LE32.pack(lifecycle), huk, b"VHUK_A")


def vhuk_m(huk: bytes, lifecycle: int, measurements: Sequence[Measurement]) -> bytes:
    """The virtual HUK that is bound to the exact firmware, 32 bytes."""
    return generate_seed(encode_measurements(measurements) + _LE32.pack(lifecycle), huk, b"VHUK_M")
