"""COSE_Sign1 and COSE_Key, as far as CCA tokens use them.

Source: RFC 9052 sections 4.2, 4.4 and 7; RFC 9053 sections 2.1 and 7.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from islet_cli.attestation import cbor
from islet_cli.attestation.errors import TokenError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

SIGN1_TAG = 18
ES256, ES384, ES512 = -7, -35, -36


@dataclass(frozen=True)
class Curve:
    """An elliptic curve as COSE sees it; `size` is that of a coordinate in bytes."""

    name: str
    cose: int
    size: int
    algorithm: int


P256 = Curve("secp256r1", 1, 32, ES256)
P384 = Curve("secp384r1", 2, 48, ES384)
P521 = Curve("secp521r1", 3, 66, ES512)
CURVES = (P256, P384, P521)


@dataclass(frozen=True)
class Sign1:
    """A COSE_Sign1 message.

    Attributes:
        protected: The protected header's bytes as received.
        algorithm: Label 1 of the protected header when it is an integer, else None.
        payload: The payload's bytes as received; None for a detached one.
        signature: r || s.
        trailing: Whether bytes followed the message.
    """

    protected: bytes
    algorithm: int | None
    payload: bytes | None
    signature: bytes
    trailing: bool


def parse_sign1(data: bytes, *, what: str) -> Sign1:
    """Read a tagged COSE_Sign1.

    Raises:
        TokenError: `cbor`, `format` (no tag), `tag` (another one), `cose` (not such a message).
    """
    item, used = cbor.decode(data, what=what)
    if not isinstance(item, cbor.Tag):
        raise TokenError(f"{what}: not a tagged item", code="format")
    if item.number != SIGN1_TAG:
        raise TokenError(f"{what}: tag {item.number} is not COSE_Sign1 ({SIGN1_TAG})", code="tag")
    array = item.value
    if not isinstance(array, list) or len(array) != 4:
        raise TokenError(f"{what}: COSE_Sign1 is not an array of four", code="cose")
    protected, unprotected, payload, signature = array
    if (
        not isinstance(protected, bytes)
        or not isinstance(unprotected, cbor.Map)
        or not (payload is None or isinstance(payload, bytes))
        or not isinstance(signature, bytes)
    ):
        raise TokenError(f"{what}: a member of COSE_Sign1 has the wrong type", code="cose")
    return Sign1(protected, _algorithm(protected, what), payload, signature, used != len(data))


def _algorithm(protected: bytes, what: str) -> int | None:
    if not protected:
        return None
    try:
        header, used = cbor.decode(protected, what=what)
    except TokenError as error:
        raise TokenError(f"{what}: unreadable protected header", code="cose") from error
    if not isinstance(header, cbor.Map) or used != len(protected):
        raise TokenError(f"{what}: the protected header is not a map", code="cose")
    labels = [label for label, _value in header.entries]
    if not all(_is_int(label) or isinstance(label, str) for label in labels) or len(set(labels)) != len(labels):
        raise TokenError(f"{what}: ill-typed or repeated label in the protected header", code="cose")
    value = dict(header.entries).get(1)
    return value if _is_int(value) else None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def to_be_signed(protected: bytes, payload: bytes) -> bytes:
    """The Sig_structure `["Signature1", protected, h'', payload]`."""
    import cbor2

    return cbor2.dumps(["Signature1", protected, b"", payload])


def verify(message: Sign1, public_key: bytes, *, what: str) -> None:
    """Check the signature of `message`.

    Args:
        message: With an attached payload.
        public_key: SEC1 uncompressed point of the curve that belongs to the algorithm.
        what: Names the message in errors.

    Raises:
        TokenError: `algorithm` (none, or not ES256, ES384, ES512); `signature` (anything else).
    """
    curve = next((curve for curve in CURVES if curve.algorithm == message.algorithm), None)
    if curve is None:
        named = "names no algorithm" if message.algorithm is None else f"names algorithm {message.algorithm}"
        raise TokenError(f"{what}: its header {named}; ES256, ES384 and ES512 are known", code="algorithm")
    assert message.payload is not None
    if not _holds(curve, public_key, message.signature, to_be_signed(message.protected, message.payload)):
        raise TokenError(f"{what}: its signature does not hold", code="signature")


def _holds(curve: Curve, public_key: bytes, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    if len(public_key) != 1 + 2 * curve.size or public_key[0] != 4 or len(signature) != 2 * curve.size:
        return False
    r, s = (int.from_bytes(half, "big") for half in (signature[: curve.size], signature[curve.size :]))
    digest = {ES256: hashes.SHA256(), ES384: hashes.SHA384(), ES512: hashes.SHA512()}[curve.algorithm]
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(_curve(curve), public_key)
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(digest))
    except (ValueError, InvalidSignature):
        return False
    return True


def _curve(curve: Curve) -> ec.EllipticCurve:
    from cryptography.hazmat.primitives.asymmetric import ec

    if curve is P256:
        return ec.SECP256R1()
    return ec.SECP384R1() if curve is P384 else ec.SECP521R1()


def key_to_cose(sec1: bytes) -> bytes:
    """Encode an uncompressed SEC1 point as COSE_Key: kty, crv, x, y in this order.

    Raises:
        TokenError: `format`: not an uncompressed point of P-256, P-384 or P-521.
    """
    import cbor2

    curve = next((curve for curve in CURVES if len(sec1) == 1 + 2 * curve.size), None)
    if curve is None or sec1[0] != 4:
        raise TokenError("not an uncompressed point of P-256, P-384 or P-521", code="format")
    return cbor2.dumps({1: 2, -1: curve.cose, -2: sec1[1 : 1 + curve.size], -3: sec1[1 + curve.size :]})


def key_from_cose(data: bytes, *, what: str = "COSE_Key") -> bytes:
    """Decode a COSE_Key of type EC2 to an uncompressed SEC1 point. Further labels are ignored.

    Raises:
        TokenError: `cbor`; `cose` (not a map, a repeated label, no key type); `format` (another key type or
            curve, a coordinate that is missing, no byte string (the compressed form) or of the wrong length).
    """
    item, used = cbor.decode(data, what=what)
    if not isinstance(item, cbor.Map):
        raise TokenError(f"{what}: not a map", code="cose")
    if used != len(data):
        raise TokenError(f"{what}: bytes after the key", code="cbor")
    labels = [label for label, _value in item.entries]
    if not all(_is_int(label) or isinstance(label, str) for label in labels) or len(set(labels)) != len(labels):
        raise TokenError(f"{what}: ill-typed or repeated label", code="cose")
    members = dict(item.entries)
    if 1 not in members:
        raise TokenError(f"{what}: no key type", code="cose")
    curve = next((curve for curve in CURVES if _is_int(members.get(-1)) and members[-1] == curve.cose), None)
    if not _is_int(members[1]) or members[1] != 2 or curve is None:
        raise TokenError(f"{what}: not an EC2 key of P-256, P-384 or P-521", code="format")
    x, y = members.get(-2), members.get(-3)
    if not isinstance(x, bytes) or not isinstance(y, bytes) or (len(x), len(y)) != (curve.size, curve.size):
        raise TokenError(f"{what}: a coordinate is missing or has the wrong form", code="format")
    return b"\x04" + x + y
