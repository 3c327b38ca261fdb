"""Challenges: what a realm binds into its token, and how an RA-TLS nonce travels. Runs inside realms.

Source: rust-rsi and ratls of the Islet project; RFC 8446 section 4.2.4 (certificate_authorities).
"""

from __future__ import annotations

import base64
import hashlib

from islet_cli.errors import InputError

CHALLENGE_SIZE = 64
NONCE_SIZE = 64

_HOST_LABEL = b"islet/host-token/v1"

HOST_TOKEN_MARKER = hashlib.sha256(_HOST_LABEL).digest()
"""Extended into REM3 before a realm answers a raw challenge of its host; 32 bytes."""


def realm_challenge(nonce: bytes, spki: bytes) -> bytes:
    """The challenge of an RA-TLS client: SHA-512(nonce || SPKI), 64 bytes.

    Args:
        nonce: The decoded nonce of the server, 64 bytes from every server of ours.
        spki: DER SubjectPublicKeyInfo of the client's TLS key.
    """
    return hashlib.sha512(nonce + spki).digest()


def host_challenge(challenge: bytes) -> bytes:
    """The challenge that a realm uses when its host asked for a token with `challenge`.

    A host that could choose the realm challenge freely could pass the hash of its own TLS key and enter a
    registry as the realm. The label and the zero byte keep the two uses apart.

    Args:
        challenge: 64 bytes chosen by the host.

    Raises:
        InputError: `challenge-length`.
    """
    if len(challenge) != CHALLENGE_SIZE:
        raise InputError(
            f"the challenge has {len(challenge)} bytes, a challenge has {CHALLENGE_SIZE}", code="challenge-length"
        )
    return hashlib.sha512(_HOST_LABEL + b"\0" + challenge).digest()


def nonce_to_name(nonce: bytes) -> bytes:
    """The "distinguished name" that carries a nonce in a CertificateRequest: padded Base64, not DER."""
    return base64.b64encode(nonce)


def certificate_authorities_body(nonce: bytes) -> bytes:
    """Body of the certificate_authorities extension with exactly the one name of `nonce`."""
    name = nonce_to_name(nonce)
    return (len(name) + 2).to_bytes(2, "big") + len(name).to_bytes(2, "big") + name
