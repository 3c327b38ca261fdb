"""P-384 keys: SEC1, PKCS#8 and SPKI forms read strictly, ECDSA with SHA-384.

Signatures are deterministic (RFC 6979, no extra entropy, no low-s normalisation), so the same key
and message give the same bytes everywhere. The arithmetic is that of the `cryptography` package,
which is imported on first use because a realm starts without it.

Source: SEC 1 v2 section 2.3 and C.4; RFC 5915; RFC 5958; RFC 5480; RFC 6979.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from islet_cli.errors import InputError, UnavailableError, VerificationError
from islet_cli.keys import der, pem
from islet_cli.keys.der import DerError, Reader

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

CURVE = "secp384r1"
ORDER = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)
SCALAR_SIZE = 48
POINT_SIZE = 97
SPKI_SIZE = 120
RAW_SIGNATURE_SIZE = 96
MAX_KEY_FILE = 64 << 10

_OID_EC = bytes.fromhex("2a8648ce3d0201")
_OID_P384 = bytes.fromhex("2b81040022")
_ALGORITHM = der.encode(
    der.SEQUENCE, der.encode(der.OBJECT_IDENTIFIER, _OID_EC) + der.encode(der.OBJECT_IDENTIFIER, _OID_P384)
)


def _refuse(what: str, problem: str, reason: str = "format") -> NoReturn:
    """Raise `key_invalid`. `reason` is `curve` for another curve or key type, else `format`."""
    hint = (
        f"only ECDSA keys on {CURVE} (P-384) can be used"
        if reason == "curve"
        else "expected SEC1, PKCS#8 or SPKI, as PEM or DER, not encrypted"
    )
    raise InputError(f"{what}: not a usable key: {problem}", code="key_invalid", hint=hint, reason=reason)


@dataclass(frozen=True)
class PublicKey:
    """A point on P-384.

    Attributes:
        sec1: The uncompressed point, 97 bytes (0x04 || x || y).
    """

    sec1: bytes

    @classmethod
    def from_point(cls, point: bytes, *, what: str = "public key") -> PublicKey:
        """Make a key of a SEC1 point, compressed (49 bytes) or not (97 bytes).

        Raises:
            InputError: `key_invalid`: of another size or not on the curve.
        """
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        # Other encodings (infinity, hybrid) have no place in an SPKI of ours.
        if (len(point), point[:1]) not in ((97, b"\x04"), (49, b"\x02"), (49, b"\x03")):
            _refuse(what, "the public point has another form or size than P-384 points have")
        try:
            key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point)
        except ValueError:
            _refuse(what, "the public point is not on the curve")
        return cls(key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))

    @property
    def spki(self) -> bytes:
        """SubjectPublicKeyInfo, DER, 120 bytes."""
        return der.encode(der.SEQUENCE, _ALGORITHM + der.encode(der.BIT_STRING, b"\0" + self.sec1))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the SPKI, 64 hexadecimal digits."""
        return hashlib.sha256(self.spki).hexdigest()

    def pem(self) -> bytes:
        """The SPKI as PEM `PUBLIC KEY`."""
        return pem.encode("PUBLIC KEY", self.spki)

    def verify(self, signature: bytes, message: bytes) -> None:
        """Check a DER signature over `message`.

        Raises:
            VerificationError: `signature_invalid`: not strict DER, out of range, or not made by this key.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        decode_signature(signature)
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), self.sec1)
        try:
            key.verify(signature, message, ec.ECDSA(hashes.SHA384()))
        except InvalidSignature:
            raise VerificationError("the signature was not made by this key", code="signature_invalid") from None

    def verify_raw(self, signature: bytes, message: bytes) -> None:
        """Check a raw signature r || s, 48 bytes each, big-endian.

        Raises:
            VerificationError: `signature_invalid`.
        """
        if len(signature) != RAW_SIGNATURE_SIZE:
            raise VerificationError(f"the signature is not {RAW_SIGNATURE_SIZE} bytes long", code="signature_invalid")
        r, s = (int.from_bytes(half, "big") for half in (signature[:SCALAR_SIZE], signature[SCALAR_SIZE:]))
        self.verify(encode_signature(r, s), message)


@dataclass(frozen=True)
class PrivateKey:
    """A P-384 private key. Its scalar appears in no representation or error."""

    scalar: int = field(repr=False)
    public: PublicKey

    def sign(self, message: bytes) -> bytes:
        """Sign deterministically; returns the DER `ECDSA-Sig-Value`, at most 104 bytes.

        Raises:
            UnavailableError: The installed OpenSSL cannot sign deterministically.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            algorithm = ec.ECDSA(hashes.SHA384(), deterministic_signing=True)
        except (UnsupportedAlgorithm, TypeError) as error:
            raise UnavailableError(
                "the installed cryptography package cannot make deterministic signatures",
                code="no-deterministic-ecdsa",
                hint="install cryptography 43 or later from its wheels (OpenSSL 3.2 or later)",
            ) from error
        return _derive(self.scalar).sign(message, algorithm)

    def sign_raw(self, message: bytes) -> bytes:
        """Like `sign`, as r || s, 96 bytes."""
        r, s = decode_signature(self.sign(message))
        return r.to_bytes(SCALAR_SIZE, "big") + s.to_bytes(SCALAR_SIZE, "big")

    def sec1_der(self) -> bytes:
        """SEC1 `ECPrivateKey` with curve and public point, DER, 167 bytes."""
        content = (
            der.encode_unsigned(1)
            + der.encode(der.OCTET_STRING, self.scalar.to_bytes(SCALAR_SIZE, "big"))
            + der.encode(0xA0, der.encode(der.OBJECT_IDENTIFIER, _OID_P384))
            + der.encode(0xA1, der.encode(der.BIT_STRING, b"\0" + self.public.sec1))
        )
        return der.encode(der.SEQUENCE, content)

    def pem(self) -> bytes:
        """SEC1 as PEM `EC PRIVATE KEY`, the one form that upstream's metadata tool reads."""
        return pem.encode("EC PRIVATE KEY", self.sec1_der())


