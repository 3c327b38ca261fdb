"""What to do with an application: install what was fetched, start what is installed, or refuse.

Pure decisions, shared by both forms of the image partition. Version data counts only when it comes from
signed bytes: the configuration's `created` and its label `io.islet.security-version`.

Source: OCI image-spec 1.1, config.md, `created`; the order of the cases is that of `decide`.
"""

from __future__ import annotations

import calendar
import enum
import re
from dataclasses import dataclass
from typing import Literal

from islet_cli.errors import IsletError, UnavailableError, VerificationError

_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)
_NEVER = (-(1 << 62), 0)


class Action(enum.Enum):
    """The decision, where it is no refusal."""

    INSTALL = "install"
    LAUNCH_INSTALLED = "launch_installed"
    LAUNCH_OFFLINE = "launch_offline"


@dataclass(frozen=True)
class Version:
    """What signed bytes say about an image's age.

    Attributes:
        security_version: The label's value, 0 when absent.
        created: RFC 3339, or None when absent, which counts as older than any time.
    """

    security_version: int = 0
    created: str | None = None

    @property
    def order(self) -> tuple[int, tuple[int, int]]:
        """Key that sorts older versions first.

        Raises:
            VerificationError: `created` is no time (`config_invalid`).
        """
        return self.security_version, parse_time(self.created)

    def highest(self, other: Version) -> Version:
        """The newer of both: what survives a re-installation."""
        return other if other.order > self.order else self


@dataclass(frozen=True)
class Installed:
    """The image in the partition, whose stored signature was checked.

    Attributes:
        config_hash: SHA-384 of its configuration.
        vendor_data: Vendor public key and the CA's signature over it.
        highest: The highest version ever installed under this application.
    """

    config_hash: bytes
    vendor_data: tuple[bytes, ...]
    highest: Version


@dataclass(frozen=True)
class Fetched:
    """An image from the registry, whose digests and signature were checked."""

    config_hash: bytes
    vendor_data: tuple[bytes, ...]
    version: Version


@dataclass(frozen=True)
class UpgradePolicy:
    """What is allowed beside the ordinary.

    Attributes:
        offline: `never`; `allow`: start what is installed when the registry cannot be reached; `always`: also
            when it refuses.
        allow_rollback: Install older images.
        on_refusal: What to do when an older image is offered.
    """

    offline: Literal["never", "allow", "always"] = "allow"
    allow_rollback: bool = False
    on_refusal: Literal["fail", "launch-installed"] = "fail"


def version_of(config: bytes) -> Version:
    """The version data of configuration bytes whose signature was checked.

    Raises:
        InputError, VerificationError: The configuration, its label or its time is malformed (`config_invalid`).
    """
    from islet_cli.oci.documents import parse_config
    from islet_cli.signing.verify import security_version

    version = Version(security_version(config), parse_config(config).created)
    parse_time(version.created)
    return version


def parse_time(text: str | None) -> tuple[int, int]:
    """Seconds since 1970 and nanoseconds of an RFC 3339 time; None is before every time.

    Raises:
        VerificationError: Not such a time (`config_invalid`).
    """
    if text is None:
        return _NEVER
    match = _RFC3339.fullmatch(text)
    invalid = VerificationError(f"created: {text[:60]!r} is no RFC 3339 time", code="config_invalid")
    if match is None:
        raise invalid
    year, month, day, hour, minute, second = (int(part) for part in match.group(1, 2, 3, 4, 5, 6))
    if not (year and 1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]):
        raise invalid
    # A leap second counts as the second after it.
    if hour > 23 or minute > 59 or second > 60:
        raise invalid
    seconds = calendar.timegm((year, month, day, hour, minute, second))
    sign, offset_hours, offset_minutes = match.group(8, 9, 10)
    if sign is not None:
        if int(offset_hours) > 23 or int(offset_minutes) > 59:
            raise invalid
        offset = int(offset_hours) * 3600 + int(offset_minutes) * 60
        seconds -= offset if sign == "+" else -offset
    return seconds, int((match.group(7) or "0")[:9].ljust(9, "0"))


def check_rollback(highest: Version | None, new: Version, allow_rollback: bool = False) -> None:
    """Refuse an image older than the highest one that was installed.

    Args:
        highest: The highest version installed so far, None when there was none.
        new: The version offered.
        allow_rollback: Accept it all the same.

    Raises:
        VerificationError: A lower security version, or the same one made earlier (`rollback_refused`).
    """
    if highest is None or allow_rollback or new.order >= highest.order:
        return
    if new.security_version < highest.security_version:
        reason = f"security version {new.security_version} is below {highest.security_version}"
    else:
        reason = f"created {new.created} is before {highest.created}"
    raise VerificationError(
        f"the image is older than what was installed: {reason}",
        code="rollback_refused",
        hint="raise the image's security version, or allow the rollback",
    )


def decide(fetched: Fetched | IsletError, installed: Installed | None, policy: UpgradePolicy) -> Action:
    """Choose between the image that was fetched and the one that is installed.

    Args:
        fetched: The verified image, or why there is none.
        installed: The verified installed image, None when there is none.
        policy: What is allowed.

    Raises:
        IsletError: `rollback_refused`, `registry_unreachable` when there is nothing to start, or the failure of
            fetching itself: a bad signature or digest never falls back to what is installed.
    """
    if isinstance(fetched, IsletError):
        return _without_image(fetched, installed, policy)
    if installed is None:
        return Action.INSTALL
    if (fetched.config_hash, fetched.vendor_data) == (installed.config_hash, installed.vendor_data):
        return Action.LAUNCH_INSTALLED
    try:
        check_rollback(installed.highest, fetched.version, policy.allow_rollback)
    except VerificationError as error:
        if error.code == "rollback_refused" and policy.on_refusal == "launch-installed":
            return Action.LAUNCH_INSTALLED
        raise
    return Action.INSTALL


def _without_image(failure: IsletError, installed: Installed | None, policy: UpgradePolicy) -> Action:
    unreachable, denied = is_unreachable(failure), _status(failure) in (401, 403, 404)
    allowed = (unreachable and policy.offline != "never") or (denied and policy.offline == "always")
    if installed is not None and allowed:
        return Action.LAUNCH_OFFLINE
    if unreachable and installed is None and failure.code != "registry_unreachable":
        raise UnavailableError(failure.message, code="registry_unreachable") from failure
    raise failure


def is_unreachable(failure: IsletError) -> bool:
    """Whether fetching failed for want of the registry: no connection, time-outs, 429 and 5xx."""
    status = _status(failure)
    if status is not None:
        return status in (408, 429) or 500 <= status <= 599
    return failure.code == "registry_unreachable"


def _status(failure: IsletError) -> int | None:
    status = failure.details.get("status")
    return status if failure.code == "http_status" and isinstance(status, int) else None
