"""A blocking client of the warden.

Realms and applications are named by uuid or by name; errors of the daemon are raised as islet errors with
the daemon's stable code.
"""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from islet_cli import framing
from islet_cli.errors import InputError, UnavailableError
from islet_cli.warden import codec, wire
from islet_cli.warden.errors import from_wire
from islet_cli.warden.messages import WARDEN_COMMAND, WARDEN_RESPONSE
from islet_cli.warden.network import Publish

CONNECT_TIMEOUT_S = 5.0
_PROGRESS_POLL_S = 0.3
Descriptions = list[dict[str, Any]]
Report = Callable[[str, str, int, int], None]
"""`report(application, "fetch" or "unpack", done, total)` in bytes."""


class WardenClient:
    """One connection to a warden; use it as a context manager.

    Every method raises the error that the daemon answers with (`no-such-realm`, `bad-state`, `busy`, …), or
    `UnavailableError` (`warden-down`) when the daemon is not there.
    """

    def __init__(self, socket_path: Path) -> None:
        """Connect.

        Raises:
            UnavailableError: `warden-down`: nobody listens there; `permission`: it belongs to another user.
        """
        self._path = socket_path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(CONNECT_TIMEOUT_S)
        try:
            self._socket.connect(os.fspath(socket_path))
        except PermissionError as error:
            self._socket.close()
            raise UnavailableError(
                f"the warden's socket {socket_path} belongs to another user", code="permission", hint="run as that user"
            ) from error
        except OSError as error:
            self._socket.close()
            raise UnavailableError(
                f"the warden is not reachable at {socket_path}: {error.strerror or error}",
                code="warden-down",
                hint="run: islet warden up",
            ) from error
        self._socket.settimeout(None)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def __enter__(self) -> WardenClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------ realms

    def create_realm_launch(
        self,
        name: str,
        launch: dict[str, Any],
        *,
        metadata: Path | None = None,
        publish: Sequence[Publish] = (),
        internet: bool = False,
        realm_id: str | None = None,
    ) -> str:
        """Create a realm from a launch plan's JSON; returns its uuid."""
        message = {"id": realm_id, "name": name, **_launch(launch, metadata, publish, internet)}
        return str(self._ask({"CreateRealmLaunch": message}, "CreatedRealm")["uuid"])

    def create_realm(self, config: dict[str, Any]) -> str:
        """Create a realm in upstream's form (CONFIG of CreateRealm); returns its uuid."""
        return str(self._ask({"CreateRealm": {"config": config}}, "CreatedRealm")["uuid"])

    def update_realm(
        self,
        realm: str,
        launch: dict[str, Any],
        *,
        metadata: Path | None = None,
        publish: Sequence[Publish] = (),
        internet: bool = False,
    ) -> None:
        """Give a halted realm another launch; disk and applications stay."""
        self._ok({"UpdateRealm": {"uuid": self.realm_uuid(realm), **_launch(launch, metadata, publish, internet)}})

    def start(self, realm: str, report: Report | None = None) -> None:
        """Start a realm; `report` is called from a thread while its applications are provisioned."""
        with _Following(self._path, self.realm_uuid(realm), report):
            self._on_realm("StartRealm", realm)

    def stop(self, realm: str) -> None:
        """Stop a realm."""
        self._on_realm("StopRealm", realm)

    def reboot(self, realm: str, report: Report | None = None) -> None:
        """Reboot a realm."""
        with _Following(self._path, self.realm_uuid(realm), report):
            self._on_realm("RebootRealm", realm)

    def destroy(self, realm: str) -> None:
        """Remove a halted realm and its data."""
        self._on_realm("DestroyRealm", realm)

    def inspect(self, realm: str) -> dict[str, Any]:
        """Upstream's description: uuid, state, applications, network."""
        answer = self._ask({"InspectRealm": {"uuid": self.realm_uuid(realm)}}, "InspectedRealm")
        return dict(answer["description"])

    def list(self) -> Descriptions:
        """Upstream's description of every realm."""
        return [*self._ask("ListRealms", "ListedRealms")["realms_description"]]

    def describe(self) -> Descriptions:
        """Everything about every realm: name, state, last error, RIM, ports, applications with status."""
        return [*self._ask("DescribeRealms", "DescribedRealms")["realms"]]

    def describe_realm(self, realm: str) -> dict[str, Any]:
        """Everything about one realm."""
        return _find(self.describe(), realm, "realm")

    def describe_launch(self, realm: str) -> dict[str, Any]:
        """The launch plan as it is launched, the metadata block's path, the disks."""
        return dict(self._ask({"DescribeLaunch": {"uuid": self.realm_uuid(realm)}}, "DescribedLaunch"))

    def token(self, realm: str, challenge: bytes) -> bytes:
        """An attestation token over a 64-byte challenge."""
        if len(challenge) != 64:
            raise InputError(f"challenge of {len(challenge)} bytes: must be 64", code="challenge")
        message = {"FetchToken": {"uuid": self.realm_uuid(realm), "challenge": [*challenge]}}
        return bytes(self._ask(message, "AttestationToken")["token"])

    def console(self, realm: str, *, follow: bool = False) -> Iterator[bytes]:
        """The realm's console output; with `follow` until the realm ends."""
        return self._stream({"RealmConsole": {"uuid": self.realm_uuid(realm), "follow": follow}})

    # ------------------------------------------------------------------------------ applications

    def create_application(
        self, realm: str, name: str, *, registry: str, version: str = "latest", image_mb: int, data_mb: int
    ) -> str:
        """Add an application to a halted realm; returns its uuid."""
        config = _application(name, version, registry, image_mb, data_mb)
        message = {"CreateApplication": {"realm_uuid": self.realm_uuid(realm), "config": config}}
        return str(self._ask(message, "CreatedApplication")["uuid"])

    def update_application(
        self,
        realm: str,
        application: str,
        *,
        name: str | None = None,
        registry: str | None = None,
        version: str | None = None,
        image_mb: int | None = None,
        data_mb: int | None = None,
    ) -> None:
        """Change an application's configuration; what is None stays. Effective from the next start."""
        now = self.describe_application(realm, application)
        config = _application(
            name or now["name"],
            version or now["version"],
            registry or now["image_registry"],
            now["image_storage_size_mb"] if image_mb is None else image_mb,
            now["data_storage_size_mb"] if data_mb is None else data_mb,
        )
        self._ok({"UpdateApplication": {**self._both(realm, application), "config": config}})

    def remove_application(self, realm: str, application: str) -> None:
        """Remove an application of a halted realm and wipe its data."""
        self._ok({"RemoveApplication": self._both(realm, application)})

    def start_application(self, realm: str, application: str) -> None:
        """Start an application of a running realm."""
        self._ok({"StartApplication": self._both(realm, application)})

    def stop_application(self, realm: str, application: str) -> None:
        """Stop an application, by force after its grace period."""
        self._ok({"StopApplication": self._both(realm, application)})

    def kill_application(self, realm: str, application: str) -> None:
        """Kill an application."""
        self._ok({"KillApplication": self._both(realm, application)})

    def inspect_application(self, realm: str, application: str) -> dict[str, Any]:
        """Configuration, status (Unknown, NotStarted, Running, Exited) and raw wait status."""
        answer = self._ask({"InspectApplication": self._both(realm, application)}, "InspectedApplication")
        return dict(answer["description"])

    def describe_application(self, realm: str, application: str) -> dict[str, Any]:
        """One application of `describe`."""
        return _find(self.describe_realm(realm)["applications"], application, "application")

    def confirm_reformat(self, realm: str, application: str) -> None:
        """Allow the next start to discard the application's data."""
        self._ok({"ConfirmReformat": self._both(realm, application)})

    def logs(self, realm: str, application: str, *, follow: bool = False) -> Iterator[bytes]:
        """The application's output; with `follow` until the realm halts."""
        return self._stream({"ApplicationLogs": {**self._both(realm, application), "follow": follow}})

    # ------------------------------------------------------------------------------------- names

    def realm_uuid(self, realm: str) -> str:
        """The uuid of a realm given by uuid or name.

        Raises:
            InputError: `no-such-realm`.
        """
        return _as_uuid(realm) or str(self.describe_realm(realm)["uuid"])

    def _both(self, realm: str, application: str) -> dict[str, str]:
        application_uuid = _as_uuid(application)
        if application_uuid is None:
            application_uuid = str(self.describe_application(realm, application)["uuid"])
        return {"realm_uuid": self.realm_uuid(realm), "application_uuid": application_uuid}

    # --------------------------------------------------------------------------------- exchanges

    def _on_realm(self, command: str, realm: str) -> None:
        self._ok({command: {"uuid": self.realm_uuid(realm)}})

    def _ok(self, command: Any) -> None:
        self._ask(command, "Ok")

    def _ask(self, command: Any, expected: str) -> Any:
        self._send(command)
        name, content = self._receive()
        if name != expected:
            raise self._broken(f"it answered {name} instead of {expected}")
        return content

    def _stream(self, command: Any) -> Iterator[bytes]:
        self._send(command)
        while True:
            name, content = self._receive()
            if name == "Ok":
                return
            if name != "LogChunk":
                raise self._broken(f"it answered {name} instead of output")
            yield bytes(content["data"])

    def _send(self, command: Any) -> None:
        try:
            self._socket.sendall(wire.frame(WARDEN_COMMAND, command))
        except OSError as error:
            raise self._broken(error.strerror or str(error)) from error

    def _receive(self) -> tuple[str, Any]:
        try:
            prefix = framing.receive_exactly(self._socket.recv, framing.PREFIX.size, allow_end=True)
            if prefix is None:
                raise self._broken("it closed the connection")
            body = framing.receive_exactly(self._socket.recv, framing.decode_length(prefix))
            name, content = codec.split(codec.decode(WARDEN_RESPONSE, body or b""))
        except (OSError, framing.FramingError, codec.MessageError) as error:
            raise self._broken(str(error)) from error
        if name == "Error":
            kind, detail = codec.split(content["warden_error"])
            if kind == "WardenDaemonFail":
                raise from_wire(detail["message"])
            self.close()
            raise UnavailableError("this daemon does not support the command", code="not-supported")
        return name, content

    def _broken(self, problem: str) -> UnavailableError:
        self.close()
        return UnavailableError(
            f"the warden at {self._path} failed: {problem}",
            code="warden-down",
            hint="see .islet/log/warden.log; run: islet warden up",
        )


