"""Verify CCA tokens: the one evaluator that decides, and whose refusals are the explanations.

Two modes. *Strict*, the default, demands a pinned platform key and everything that the upstream tools never
look at. *Compatible* gives exactly the upstream verdict and is there to compare with it.

Source: Arm CCA token (RMM specification, attestation); realm-verifier and rust-rsi of the Islet project for
the order of the steps; docs/threat-model.md for what strict adds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from islet_cli.attestation import cose, reference
from islet_cli.attestation import token as tokens
from islet_cli.attestation.cpak import Cpak
from islet_cli.attestation.errors import TokenError
from islet_cli.attestation.reference import ReferenceValues
from islet_cli.attestation.token import PlatformToken, RealmToken, Token

EMULATED_IMPLEMENTATION_ID = b"islet-emulated-platform-not-cca!"
EMULATED_WARNING = "emulated: no protection from the host"

LIFECYCLE_SECURED, LIFECYCLE_DEBUG = 0x30, 0x40
CHALLENGE_SIZE = RPV_SIZE = 64
_HASHES = {"sha-256": "sha256", "sha-384": "sha384", "sha-512": "sha512"}


@dataclass(frozen=True)
class Verdict:
    """An accepted token. A refused one raises.

    Attributes:
        token: The token.
        emulated: The evidence protects nothing from the host; it was allowed explicitly.
        cpak: The pinned key that the platform signature was checked with; None in compatible mode without keys.
        reference: The reference values that the realm meets; None when none were asked for.
        challenge_checked: Whether freshness was checked.
    """

    token: Token
    emulated: bool
    cpak: Cpak | None
    reference: ReferenceValues | None
    challenge_checked: bool

    def to_json(self) -> dict[str, Any]:
        """The verdict and the measurements, byte strings in hex."""
        platform, realm = self.token.platform, self.token.realm
        out: dict[str, Any] = {"accepted": True, "emulated": self.emulated}
        if self.emulated:
            out["warning"] = EMULATED_WARNING
        out |= {
            "platform_key": self.cpak.source if self.cpak else None,
            "instance_id": platform.claim_bytes(tokens.INSTANCE_ID).hex(),
            "implementation_id": platform.claim_bytes(tokens.IMPLEMENTATION_ID).hex(),
            "lifecycle": platform.claims.get(tokens.LIFECYCLE),
            "reference": self.reference.name if self.reference else None,
            "reference_kind": self.reference.kind if self.reference else None,
            "rim": realm.rim.hex(),
            "rems": [rem.hex() for rem in realm.rems],
            "hash_algo": realm.hash_algo,
            "personalization": realm.claim_bytes(tokens.RPV).hex(),
            "challenge": realm.challenge.hex(),
            "challenge_checked": self.challenge_checked,
        }
        return out


def is_emulated(platform: PlatformToken) -> bool:
    """Whether the evidence itself says that it comes from the emulated platform."""
    return platform.claims.get(tokens.IMPLEMENTATION_ID) == EMULATED_IMPLEMENTATION_ID


def verify_token(
    token: bytes,
    *,
    cpaks: Sequence[Cpak] = (),
    challenge: bytes | None = None,
    references: Sequence[ReferenceValues] | None = None,
    allow_emulated: bool = False,
    strict: bool = True,
    allow_default_cpak: bool = False,
) -> Verdict:
    """Verify a CCA token; the first check that fails decides.

    Args:
        token: The encoded token (tag 399).
        cpaks: Pinned platform keys; the one that the token's instance id names is used.
        challenge: The realm challenge that is expected, 64 bytes; None skips the check of freshness.
        references: Reference values, one of which must be met. None skips the comparison, an empty sequence
            refuses.
        allow_emulated: Accept evidence of platforms that were pinned as emulated.
        strict: False gives the upstream tools' verdict (no key needed, few claims looked at).
        allow_default_cpak: For tests: take upstream's example key.

    Raises:
        TokenError: Its `code` names the check: `cbor`, `format`, `tag`, `key`, `cose`, `no-cpak`,
            `cpak-unknown`, `default-cpak`, `algorithm`, `signature`, `binding`, `trailing`, `missing-claim`,
            `emulated`, `emulated-pin`, `instance-id`, `lifecycle`, `challenge-length`, `challenge`,
            `measurement-length`, `rpv-length`, `no-reference`, `rim`, `rems`, `hash-algo`.
    """
    wrapper = tokens.parse_wrapper(token)
    platform, platform_trailing = tokens.parse_platform(wrapper.platform)
    cpak = _choose_cpak(platform, cpaks, strict=strict, allow_default=allow_default_cpak)
    if cpak is not None:
        _check_platform_signature(platform, cpak)
    realm, realm_trailing = tokens.parse_realm(wrapper.realm)
    _check_realm_signature(realm, platform)
    _check_binding(realm, platform)
    parsed = Token(platform, realm, wrapper.trailing or platform_trailing or realm_trailing)
    emulated = is_emulated(platform) or (cpak is not None and cpak.kind == "emulated")
    if strict:
        assert cpak is not None
        _check_strictly(parsed, cpak, challenge, emulated=emulated, allow_emulated=allow_emulated)
    elif challenge is not None:
        realm.require_claims()
        if realm.challenge != challenge:
            raise _challenge_error(realm)
    met = None if references is None else reference.match(realm, references)
    return Verdict(parsed, emulated, cpak, met, challenge is not None)


def verify_platform(platform_token: bytes, cpak: Cpak | None) -> PlatformToken:
    """Verify a platform token that stands alone, as the upstream tools do (no strict rules).

    Raises:
        TokenError: See `verify_token`.
    """
    platform, _trailing = tokens.parse_platform(platform_token)
    if cpak is not None:
        _check_platform_signature(platform, cpak)
    return platform


def strict_failures(
    token: Token, cpak: Cpak, *, challenge: bytes | None = None, lifecycles: Sequence[int] = (LIFECYCLE_SECURED,)
) -> list[TokenError]:
    """Every rule of the strict policy that a token breaks, in the order in which they are checked.

    Args:
        token: A token whose signatures and binding hold.
        cpak: The key that its platform signature was checked with.
        challenge: The expected realm challenge, or None.
        lifecycles: Accepted values of lifecycle >> 8.
    """
    platform, realm = token.platform, token.realm
    failures = []
    instance = platform.claim_bytes(tokens.INSTANCE_ID)
    if instance != cpak.instance_id:
        failures.append(TokenError(f"instance id {instance.hex()} is not that of {cpak.source}", code="instance-id"))
    lifecycle = platform.claims.get(tokens.LIFECYCLE)
    if lifecycle is None or lifecycle >> 8 not in lifecycles:
        shown = "missing" if lifecycle is None else f"{lifecycle:#x}"
        failures.append(TokenError(f"the platform's lifecycle {shown} is not a secured one", code="lifecycle"))
    if len(realm.challenge) != CHALLENGE_SIZE:
        failures.append(
            TokenError(f"the challenge has {len(realm.challenge)} bytes, not {CHALLENGE_SIZE}", code="challenge-length")
        )
    if challenge is not None and realm.challenge != challenge:
        failures.append(_challenge_error(realm))
    size = reference.HASH_SIZES.get(realm.hash_algo or "")
    if size is None or any(len(value) != size for value in (realm.rim, *realm.rems)):
        failures.append(
            TokenError(f"a measurement has another length than {realm.hash_algo} gives", code="measurement-length")
        )
    if len(realm.claim_bytes(tokens.RPV)) != RPV_SIZE:
        failures.append(TokenError(f"the personalization value has not {RPV_SIZE} bytes", code="rpv-length"))
    return failures


def _challenge_error(realm: RealmToken) -> TokenError:
    return TokenError(
        f"challenge {realm.challenge.hex()[:16]}… is not the expected one: old evidence, or made for someone else",
        code="challenge",
    )


def _choose_cpak(platform: PlatformToken, cpaks: Sequence[Cpak], *, strict: bool, allow_default: bool) -> Cpak | None:
    if not cpaks:
        if strict:
            raise TokenError(
                "no platform key is pinned, so the evidence proves nothing", code="no-cpak", hint="pass --cpak FILE"
            )
        return None
    instance = platform.claim_bytes(tokens.INSTANCE_ID)
    chosen = next((cpak for cpak in cpaks if cpak.instance_id == instance), None)
    if chosen is None:
        if len(cpaks) > 1:
            raise TokenError(f"instance id {instance.hex()} is that of none of the pinned keys", code="cpak-unknown")
        chosen = cpaks[0]
    if chosen.is_default and not allow_default:
        raise TokenError(
            f"{chosen.source}: the example key of the upstream emulators; its secret is public", code="default-cpak"
        )
    return chosen


def _check_platform_signature(platform: PlatformToken, cpak: Cpak) -> None:
    cose.verify(platform.message, cpak.sec1, what=f"platform token under {cpak.source}")


def _check_realm_signature(realm: RealmToken, platform: PlatformToken) -> None:
    key = realm.public_key(platform.claim_text(tokens.PROFILE))
    cose.verify(realm.message, key, what="realm token")


def _check_binding(realm: RealmToken, platform: PlatformToken) -> None:
    """The platform vouches for the realm key: its challenge is the hash of the claim's bytes as received."""
    name = _HASHES.get(realm.claim_text(tokens.KEY_HASH) or "")
    if name is None:
        raise TokenError("realm token: the key hash algorithm is missing or unknown", code="format")
    expected = hashlib.new(name, realm.claim_bytes(tokens.REALM_PUBLIC_KEY)).digest()
    if platform.claim_bytes(tokens.CHALLENGE) != expected:
        raise TokenError("the platform token vouches for another realm key", code="binding")


def _check_strictly(token: Token, cpak: Cpak, challenge: bytes | None, *, emulated: bool, allow_emulated: bool) -> None:
    if token.trailing:
        raise TokenError("bytes follow the token or one of its parts", code="trailing")
    token.platform.require_claims()
    token.realm.require_claims()
    if is_emulated(token.platform) and cpak.kind != "emulated":
        raise TokenError(
            f"the evidence is that of an emulated platform, but {cpak.source} is pinned as a real one",
            code="emulated-pin",
            hint="pin it with kind emulated, or not at all",
        )
    if emulated and not allow_emulated:
        raise TokenError(
            "the evidence is emulated: it gives no protection from the host, and was not allowed",
            code="emulated",
            hint="for development only: --allow-emulated, or allow_emulated = true in islet.toml",
        )
    lifecycles = (LIFECYCLE_SECURED, LIFECYCLE_DEBUG) if emulated else (LIFECYCLE_SECURED,)
    failures = strict_failures(token, cpak, challenge=challenge, lifecycles=lifecycles)
    if failures:
        raise failures[0]
