"""The management interface (warden to platform): one connection's requests and its descriptors."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from islet_cli.errors import IsletError
from islet_cli.metadata.block import BLOCK_SIZE
from islet_cli.platform import messages
from islet_cli.platform.channel import RsiChannel
from islet_cli.platform.errors import PlatformError
from islet_cli.platform.memfile import SealedFile
from islet_cli.platform.rmm import Realm, Rmm, State

PROTOCOL = 1
_LOG = logging.getLogger(__name__)
_UNITS = frozenset({"Version", "RealmList", "Shutdown"})
_STRUCTS = {
    "RealmCreate": ("launch",),
    "RealmSetMetadata": ("rd", "metadata"),
    "RealmActivate": ("rd",),
    "RealmStatus": ("rd",),
    "RealmDestroy": ("rd",),
}


@dataclass(frozen=True)
class Answer:
    """An answer, the files whose descriptors travel with it (closed after sending), and what to do then."""

    value: Any
    files: tuple[SealedFile, ...] = ()
    after: Callable[[], None] | None = None


class Channels:
    """The RSI channels of all realms, by descriptor, and which descriptors lost their connection."""

    def __init__(self, rmm: Rmm, directory: Path) -> None:
        self._rmm = rmm
        self._directory = directory
        self._lock = threading.Lock()
        self._channels: dict[str, RsiChannel] = {}
        self._orphans: set[str] = set()

    def open(self, realm: Realm) -> RsiChannel:
        """Make the channel of a realm that is about to be activated; it is not served yet.

        Raises:
            PlatformError: `internal`: its socket cannot be made.
        """
        path = self._directory / f"rsi-{realm.rd}.sock"
        try:
            channel = RsiChannel(self._rmm, realm, path, self._ended)
        except OSError as error:
            raise PlatformError(f"{path}: {error.strerror or error}", code="internal") from error
        with self._lock:
            self._channels[realm.rd] = channel
        return channel

    def discard(self, realm: Realm) -> None:
        """End a realm's channel, if it has one."""
        with self._lock:
            channel = self._channels.pop(realm.rd, None)
        if channel is not None:
            channel.close()

    def orphan(self, realm: Realm) -> None:
        """The management connection of `realm` is gone: destroy it now, or when its VM has ended."""
        with self._lock:
            running = realm.state is State.ACTIVE and realm.rd in self._channels
            if running:
                self._orphans.add(realm.rd)
        if not running:
            self.destroy(realm)

    def destroy(self, realm: Realm) -> None:
        """Destroy a descriptor with its channel."""
        self.discard(realm)
        self._rmm.destroy(realm)

    def close(self) -> None:
        """End every channel."""
        for realm in self._rmm.all():
            self.destroy(realm)

    def _ended(self, realm: Realm) -> None:
        with self._lock:
            self._channels.pop(realm.rd, None)
            orphaned = realm.rd in self._orphans
            self._orphans.discard(realm.rd)
        if orphaned:
            self._rmm.destroy(realm)


class Session:
    """One management connection."""

    def __init__(self, rmm: Rmm, channels: Channels, shutdown: Callable[[], None]) -> None:
        self._rmm = rmm
        self._channels = channels
        self._shutdown = shutdown
        self._own: list[Realm] = []

    def close(self) -> None:
        """The connection ended: descriptors that no VM uses end with it."""
        for realm in self._own:
            self._channels.orphan(realm)

    def handle(self, request: Any) -> Answer:
        """Answer one request. Never raises."""
        try:
            name, members = messages.variant(request, _UNITS, _STRUCTS)
            return self._handlers[name](self, members)
        except PlatformError as error:
            return error_answer(error.code, error.message, error.reason, error.hint)
        except IsletError as error:
            return error_answer("input", error.message, None, error.hint)
        except Exception:
            _LOG.exception("a management request failed")
            return error_answer("internal", "the platform failed; its log has the reason")

    def _version(self, _members: dict[str, Any]) -> Answer:
        instance = self._rmm.hes.instance_id.hex()
        return Answer({"Version": {"protocol": PROTOCOL, "instance_id": instance, "emulated": True}})

    def _create(self, members: dict[str, Any]) -> Answer:
        realm = self._rmm.create(members["launch"])
        self._own.append(realm)
        _LOG.info("realm %s: created, RIM %s", realm.rd, realm.rim.hex())
        return Answer({"RealmCreated": {"rd": realm.rd, "rim": realm.rim.hex(), "bootargs": realm.bootargs}})

    def _find(self, members: dict[str, Any]) -> Realm:
        return self._rmm.find(messages.text(members["rd"], "rd"))

    def _set_metadata(self, members: dict[str, Any]) -> Answer:
        realm = self._find(members)
        realm.set_metadata(messages.octets(members["metadata"], "metadata", limit=BLOCK_SIZE))
        return Answer("Ok")

    def _activate(self, members: dict[str, Any]) -> Answer:
        realm = self._find(members)
        if realm.state is not State.NEW:
            raise PlatformError(f"the realm is {realm.state.value}, not NEW", code="realm", reason="state")
        channel = self._channels.open(realm)
        try:
            files = realm.activate()
        except BaseException:
            self._channels.discard(realm)
            raise
        channel.start()
        _LOG.info("realm %s: active", realm.rd)
        return Answer({"RealmActivated": {"rsi_socket": str(channel.path)}}, files)

    def _status(self, members: dict[str, Any]) -> Answer:
        return Answer({"RealmStatus": self._find(members).status()})

    def _list(self, _members: dict[str, Any]) -> Answer:
        return Answer({"RealmList": [realm.status() for realm in self._rmm.all()]})

    def _destroy(self, members: dict[str, Any]) -> Answer:
        realm = self._find(members)
        self._channels.destroy(realm)
        if realm in self._own:
            self._own.remove(realm)
        _LOG.info("realm %s: destroyed", realm.rd)
        return Answer("Ok")

    def _stop(self, _members: dict[str, Any]) -> Answer:
        return Answer("Ok", after=self._shutdown)

    _handlers: dict[str, Callable[[Session, dict[str, Any]], Answer]] = {  # noqa: RUF012
        "Version": _version,
        "RealmCreate": _create,
        "RealmSetMetadata": _set_metadata,
        "RealmActivate": _activate,
        "RealmStatus": _status,
        "RealmList": _list,
        "RealmDestroy": _destroy,
        "Shutdown": _stop,
    }


def error_answer(code: str, message: str, reason: str | None = None, hint: str | None = None) -> Answer:
    """The answer that refuses a request."""
    content: dict[str, Any] = {"code": code, "reason": reason, "message": message}
    if hint:
        content["hint"] = hint
    return Answer({"Error": content})