class _Following:
    """Reports a realm's provisioning progress over a connection of its own while the block runs."""

    def __init__(self, socket_path: Path, realm: str, report: Report | None) -> None:
        self._path, self._realm, self._report = socket_path, realm, report
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        if self._report is not None:
            self._thread = threading.Thread(target=self._follow, args=(self._report,), daemon=True)
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _follow(self, report: Report) -> None:
        try:
            with WardenClient(self._path) as client:
                while not self._end.wait(_PROGRESS_POLL_S):
                    progress = client.describe_realm(self._realm)["progress"]
                    if progress is not None:
                        report(progress["application"], progress["stage"], progress["done"], progress["total"])
        except (UnavailableError, InputError):
            return


def _launch(
    launch: dict[str, Any], metadata: Path | None, publish: Sequence[Publish], internet: bool
) -> dict[str, Any]:
    return {
        "launch": launch,
        "metadata": None if metadata is None else os.fspath(metadata.absolute()),
        "publish": [item.to_message() for item in publish],
        "internet": internet,
    }


def _application(name: str, version: str, registry: str, image_mb: int, data_mb: int) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "image_registry": registry,
        "image_storage_size_mb": image_mb,
        "data_storage_size_mb": data_mb,
    }


def _as_uuid(text: str) -> str | None:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


def _find(items: list[dict[str, Any]], wanted: str, kind: str) -> dict[str, Any]:
    identity = _as_uuid(wanted)
    for item in items:
        if item["uuid"] == identity or item["name"] == wanted:
            return item
    raise InputError(f"no {kind} {wanted}", code=f"no-such-{kind}", hint="see: islet realm list, islet app list")
