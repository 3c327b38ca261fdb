"""The signature chain of an image: root CA → vendor key → configuration bytes.

This module also runs inside the realm; it imports nothing but the standard library until a
signature is checked.

Source: the `com.samsung.islet.image.*` annotations of Islet's `ir-sign`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from islet_cli.errors import InputError, VerificationError
from islet_cli.keys.ecc import PublicKey, parse_public
from islet_cli.oci.descriptor import LABEL_APPLICATION, LABEL_SECURITY_VERSION
from islet_cli.oci.documents import parse_config

ANNOTATION_SIGNATURE = "com.samsung.islet.image.signature"
ANNOTATION_VENDOR = "com.samsung.islet.image.vendorpub"
ANNOTATION_CERTIFICATE = "com.samsung.islet.image.vendorpub.signature"
ANNOTATIONS = (ANNOTATION_SIGNATURE, ANNOTATION_VENDOR, ANNOTATION_CERTIFICATE)

MAX_SECURITY_VERSION = (1 << 64) - 1
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})*")
_DECIMAL = re.compile(r"[0-9]{1,20}")


@dataclass(frozen=True)
class VendorIdentity:
    """Who signed an image.

    Attributes:
        public_key: The vendor's SPKI bytes as the image carries them and the CA signed them.
        certificate: The CA's DER signature over `public_key`.
        key: The parsed key.
    """

    public_key: bytes
    certificate: bytes
    key: PublicKey

    @property
    def vendor_data(self) -> list[bytes]:
        """What upstream measures and derives keys from: key, then certificate."""
        return [self.public_key, self.certificate]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the SPKI with an uncompressed point, so that one key has one fingerprint."""
        return self.key.fingerprint


def verify_config(config: bytes, annotations: Mapping[str, str], ca: PublicKey) -> VendorIdentity:
    """Check the chain from the root CA to the configuration.

    Args:
        config: The exact bytes of the configuration blob.
        annotations: Those of the manifest itself.
        ca: The root CA's public key.

    Raises:
        VerificationError: `annotation_missing`, `annotation_encoding`, `vendor_signature_invalid`,
            `vendor_key_invalid` or `config_signature_invalid`: the first that applies, in this order.
    """
    return verify_chain(config, annotations, ca)


def verify_chain(
    message: bytes,
    annotations: Mapping[str, str],
    ca: PublicKey,
    *,
    names: tuple[str, str, str] = ANNOTATIONS,
    what: str = "configuration",
) -> VendorIdentity:
    """Check the chain from the root CA to any message; see `verify_config`.

    Args:
        names: The annotations with signature, vendor key, and the root CA's signature over that.
        what: Names the message in errors.
    """
    for name in names:
        if not isinstance(annotations.get(name), str):
            raise VerificationError(
                f"the image is not signed: annotation {name} is missing",
                code="annotation_missing",
                hint="sign it with: islet sign",
            )
    signature, vendor, certificate = (_decode_hex(name, annotations[name]) for name in names)
    _check(
        ca, certificate, vendor, "vendor_signature_invalid", "the root CA did not sign the key of the image's vendor"
    )
    try:
        key = parse_public(vendor, what="vendor key of the image")
        # The annotation holds DER; parse_public would take PEM as well.
        if vendor[:1] != b"\x30":
            raise InputError("vendor key of the image: not DER", code="key_invalid")
    except InputError as error:
        raise VerificationError(str(error), code="vendor_key_invalid") from error
    _check(key, signature, message, "config_signature_invalid", f"the vendor did not sign the image's {what}")
    return VendorIdentity(vendor, certificate, key)


def _decode_hex(name: str, text: str) -> bytes:
    # bytes.fromhex alone would also take white space.
    if _HEX.fullmatch(text) is None:
        raise VerificationError(f"annotation {name} is not hexadecimal", code="annotation_encoding")
    return bytes.fromhex(text)


def _check(key: PublicKey, signature: bytes, message: bytes, code: str, problem: str) -> None:
    try:
        key.verify(signature, message)
    except VerificationError as error:
        raise VerificationError(f"{problem}: {error}", code=code) from error


def application_name(config: bytes) -> str | None:
    """The signed label `io.islet.application`, or None.

    Raises:
        InputError: The configuration is malformed.
    """
    return parse_config(config).labels.get(LABEL_APPLICATION)


def require_application(config: bytes, name: str, *, compat: bool = False) -> None:
    """Require that the signed label names this application.

    Args:
        config: Configuration bytes whose signature was checked.
        name: The application (repository) name that was asked for.
        compat: Accept an image without the label, as upstream does.

    Raises:
        VerificationError: `name_mismatch`.
    """
    label = application_name(config)
    if label == name or (label is None and compat):
        return
    problem = f"has no label {LABEL_APPLICATION}" if label is None else f"is signed for {label!r}"
    raise VerificationError(
        f"application {name!r}: its image {problem}",
        code="name_mismatch",
        hint=f"sign it with: islet sign --app {name}",
    )


def security_version(config: bytes) -> int:
    """The signed label `io.islet.security-version`, 0 when absent.

    Raises:
        InputError: `config_invalid`: not a decimal integer below 2^64.
    """
    text = parse_config(config).labels.get(LABEL_SECURITY_VERSION)
    if text is None:
        return 0
    if _DECIMAL.fullmatch(text) is None or int(text) > MAX_SECURITY_VERSION:
        raise InputError(f"label {LABEL_SECURITY_VERSION}: {text[:40]!r} is no version", code="config_invalid")
    return int(text)


def require_not_revoked(vendor: VendorIdentity, config: bytes, deny: frozenset[str]) -> None:
    """Require that neither vendor nor configuration is on a deny list.

    Args:
        deny: Lower-case SHA-256 values of vendor SPKI bytes and of configuration blobs.

    Raises:
        VerificationError: `revoked`.
    """
    own = {
        vendor.fingerprint: "vendor",
        hashlib.sha256(vendor.public_key).hexdigest(): "vendor",
        hashlib.sha256(config).hexdigest(): "configuration",
    }
    for value, kind in own.items():
        if value in deny:
            raise VerificationError(f"the image's {kind} {value} is revoked", code="revoked")
