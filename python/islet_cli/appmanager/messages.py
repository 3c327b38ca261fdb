"""The realm protocol: requests of the warden, answers of the manager.

The JSON is externally tagged as serde writes it; see docs/protocols.md. A reader ignores unknown members of an
object but refuses unknown variants, missing members and wrong types.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeAlias

from islet_cli.errors import InputError

CHALLENGE_SIZE = 64
MAX_LOG_READ = 1 << 20

_UUID = re.compile(
    r"(?:urn:uuid:)?(?:\{(?P<braced>[0-9a-f-]{36})\}|(?P<bare>[0-9a-f-]{36})|(?P<simple>[0-9a-f]{32}))", re.IGNORECASE
)
_HYPHENATED = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class RequestError(InputError):
    """The body is not a request of the realm protocol."""

    default_code = "request"


@dataclass(frozen=True)
class ApplicationInfo:
    """One application to provision, as the host asks for it. Nothing in it is trusted."""

    id: str
    name: str
    version: str
    image_registry: str
    image_part_uuid: str
    data_part_uuid: str


@dataclass(frozen=True)
class ProvisionInfo:
    """Set up these applications."""

    applications: tuple[ApplicationInfo, ...]


@dataclass(frozen=True)
class GetAttestationToken:
    """A token for the host's challenge, whose length is checked by the one who answers."""

    challenge: bytes


@dataclass(frozen=True)
class GetIfAddrs:
    """The realm's network addresses."""


@dataclass(frozen=True)
class Reboot:
    """Stop everything and restart; never answered when it succeeds."""


@dataclass(frozen=True)
class Shutdown:
    """Stop everything and power off; never answered when it succeeds."""


@dataclass(frozen=True)
class CheckStatus:
    """State of one application."""

    id: str


@dataclass(frozen=True)
class StartApp:
    """Start one application."""

    id: str


@dataclass(frozen=True)
class StopApp:
    """Stop one application with a grace period."""

    id: str


@dataclass(frozen=True)
class KillApp:
    """End one application at once."""

    id: str


@dataclass(frozen=True)
class AllowReformat:
    """The next provisioning may format this application's data partition."""

    id: str


@dataclass(frozen=True)
class ReadLog:
    """Up to `limit` bytes of an application's output from `offset` on."""

    id: str
    offset: int
    limit: int


Request: TypeAlias = (
    ProvisionInfo
    | GetAttestationToken
    | GetIfAddrs
    | Reboot
    | Shutdown
    | CheckStatus
    | StartApp
    | StopApp
    | KillApp
    | AllowReformat
    | ReadLog
)

_EMPTY: dict[str, Any] = {"GetIfAddrs": GetIfAddrs, "Reboot": Reboot, "Shutdown": Shutdown}
_WITH_ID: dict[str, Any] = {
    "CheckStatus": CheckStatus,
    "StartApp": StartApp,
    "StopApp": StopApp,
    "KillApp": KillApp,
    "AllowReformat": AllowReformat,
}


def parse_uuid(value: object) -> str:
    """Read a uuid in any of the usual spellings; the result is lower-case and hyphenated."""
    match = _UUID.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise RequestError("not a uuid")
    text = (match["braced"] or match["bare"] or match["simple"]).lower()
    if len(text) == 32:
        text = f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
    if _HYPHENATED.fullmatch(text) is None:
        raise RequestError("not a uuid")
    return text


