"""Tokens made to measure for tests: any claim changed, any key, properly signed."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any

from islet_cli.attestation.cose import key_to_cose
from islet_cli.attestation.cpak import Cpak, Kind
from islet_cli.attestation.token import PLATFORM_PROFILE_1_0, REALM_PROFILE_1_0
from islet_cli.attestation.verify import EMULATED_IMPLEMENTATION_ID
from islet_cli.keys import ecc
from islet_cli.platform import evidence
from islet_cli.platform.slots import Measurement

REAL_IMPLEMENTATION_ID = b"a platform made of real silicon."
CHALLENGE = bytes(range(64))
RIM = hashlib.sha256(b"rim").digest()


@dataclass
class Factory:
    """A platform and a realm. Change the members of `platform` and `realm`, then take `token()`."""

    cpak: ecc.PrivateKey = field(default_factory=lambda: ecc.private_from_scalar(0x1234567))
    rak: ecc.PrivateKey = field(default_factory=lambda: ecc.private_from_scalar(0x7654321))
    platform: dict[str, Any] = field(default_factory=dict)
    realm: dict[str, Any] = field(default_factory=dict)

    def pin(self, kind: Kind = "real", source: str = "cpak.bin") -> Cpak:
        return Cpak(self.cpak.public.sec1, kind, source)

    def emulated(self) -> Factory:
        """The same as the emulated platform makes it."""
        changes = {"implementation_id": EMULATED_IMPLEMENTATION_ID, "lifecycle": 0x4000}
        return dataclasses.replace(self, platform=self.platform | changes)

    def platform_claims(self) -> evidence.PlatformClaims:
        values: dict[str, Any] = {
            "challenge": hashlib.sha256(key_to_cose(self.rak.public.sec1)).digest(),
            "instance_id": self.pin().instance_id,
            "profile": PLATFORM_PROFILE_1_0,
            "lifecycle": 0x3000,
            "implementation_id": REAL_IMPLEMENTATION_ID,
            "measurements": [Measurement("BL", "1", "sha-256", bytes(32), bytes(32))],
            "verification_service": None,
            "configuration": b"\0",
            "hash_algo": "sha-256",
        }
        return evidence.PlatformClaims(**(values | self.platform))

    def realm_claims(self) -> evidence.RealmClaims:
        values: dict[str, Any] = {
            "challenge": CHALLENGE,
            "profile": REALM_PROFILE_1_0,
            "rpv": bytes(64),
            "rim": RIM,
            "rems": [bytes(32)] * 4,
            "hash_algo": "sha-256",
            "public_key": key_to_cose(self.rak.public.sec1),
        }
        return evidence.RealmClaims(**(values | self.realm))

    def token(self) -> bytes:
        platform = evidence.sign(self.platform_claims().encode(), self.cpak)
        return evidence.wrap(platform, evidence.sign(self.realm_claims().encode(), self.rak))
