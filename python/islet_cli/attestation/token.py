"""CCA attestation tokens: the wrapper, the platform token, the realm token and their claims.

Reading checks structure alone; `attestation.verify` checks what a token is worth.

Source: Arm CCA token as the RMM specification and draft-ffm-rats-cca-token define it (tag 399); the rust-rsi
library of the Islet project for what exactly is refused, and in which order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from islet_cli.attestation import cbor, cose
from islet_cli.attestation.errors import TokenError

TOKEN_TAG = 399
PLATFORM_KEY, REALM_KEY = 44234, 44241
MAX_COMPONENTS = 32
REM_COUNT = 4

PLATFORM_PROFILE_1_0 = "tag:arm.com,2023:cca_platform#1.0.0"
PLATFORM_PROFILE_LEGACY = "http://arm.com/CCA-SSD/1.0.0"
REALM_PROFILE_1_0 = "tag:arm.com,2023:realm#1.0.0"

CHALLENGE, PROFILE = 10, 265
INSTANCE_ID, LIFECYCLE, IMPLEMENTATION_ID, COMPONENTS = 256, 2395, 2396, 2399
VERIFICATION_SERVICE, CONFIGURATION, PLATFORM_HASH = 2400, 2401, 2402
RPV, HASH_ALGO, REALM_PUBLIC_KEY, RIM, REMS, KEY_HASH = 44235, 44236, 44237, 44238, 44239, 44240

PLATFORM_CLAIMS: Mapping[int, tuple[str, type]] = {
    CHALLENGE: ("challenge", bytes),
    INSTANCE_ID: ("instance id", bytes),
    PROFILE: ("profile", str),
    LIFECYCLE: ("lifecycle", int),
    IMPLEMENTATION_ID: ("implementation id", bytes),
    VERIFICATION_SERVICE: ("verification service", str),
    CONFIGURATION: ("configuration", bytes),
    PLATFORM_HASH: ("hash algorithm", str),
}
REALM_CLAIMS: Mapping[int, tuple[str, type]] = {
    CHALLENGE: ("challenge", bytes),
    PROFILE: ("profile", str),
    RPV: ("personalization value", bytes),
    HASH_ALGO: ("measurement hash algorithm", str),
    REALM_PUBLIC_KEY: ("realm public key", bytes),
    RIM: ("RIM", bytes),
    KEY_HASH: ("key hash algorithm", str),
}
COMPONENT_CLAIMS: Mapping[int, tuple[str, type]] = {
    1: ("type", str),
    2: ("measurement", bytes),
    4: ("version", str),
    5: ("signer id", bytes),
    6: ("hash algorithm", str),
}
PLATFORM_MANDATORY = (
    CHALLENGE,
    INSTANCE_ID,
    PROFILE,
    LIFECYCLE,
    IMPLEMENTATION_ID,
    CONFIGURATION,
    PLATFORM_HASH,
)
REALM_MANDATORY = (CHALLENGE, RPV, HASH_ALGO, KEY_HASH, REALM_PUBLIC_KEY, RIM)


@dataclass(frozen=True)
class Part:
    """What platform and realm token have in common: the signed message and its claims."""

    message: cose.Sign1
    claims: Mapping[int, Any]

    def claim_bytes(self, key: int) -> bytes:
        """A byte-string claim; empty when it is absent."""
        value = self.claims.get(key, b"")
        assert isinstance(value, bytes)
        return value

    def claim_text(self, key: int) -> str | None:
        """A text claim, or None."""
        value = self.claims.get(key)
        assert value is None or isinstance(value, str)
        return value

    def _require(self, keys: tuple[int, ...], names: Mapping[int, tuple[str, type]], what: str) -> None:
        for key in keys:
            if key not in self.claims:
                raise TokenError(f"{what}: claim {key} ({names[key][0]}) is missing", code="missing-claim", claim=key)

    def _json(self) -> dict[str, Any]:
        assert self.message.payload is not None
        return {
            "claims": {str(key): _plain(value) for key, value in self.claims.items()},
            "alg": self.message.algorithm,
            "protected": self.message.protected.hex(),
            "signature": self.message.signature.hex(),
            "payload_sha256": hashlib.sha256(self.message.payload).hexdigest(),
        }


@dataclass(frozen=True)
class PlatformToken(Part):
    """The platform token: claims by key, and the software components in order."""

    components: tuple[Mapping[int, Any], ...]

    def require_claims(self) -> None:
        """Require every mandatory claim, and measurement and signer of every component.

        Raises:
            TokenError: `missing-claim`, with the detail `claim`.
        """
        self._require(PLATFORM_MANDATORY, PLATFORM_CLAIMS, "platform token")
        for index, component in enumerate(self.components):
            for key in (2, 5):
                if key not in component:
                    name = COMPONENT_CLAIMS[key][0]
                    raise TokenError(
                        f"platform token: software component {index} has no {name}", code="missing-claim", claim=key
                    )

    def to_json(self) -> dict[str, Any]:
        """Claims by key, byte strings in hex."""
        components = [{str(key): _plain(value) for key, value in part.items()} for part in self.components]
        return {**self._json(), "components": components}


@dataclass(frozen=True)
class RealmToken(Part):
    """The realm token: claims by key, and the four REMs."""

    rems: tuple[bytes, ...]

    def require_claims(self) -> None:
        """Require every mandatory claim.

        Raises:
            TokenError: `missing-claim`, with the detail `claim`.
        """
        self._require(REALM_MANDATORY, REALM_CLAIMS, "realm token")

    @property
    def rim(self) -> bytes:
        return self.claim_bytes(RIM)

    @property
    def challenge(self) -> bytes:
        return self.claim_bytes(CHALLENGE)

    @property
    def hash_algo(self) -> str | None:
        """`sha-256` or `sha-512`."""
        return self.claim_text(HASH_ALGO)

    def public_key(self, platform_profile: str | None) -> bytes:
        """The realm key as SEC1 point, from whichever form the profiles call for.

        Raises:
            TokenError: `cbor`, `cose` or `format` of a malformed COSE_Key. Raw SEC1 bytes are not checked here.
        """
        raw = self.claim_bytes(REALM_PUBLIC_KEY)
        own = self.claim_text(PROFILE)
        is_cose = own == REALM_PROFILE_1_0 or (own is None and platform_profile == PLATFORM_PROFILE_1_0)
        return cose.key_from_cose(raw, what="realm public key") if is_cose else raw


@dataclass(frozen=True)
class Token:
    """A CCA token. `trailing` tells whether bytes followed it or one of its parts."""

    platform: PlatformToken
    realm: RealmToken
    trailing: bool

    def to_json(self) -> dict[str, Any]:
        """Both parts, claims by key; `key_sec1` is null when the realm key cannot be read."""
        realm = {**self.realm._json(), "rems": [rem.hex() for rem in self.realm.rems]}
        try:
            realm["key_sec1"] = self.realm.public_key(self.platform.claim_text(PROFILE)).hex()
        except TokenError:
            realm["key_sec1"] = None
        return {"platform": self.platform.to_json(), "realm": realm}


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


@dataclass(frozen=True)
class Wrapper:
    """The two halves as byte strings."""

    platform: bytes
    realm: bytes
    trailing: bool


def parse_wrapper(data: bytes) -> Wrapper:
    """Open the outer map.

    Raises:
        TokenError: `cbor`, `format`, `tag`, `key`.
    """
    item, used = cbor.decode(data, what="token")
    if not isinstance(item, cbor.Tag):
        raise TokenError("token: not a tagged item", code="format")
    if item.number != TOKEN_TAG:
        known = " (a later revision, not supported)" if item.number == 907 else ""
        raise TokenError(f"token: tag {item.number}{known} is not that of a CCA token ({TOKEN_TAG})", code="tag")
    if not isinstance(item.value, cbor.Map) or len(item.value.entries) != 2:
        raise TokenError("token: not a map of two entries", code="format")
    for key, value in item.value.entries:
        if not _is_int(key) or not isinstance(value, bytes):
            raise TokenError("token: an entry is not (integer, byte string)", code="format")
    (first, platform), (second, realm) = item.value.entries
    if (first, second) != (PLATFORM_KEY, REALM_KEY):
        raise TokenError(f"token: keys {first}, {second} are not {PLATFORM_KEY}, {REALM_KEY}", code="key")
    return Wrapper(platform, realm, used != len(data))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _fits(value: Any, kind: type) -> bool:
    if kind is int:
        return _is_int(value) and -(2**63) <= value < 2**63
    return isinstance(value, kind)


def _claims(
    payload: bytes | None, known: Mapping[int, tuple[str, type]], list_key: int, what: str
) -> tuple[dict[int, Any], list[Any], bool]:
    """Split a payload into its known claims and its one array (components, or REMs)."""
    if payload is None:
        raise TokenError(f"{what}: it has no payload", code="format")
    item, used = cbor.decode(payload, what=f"{what} payload")
    if not isinstance(item, cbor.Map):
        raise TokenError(f"{what}: the payload is not a map", code="format")
    claims: dict[int, Any] = {}
    others: list[tuple[int, Any]] = []
    for key, value in item.entries:
        if not _is_int(key) or not 0 <= key < 2**32:
            raise TokenError(f"{what}: a claim key is not an integer of 32 bits", code="format")
        if key not in known:
            others.append((key, value))
        elif key in claims or not _fits(value, known[key][1]):
            raise TokenError(f"{what}: claim {key} ({known[key][0]}) is repeated or ill-typed", code="format")
        else:
            claims[key] = value
    if len(others) != 1 or not isinstance(others[0][1], list):
        raise TokenError(f"{what}: expected claim {list_key}, an array, and no unknown claims", code="format")
    if others[0][0] != list_key:
        raise TokenError(f"{what}: unknown claim {others[0][0]} in place of {list_key}", code="key")
    return claims, others[0][1], used != len(payload)


def _component(item: Any) -> dict[int, Any]:
    if not isinstance(item, cbor.Map):
        raise TokenError("platform token: a software component is not a map", code="format")
    component: dict[int, Any] = {}
    for key, value in item.entries:
        if not _is_int(key) or key not in COMPONENT_CLAIMS or key in component:
            raise TokenError("platform token: unknown or repeated claim of a software component", code="format")
        if not _fits(value, COMPONENT_CLAIMS[key][1]):
            raise TokenError(f"platform token: ill-typed claim {key} of a software component", code="format")
        component[key] = value
    return component


def parse_platform(data: bytes) -> tuple[PlatformToken, bool]:
    """Read a platform token; the second value tells whether bytes followed it.

    Raises:
        TokenError: `cbor`, `format`, `tag`, `cose`, `key`.
    """
    message = cose.parse_sign1(data, what="platform token")
    claims, items, trailing = _claims(message.payload, PLATFORM_CLAIMS, COMPONENTS, "platform token")
    if len(items) > MAX_COMPONENTS:
        raise TokenError(f"platform token: {len(items)} software components, at most {MAX_COMPONENTS}", code="format")
    components = tuple(_component(item) for item in items)
    return PlatformToken(message, claims, components), message.trailing or trailing


def parse_realm(data: bytes) -> tuple[RealmToken, bool]:
    """Read a realm token; the second value tells whether bytes followed it.

    Raises:
        TokenError: `cbor`, `format`, `tag`, `cose`, `key`.
    """
    message = cose.parse_sign1(data, what="realm token")
    claims, rems, trailing = _claims(message.payload, REALM_CLAIMS, REMS, "realm token")
    if len(rems) != REM_COUNT or not all(isinstance(rem, bytes) for rem in rems):
        raise TokenError(f"realm token: not exactly {REM_COUNT} extensible measurements", code="format")
    return RealmToken(message, claims, tuple(rems)), message.trailing or trailing


def parse_token(data: bytes) -> Token:
    """Read a whole token without looking at its signatures.

    Raises:
        TokenError: The first step that failed; see `parse_wrapper`, `parse_platform`, `parse_realm`.
    """
    wrapper = parse_wrapper(data)
    platform, platform_trailing = parse_platform(wrapper.platform)
    realm, realm_trailing = parse_realm(wrapper.realm)
    return Token(platform, realm, wrapper.trailing or platform_trailing or realm_trailing)