def generate() -> PrivateKey:
    """Make a new key from the operating system's randomness."""
    from cryptography.hazmat.primitives.asymmetric import ec

    return private_from_scalar(ec.generate_private_key(ec.SECP384R1()).private_numbers().private_value)


def private_from_scalar(scalar: int, *, what: str = "private key") -> PrivateKey:
    """Make a key of its scalar.

    Raises:
        InputError: `key_invalid`: not 0 < scalar < n.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if not 0 < scalar < ORDER:
        _refuse(what, "the private scalar is out of range")
    point = _derive(scalar).public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return PrivateKey(scalar, PublicKey(point))


def _derive(scalar: int) -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.derive_private_key(scalar, ec.SECP384R1())


def decode_signature(signature: bytes) -> tuple[int, int]:
    """Read a strict DER `ECDSA-Sig-Value`.

    Raises:
        VerificationError: `signature_invalid`: not minimal DER, trailing bytes, or not 0 < r, s < n.
    """
    try:
        reader = Reader(der.whole(signature, der.SEQUENCE))
        r, s = reader.unsigned(), reader.unsigned()
        reader.finish()
    except DerError as error:
        raise VerificationError(f"the signature is not strict DER: {error}", code="signature_invalid") from None
    if not (0 < r < ORDER and 0 < s < ORDER):
        raise VerificationError("the signature's numbers are out of range", code="signature_invalid")
    return r, s


def encode_signature(r: int, s: int) -> bytes:
    """Encode r and s as DER `ECDSA-Sig-Value`."""
    return der.encode(der.SEQUENCE, der.encode_unsigned(r) + der.encode_unsigned(s))


def parse_private(data: bytes, *, what: str = "private key") -> PrivateKey:
    """Read a private key: SEC1 or PKCS#8, PEM (an `EC PARAMETERS` block may stand first) or DER.

    Args:
        data: The file's content.
        what: Names the input in errors.

    Raises:
        InputError: `key_invalid`, with the detail `reason` `curve` (another curve or key type) or `format`.
    """
    try:
        if not pem.looks_like_pem(data):
            return _private_der(data, what)
        label, body = pem.decode_single(data)
        if label == "EC PRIVATE KEY":
            return _sec1(der.whole(body, der.SEQUENCE), what)
        if label == "PRIVATE KEY":
            return _pkcs8(der.whole(body, der.SEQUENCE), what)
        reason = "curve" if label in ("RSA PRIVATE KEY", "DSA PRIVATE KEY") else "format"
        _refuse(what, f"it holds a PEM block {label!r}", reason)
    except DerError as error:
        _refuse(what, str(error))


def _private_der(data: bytes, what: str) -> PrivateKey:
    """Tell SEC1 (version 1, then an octet string) from PKCS#8 (version 0 or 1, then a sequence)."""
    content = der.whole(data, der.SEQUENCE)
    reader = Reader(content)
    reader.unsigned()
    if reader.peek() == der.SEQUENCE:
        return _pkcs8(content, what)
    if reader.peek() == der.INTEGER:
        _refuse(what, "it looks like an RSA key", "curve")
    return _sec1(content, what)


