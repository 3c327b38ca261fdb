"""What the host may select, and what an image must be, by the measured policy.

Every refusal has a code of its own, which stands first in the text that the host sees.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from islet_cli.appmanager.config import Config, Launcher, Policy
from islet_cli.appmanager.messages import ApplicationInfo
from islet_cli.errors import VerificationError
from islet_cli.oci.names import is_repository, is_tag

MAX_APPLICATIONS = 64
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_ADDRESS = re.compile(
    r"(?:(?P<scheme>[a-z]+)://)?(?P<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?/?"
)


class PolicyError(VerificationError):
    """The measured policy does not allow it; `code` says which rule."""

    default_code = "policy"


@dataclass(frozen=True)
class Selection:
    """One application that the policy lets the host select.

    Attributes:
        info: What the host asked for.
        registry: `HOST[:PORT]` without scheme.
        min_security_version: The lowest that the policy's list takes.
        vendor: The vendor that the list demands, SHA-256 of its key, or None.
    """

    info: ApplicationInfo
    registry: str
    min_security_version: int = 0
    vendor: str | None = None


def select(config: Config, applications: Sequence[ApplicationInfo]) -> list[Selection]:
    """Check a ProvisionInfo; the result is in the order of installation and measurement.

    Raises:
        PolicyError: Codes `too-many-applications`, `duplicate-id`, `duplicate-name`, `duplicate-partition`,
            `name-invalid`, `version-invalid`, `registry-invalid`, `registry-scheme`, `registry-not-allowed`,
            `name-not-allowed`.
    """
    if len(applications) > MAX_APPLICATIONS:
        raise PolicyError(f"{len(applications)} applications, at most {MAX_APPLICATIONS}", code="too-many-applications")
    _distinct([one.id for one in applications], "duplicate-id", "application id")
    _distinct([one.name for one in applications], "duplicate-name", "name")
    partitions = [guid for one in applications for guid in (one.image_part_uuid, one.data_part_uuid)]
    _distinct(partitions, "duplicate-partition", "partition")
    selected = [_check(config, one) for one in applications]
    order = {rule.name: position for position, rule in enumerate(config.policy.applications)}
    return sorted(selected, key=lambda one: order.get(one.info.name, 0))


def _distinct(values: list[str], code: str, what: str) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise PolicyError(f"{what} {value[:80]!r} stands twice", code=code)
        seen.add(value)


def _check(config: Config, info: ApplicationInfo) -> Selection:
    if not is_repository(info.name):
        raise PolicyError(f"{info.name[:80]!r} is not an application name", code="name-invalid")
    if not is_tag(info.version) and _DIGEST.fullmatch(info.version) is None:
        raise PolicyError(f"{info.name}: {info.version[:80]!r} is neither tag nor digest", code="version-invalid")
    registry = _registry(config.policy, config.launcher, info)
    if not config.policy.applications:
        return Selection(info, registry)
    rule = config.policy.rule_of(info.name)
    if rule is None:
        raise PolicyError(f"{info.name}: not in the policy's list of applications", code="name-not-allowed")
    return Selection(info, registry, rule.min_security_version, rule.vendor)


def _registry(policy: Policy, launcher: Launcher, info: ApplicationInfo) -> str:
    match = _ADDRESS.fullmatch(info.image_registry)
    if match is None or (match["port"] and not 1 <= int(match["port"]) <= 65535):
        raise PolicyError(f"{info.name}: {info.image_registry[:80]!r} is not a registry", code="registry-invalid")
    secure = launcher.kind in ("tls", "ra-tls")
    if match["scheme"] not in (None, "https" if secure else "http"):
        raise PolicyError(
            f"{info.name}: {match['scheme']} is not how this image reaches registries", code="registry-scheme"
        )
    address = match["host"].lower() + (f":{int(match['port'])}" if match["port"] else "")
    if policy.registries and address not in policy.registries:
        raise PolicyError(f"{info.name}: registry {address} is not in the policy's list", code="registry-not-allowed")
    return address


def check_image(policy: Policy, selection: Selection, vendor_fingerprint: str, security_version: int) -> None:
    """Check the signer and security version of a verified image.

    Raises:
        PolicyError: `vendor-not-allowed` or `security-version-too-low`.
    """
    name = selection.info.name
    if policy.vendors and vendor_fingerprint not in policy.vendors:
        raise PolicyError(f"{name}: vendor {vendor_fingerprint} is not in the policy's list", code="vendor-not-allowed")
    if selection.vendor is not None and vendor_fingerprint != selection.vendor:
        raise PolicyError(
            f"{name}: vendor {vendor_fingerprint} is not the one that the policy names for it",
            code="vendor-not-allowed",
        )
    if security_version < selection.min_security_version:
        raise PolicyError(
            f"{name}: security version {security_version} is below the policy's {selection.min_security_version}",
            code="security-version-too-low",
        )


def check_same_vendor(vendors: Sequence[tuple[str, bytes]]) -> None:
    """Require that every application has the same vendor key. CA signatures over it may differ.

    Args:
        vendors: (application name, vendor public key) of each.

    Raises:
        PolicyError: `different-vendors`.
    """
    for name, key in vendors[1:]:
        if key != vendors[0][1]:
            raise PolicyError(f"different vendors: {vendors[0][0]} and {name}", code="different-vendors")
