"""Evidence inside RA-TLS certificates.

Source: ratls of the Islet project: extension 1.3.3.3.7 whose extnValue holds the CBOR token directly; the
certificate's own signature, names and dates carry no meaning.
"""

from __future__ import annotations

from collections.abc import Sequence

from islet_cli.attestation.challenge import realm_challenge
from islet_cli.attestation.cpak import Cpak
from islet_cli.attestation.errors import TokenError
from islet_cli.attestation.reference import ReferenceValues
from islet_cli.attestation.verify import Verdict, verify_token

EXTENSION_OID = "1.3.3.3.7"


def evidence_of(certificate: bytes) -> tuple[bytes, bytes]:
    """Take the token and the SubjectPublicKeyInfo (DER) out of a certificate.

    Raises:
        TokenError: `certificate` (unreadable), `no-token` (no such extension).
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        parsed = x509.load_der_x509_certificate(certificate)
        spki = parsed.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        extensions = list(parsed.extensions)
    except Exception as error:
        # The parser raises a handful of unrelated types (ValueError, UnsupportedAlgorithm, InvalidVersion,
        # DuplicateExtension, …) for hostile input; each means the same here.
        raise TokenError(f"the certificate cannot be read: {error}", code="certificate") from error
    for extension in extensions:
        if extension.oid.dotted_string == EXTENSION_OID and isinstance(extension.value, x509.UnrecognizedExtension):
            return extension.value.value, spki
    raise TokenError("the certificate carries no attestation token", code="no-token")


def verify_certificate(
    certificate: bytes,
    nonce: bytes,
    *,
    cpaks: Sequence[Cpak] = (),
    references: Sequence[ReferenceValues] | None = None,
    allow_emulated: bool = False,
    strict: bool = True,
    allow_default_cpak: bool = False,
) -> Verdict:
    """Verify the evidence in a TLS client's certificate against this connection's nonce.

    The TLS library must have checked already that the peer holds the certificate's key.

    Raises:
        TokenError: `certificate`, `no-token`, and those of `verify_token`.
    """
    token, spki = evidence_of(certificate)
    return verify_token(
        token,
        cpaks=cpaks,
        challenge=realm_challenge(nonce, spki),
        references=references,
        allow_emulated=allow_emulated,
        strict=strict,
        allow_default_cpak=allow_default_cpak,
    )