def _pkcs8(content: bytes, what: str) -> PrivateKey:
    reader = Reader(content)
    if reader.unsigned() not in (0, 1):
        _refuse(what, "unknown PKCS#8 version")
    _require_p384(reader.element(der.SEQUENCE), what)
    inner = reader.element(der.OCTET_STRING)
    if reader.peek() == 0xA0:
        reader.element(0xA0)
    outer_point: bytes | None = None
    if reader.peek() == 0x81:
        bits = reader.element(0x81)
        outer_point = bits[1:]
    reader.finish()
    key = _sec1(der.whole(inner, der.SEQUENCE), what, curve_known=True)
    if outer_point is not None:
        _require_point(outer_point, key, what)
    return key


def _sec1(content: bytes, what: str, *, curve_known: bool = False) -> PrivateKey:
    reader = Reader(content)
    if reader.unsigned() != 1:
        _refuse(what, "unknown ECPrivateKey version")
    scalar = reader.element(der.OCTET_STRING)
    if reader.peek() == 0xA0:
        _require_curve(reader.element(0xA0), what)
    elif not curve_known:
        _refuse(what, "the curve is missing")
    point: bytes | None = None
    if reader.peek() == 0xA1:
        wrapped = Reader(reader.element(0xA1))
        point = wrapped.bit_string()
        wrapped.finish()
    reader.finish()
    if len(scalar) != SCALAR_SIZE:
        _refuse(what, f"the private scalar is not {SCALAR_SIZE} bytes long")
    key = private_from_scalar(int.from_bytes(scalar, "big"), what=what)
    if point is not None:
        _require_point(point, key, what)
    return key


def _require_point(point: bytes, key: PrivateKey, what: str) -> None:
    if PublicKey.from_point(point, what=what) != key.public:
        _refuse(what, "its public point does not belong to its private scalar")


def _require_curve(parameters: bytes, what: str) -> None:
    """Require that ECParameters (RFC 5480) names secp384r1."""
    reader = Reader(parameters)
    if reader.peek() != der.OBJECT_IDENTIFIER or reader.element(der.OBJECT_IDENTIFIER) != _OID_P384:
        _refuse(what, f"its curve is not {CURVE}", "curve")
    reader.finish()


def _require_p384(algorithm: bytes, what: str) -> None:
    """Require that AlgorithmIdentifier content says id-ecPublicKey on secp384r1."""
    reader = Reader(algorithm)
    if reader.element(der.OBJECT_IDENTIFIER) != _OID_EC:
        _refuse(what, "it is not an elliptic-curve key", "curve")
    _require_curve(algorithm[len(der.encode(der.OBJECT_IDENTIFIER, _OID_EC)) :], what)


def parse_public(data: bytes, *, what: str = "public key") -> PublicKey:
    """Read a public key: SPKI as DER or PEM `PUBLIC KEY`; the point may be compressed.

    Raises:
        InputError: `key_invalid`, with the detail `reason` `curve` or `format`.
    """
    try:
        if pem.looks_like_pem(data):
            label, data = pem.decode_single(data)
            if label != "PUBLIC KEY":
                _refuse(what, f"it holds a PEM block {label!r}")
        reader = Reader(der.whole(data, der.SEQUENCE))
        _require_p384(reader.element(der.SEQUENCE), what)
        point = reader.bit_string()
        reader.finish()
    except DerError as error:
        _refuse(what, str(error))
    return PublicKey.from_point(point, what=what)


def load_private(path: Path) -> PrivateKey:
    """Read a private key file (see `parse_private`)."""
    from islet_cli.fsutil import read_file

    return parse_private(read_file(path, limit=MAX_KEY_FILE), what=str(path))


def load_public(path: Path) -> PublicKey:
    """Read a public key file (see `parse_public`)."""
    from islet_cli.fsutil import read_file

    return parse_public(read_file(path, limit=MAX_KEY_FILE), what=str(path))
