"""Applications of a running realm: start, stop, kill, status, output."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

from islet_cli.errors import IsletError
from islet_cli.warden.channel import RealmRefusedError
from islet_cli.warden.errors import WardenError
from islet_cli.warden.realm import HALTED, NEED_REBOOT, PROVISIONING, RUNNING, Realm

_POLL_S = 0.25
_LOG_LIMIT = 64 << 10


async def start(realm: Realm, application: uuid.UUID) -> None:
    """StartApp."""
    await realm.channel().request({"StartApp": str(application)}, realm.limits.response)
    realm.exits.pop(application, None)


async def stop(realm: Realm, application: uuid.UUID) -> None:
    """StopApp; when it is refused or not answered in time KillApp follows, and its result counts."""
    try:
        await realm.channel().request({"StopApp": str(application)}, realm.limits.stop_application)
    except WardenError as error:
        if error.code not in ("realm-error", "realm-timeout"):
            raise
        await kill(realm, application)
    realm.exits.pop(application, None)


async def kill(realm: Realm, application: uuid.UUID) -> None:
    """KillApp."""
    await realm.channel().request({"KillApp": str(application)}, realm.limits.response)
    realm.exits.pop(application, None)


async def describe(realm: Realm, application: uuid.UUID) -> dict[str, Any]:
    """Configuration and status; the status is Unknown when the realm does not run or does not answer in time."""
    status, exit_status = "Unknown", None
    if realm.state in (RUNNING, NEED_REBOOT):
        try:
            status, exit_status = await asyncio.wait_for(_status(realm, application), realm.limits.query)
        except (IsletError, asyncio.TimeoutError):
            pass
    config = realm.application(application)
    return {"uuid": str(application), **config.to_message(), "status": status, "exit_status": exit_status}


async def _status(realm: Realm, application: uuid.UUID) -> tuple[str, int | None]:
    """Ask the realm. It reports an exit once, so the warden remembers it."""
    name, content = await realm.channel().request({"CheckStatus": str(application)}, realm.limits.query)
    if name == "ApplicationExited":
        realm.exits[application] = content
    elif name == "ApplicationIsRunning":
        realm.exits.pop(application, None)
        return "Running", None
    elif name != "ApplicationNotStarted":
        raise WardenError(f"the realm answered {name} to CheckStatus", code="protocol")
    if application in realm.exits:
        return "Exited", realm.exits[application]
    return "NotStarted", None


async def logs(realm: Realm, application: uuid.UUID, follow: bool) -> AsyncIterator[bytes]:
    """Yield the application's output from the realm's ring; with `follow` until the realm halts.

    It is held in memory only and never written to disk.

    Raises:
        WardenError: `not-supported`: the realm's policy or manager does not give output.
    """
    offset = 0
    while True:
        if realm.state == PROVISIONING and follow:
            await asyncio.sleep(_POLL_S)
            continue
        if realm.state == HALTED:
            return
        try:
            data, following = await _read_log(realm, application, offset)
        except WardenError as error:
            # The realm is on its way down; what it had to say has been said.
            if follow and error.code in ("realm-gone", "bad-state"):
                await asyncio.sleep(_POLL_S)
                continue
            raise
        if data:
            yield data
        elif not follow:
            return
        if following == offset:
            await asyncio.sleep(_POLL_S)
        offset = following


async def _read_log(realm: Realm, application: uuid.UUID, offset: int) -> tuple[bytes, int]:
    request = {"ReadLog": {"id": str(application), "offset": offset, "limit": _LOG_LIMIT}}
    try:
        name, content = await realm.channel().request(request, realm.limits.response)
    except RealmRefusedError as error:
        if error.kind != "InvalidRequest":
            raise
        raise WardenError(
            "the realm does not hand out its applications' output",
            code="not-supported",
            hint="set policy.forward_output = true in realm.toml and build the realm again",
        ) from error
    if name != "LogData":
        raise WardenError(f"the realm answered {name} to ReadLog", code="protocol")
    following = int(content["next"])
    if following < offset:
        # The application was started anew or the ring begins elsewhere: go on from there.
        return b"", following
    return bytes(content["data"]), following