def parse_request(value: object) -> Request:
    """Read one request.

    Raises:
        RequestError: It is not one.
    """
    if not isinstance(value, dict) or len(value) != 1:
        raise RequestError("a request is an object with one member")
    ((name, inner),) = value.items()
    if name in _EMPTY:
        if inner != [] or not isinstance(inner, list):
            raise RequestError(f"{name} takes an empty array")
        return _EMPTY[name]()  # type: ignore[no-any-return]
    if name in _WITH_ID:
        return _WITH_ID[name](parse_uuid(inner))  # type: ignore[no-any-return]
    if name == "GetAttestationToken":
        return GetAttestationToken(_bytes(inner, name))
    if name == "ProvisionInfo":
        if not isinstance(inner, list):
            raise RequestError("ProvisionInfo takes an array")
        return ProvisionInfo(tuple(_application(one) for one in inner))
    if name == "ReadLog":
        members = _members(inner, ("id", "offset", "limit"), name)
        return ReadLog(parse_uuid(members[0]), _count(members[1], "offset"), _count(members[2], "limit"))
    raise RequestError(f"unknown request {str(name)[:40]!r}")


def _members(value: object, names: tuple[str, ...], what: str) -> list[Any]:
    """The members of a structure, written as an object or as an array in declaration order."""
    if isinstance(value, list) and len(value) == len(names):
        return value
    if not isinstance(value, dict):
        raise RequestError(f"{what}: not an object")
    for name in names:
        if name not in value:
            raise RequestError(f"{what}: member {name!r} is missing")
    return [value[name] for name in names]


def _application(value: object) -> ApplicationInfo:
    names = tuple(one.name for one in fields(ApplicationInfo))
    members = _members(value, names, "application")
    if not all(isinstance(one, str) for one in members):
        raise RequestError("application: every member is a text")
    identity, name, version, registry, image, data = members
    return ApplicationInfo(parse_uuid(identity), name, version, registry, parse_uuid(image), parse_uuid(data))


def _bytes(value: object, what: str) -> bytes:
    if not isinstance(value, list) or not all(type(one) is int and 0 <= one <= 255 for one in value):
        raise RequestError(f"{what}: not an array of bytes")
    return bytes(value)


def _count(value: object, what: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise RequestError(f"{what}: not an unsigned integer")
    return value


# ---------------------------------------------------------------------------------------------------------
# Answers


class AnswerError(Exception):
    """An error answer: its kind and free text. Raised by whoever cannot do what was asked."""

    KINDS: ClassVar[tuple[str, ...]] = (
        "ApplicationNotFound",
        "InvalidRequest",
        "ApplicationLaunchFailed",
        "ApplicationStopFailed",
        "ApplicationKillFailed",
        "ApplicationCheckStatusFailed",
        "SystemPowerActionFailed",
        "GetIfAddrsError",
        "ProvisioningError",
        "AttestationTokenReadingError",
    )

    def __init__(self, kind: str, text: str = "") -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text

    def to_json(self) -> dict[str, Any]:
        """`{"Error":{…}}`."""
        inner: Any = [] if self.kind == "ApplicationNotFound" else self.text
        return {"Error": {self.kind: inner}}


@dataclass(frozen=True)
class InterfaceAddress:
    """What the host learns of one interface."""

    address: str
    netmask: str | None = None
    destination: str | None = None


@dataclass(frozen=True)
class Answer:
    """A good answer: the variant and what it holds."""

    name: str
    value: Any = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """`{NAME: VALUE}`."""
        return {self.name: self.value}


SUCCESS = Answer("Success")
RUNNING = Answer("ApplicationIsRunning")
NOT_STARTED = Answer("ApplicationNotStarted")


def token(data: bytes) -> Answer:
    """An attestation token."""
    return Answer("AttestationToken", list(data))


def exited(status: int) -> Answer:
    """An application ended by itself; `status` is the raw wait status."""
    return Answer("ApplicationExited", status)


def addresses(table: dict[str, InterfaceAddress]) -> Answer:
    """The realm's addresses, one an interface, sorted by name."""
    return Answer(
        "IfAddrs",
        {
            name: {"address": one.address, "netmask": one.netmask, "destination": one.destination}
            for name, one in sorted(table.items())
        },
    )


def log_data(offset: int, data: bytes) -> Answer:
    """Output from `offset` on; `next` is where to go on reading."""
    return Answer("LogData", {"offset": offset, "next": offset + len(data), "data": list(data)})
