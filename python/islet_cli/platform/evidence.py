"""Writing CCA tokens: platform token (HES), realm token (RMM), and the two together.

Signatures are deterministic, so tokens are reproducible.

Source: Islet HES (claim order of the platform token), TF-RMM and Islet RMM (claim orders of the realm token).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from islet_cli.attestation import token as claims
from islet_cli.attestation.cose import ES384, SIGN1_TAG, to_be_signed
from islet_cli.keys.ecc import PrivateKey
from islet_cli.platform.slots import Measurement, components

Order = Literal["tf-rmm", "islet"]

_TF_RMM_ORDER = (
    claims.CHALLENGE,
    claims.RPV,
    claims.REALM_PUBLIC_KEY,
    claims.HASH_ALGO,
    claims.KEY_HASH,
    claims.PROFILE,
    claims.RIM,
    claims.REMS,
)
_ISLET_ORDER = (
    claims.CHALLENGE,
    claims.PROFILE,
    claims.RPV,
    claims.RIM,
    claims.REMS,
    claims.HASH_ALGO,
    claims.REALM_PUBLIC_KEY,
    claims.KEY_HASH,
)


@dataclass(frozen=True)
class PlatformClaims:
    """What the platform token says.

    Attributes:
        challenge: Hash of the realm public key's claim bytes; 32, 48 or 64 bytes.
        instance_id: 33 bytes.
        profile: Left out when None.
        lifecycle: 0x3000..0x30ff is secured.
        implementation_id: 32 bytes.
        measurements: Software components, in slot order.
        verification_service: Left out when None.
        configuration: Free bytes.
        hash_algo: Name of the hash in `challenge`.
    """

    challenge: bytes
    instance_id: bytes
    profile: str | None
    lifecycle: int
    implementation_id: bytes
    measurements: Sequence[Measurement]
    verification_service: str | None
    configuration: bytes
    hash_algo: str

    def encode(self) -> bytes:
        """The payload, claims in the order of the Islet HES."""
        import cbor2

        members: dict[int, Any] = {
            claims.CHALLENGE: self.challenge,
            claims.INSTANCE_ID: self.instance_id,
            claims.PROFILE: self.profile,
            claims.LIFECYCLE: self.lifecycle,
            claims.IMPLEMENTATION_ID: self.implementation_id,
            claims.COMPONENTS: components(self.measurements),
            claims.VERIFICATION_SERVICE: self.verification_service,
            claims.CONFIGURATION: self.configuration,
            claims.PLATFORM_HASH: self.hash_algo,
        }
        return cbor2.dumps({key: value for key, value in members.items() if value is not None})


@dataclass(frozen=True)
class RealmClaims:
    """What the realm token says.

    Attributes:
        challenge: 64 bytes.
        profile: Left out when None.
        rpv: Realm personalization value, 64 bytes.
        rim: Hash length.
        rems: REM0..REM3, hash length each.
        hash_algo: `sha-256` or `sha-512`.
        public_key: The realm key as the profile wants it: SEC1 point, or COSE_Key.
        key_hash: Name of the hash by which the platform token vouches for `public_key`.
    """

    challenge: bytes
    profile: str | None
    rpv: bytes
    rim: bytes
    rems: Sequence[bytes]
    hash_algo: str
    public_key: bytes
    key_hash: str = "sha-256"

    def encode(self, order: Order = "tf-rmm") -> bytes:
        """The payload; `order` says which monitor's claim order to follow."""
        import cbor2

        members: dict[int, Any] = {
            claims.CHALLENGE: self.challenge,
            claims.PROFILE: self.profile,
            claims.RPV: self.rpv,
            claims.RIM: self.rim,
            claims.REMS: list(self.rems),
            claims.HASH_ALGO: self.hash_algo,
            claims.REALM_PUBLIC_KEY: self.public_key,
            claims.KEY_HASH: self.key_hash,
        }
        keys = _TF_RMM_ORDER if order == "tf-rmm" else _ISLET_ORDER
        return cbor2.dumps({key: members[key] for key in keys if members[key] is not None})


def sign(payload: bytes, key: PrivateKey) -> bytes:
    """A tagged COSE_Sign1 with ES384."""
    import cbor2

    protected = cbor2.dumps({1: ES384})
    signature = key.sign_raw(to_be_signed(protected, payload))
    return cbor2.dumps(cbor2.CBORTag(SIGN1_TAG, [protected, {}, payload, signature]))


def wrap(platform_token: bytes, realm_token: bytes) -> bytes:
    """The CCA token: tag 399, platform token first."""
    import cbor2

    return cbor2.dumps(
        cbor2.CBORTag(claims.TOKEN_TAG, {claims.PLATFORM_KEY: platform_token, claims.REALM_KEY: realm_token})
    )
