"""The realms of a host: every command on them, apart from how commands arrive."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import uuid
from collections.abc import AsyncIterator
from typing import Any

from islet_cli.errors import InputError, IsletError
from islet_cli.process import is_alive
from islet_cli.volumes.disk import SharedDisk, check_sizes
from islet_cli.warden import applications, definition
from islet_cli.warden.errors import WardenError
from islet_cli.warden.network import RegistryAddress
from islet_cli.warden.options import WardenOptions
from islet_cli.warden.platform_session import Platform
from islet_cli.warden.realm import HALTED, NEED_REBOOT, PROVISIONING, RUNNING, Realm
from islet_cli.warden.runner import Runner
from islet_cli.warden.state import ApplicationConfig, RealmDirectory, RealmState, Workdir
from islet_cli.warden.storage import check_resize

_LARGEST_NAME = 255
log = logging.getLogger(__name__)


class Warden:
    """All realms of one workdir.

    Args:
        options: Settings.
        runner: Starts VMs.
        platform: Measures and activates realms.
    """

    def __init__(self, options: WardenOptions, runner: Runner, platform: Platform) -> None:
        self._options, self._runner, self._platform = options, runner, platform
        self._workdir = Workdir(options.workdir)
        self._realms: dict[uuid.UUID, Realm] = {}
        self._broken: dict[uuid.UUID, str] = {}
        self._creating: set[uuid.UUID] = set()

    def load(self) -> None:
        """Read every realm; a broken one is kept aside with its reason. VMs of a dead warden are ended."""
        self._workdir.sweep()
        for directory in self._workdir.realms():
            try:
                self._realms[directory.uuid] = self._opened(directory)
            except IsletError as error:
                log.error("realm %s is broken: %s", directory.uuid, error.message)
                self._broken[directory.uuid] = error.message

    def _opened(self, directory: RealmDirectory) -> Realm:
        realm = Realm(directory, self._runner, self._platform, self._options)
        stored = realm.stored
        if stored.vm_pid is not None and stored.vm_started is not None and is_alive(stored.vm_pid, stored.vm_started):
            log.warning("realm %s: ending the VM of an earlier warden (process %d)", directory.uuid, stored.vm_pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(stored.vm_pid, signal.SIGKILL)
        if stored.vm_pid is not None or stored.desired != HALTED:
            stored.vm_pid = stored.vm_started = None
            stored.desired = HALTED
            stored.last_error = "the warden ended without stopping the realm; its VM ended with it"
            realm.save()
        definition.remove_unused_files(directory)
        return realm

    async def shut_down(self) -> None:
        """Stop every realm in good order, all at once."""

        async def stop(realm: Realm) -> None:
            try:
                while realm.state != HALTED or realm.busy is not None:
                    if realm.busy is not None and realm.busy not in ("start", "reboot"):
                        await asyncio.sleep(0.05)
                        continue
                    await realm.stop()
            except IsletError as error:
                log.error("stopping realm %s: %s", realm.name, error.message)

        await asyncio.gather(*(stop(realm) for realm in self._realms.values()))

    def kill_all(self) -> None:
        """End every VM at once."""
        for realm in self._realms.values():
            realm.kill()

    # ------------------------------------------------------------------------------------ realms

    def realm(self, text: str) -> Realm:
        """Raises InputError (`no-such-realm`) when it is unknown, WardenError when it is broken."""
        identity = uuid.UUID(text)
        if identity in self._broken:
            raise WardenError(f"realm {text} is broken: {self._broken[identity]}", code="storage")
        found = self._realms.get(identity)
        if found is None:
            raise InputError(f"no realm {text} is known here", code="no-such-realm")
        return found

    def _new_identity(self, wanted: str | None, name: str | None) -> uuid.UUID:
        identity = uuid.UUID(wanted) if wanted else uuid.uuid4()
        if identity in self._realms or identity in self._broken or identity in self._creating:
            raise WardenError(f"realm {identity} exists already", code="realm-exists")
        if name is not None and any(realm.name == name for realm in self._realms.values()):
            raise WardenError(
                f"a realm named {name} exists already", code="realm-exists", hint="choose another name with --name"
            )
        return identity

    async def create_realm(self, config: dict[str, Any]) -> uuid.UUID:
        """CreateRealm: a realm in upstream's form, with a disk per application."""
        identity = self._new_identity(config["id"], None)
        definition.check_upstream(config)
        self._check_resources(config["network"])
        for path in (config["kernel"]["kernel_path"], config["kernel"]["kernel_initramfs_path"]):
            if path is not None and not os.path.exists(path):  # noqa: PTH110 - a plain question, not a Path
                log.warning("realm %s: %s does not exist (yet)", identity, path)
        with self._workdir.new_realm(identity) as directory:
            definition.write_upstream(directory, config)
            directory.save_state(RealmState())
        self._realms[identity] = self._opened(self._workdir.realm(identity))
        return identity

    def _check_resources(self, network: dict[str, Any]) -> None:
        for realm in self._realms.values():
            other = realm.definition
            for what, mine, theirs in (
                ("vsock context id", network["vsock_cid"], other.vsock_cid),
                ("TAP device", network["tap_device"], other.tap),
                ("MAC address", network["mac_address"].lower(), (other.mac or "").lower()),
            ):
                if mine == theirs:
                    raise WardenError(f"{what} {mine} belongs to realm {realm.name}", code="resource-taken")

    async def create_realm_launch(self, message: dict[str, Any]) -> uuid.UUID:
        """CreateRealmLaunch: a realm from a launch plan, with one shared disk."""
        name = definition.check_name(message["name"])
        identity = self._new_identity(message["id"], name)
        self._creating.add(identity)
        try:
            await asyncio.to_thread(self._build_realm, identity, name, message)
            self._new_identity(None, name)
            self._realms[identity] = self._opened(self._workdir.realm(identity))
        finally:
            self._creating.discard(identity)
        return identity

    def _build_realm(self, identity: uuid.UUID, name: str, message: dict[str, Any]) -> None:
        with self._workdir.new_realm(identity) as directory:
            definition.write_launch(directory, message, name)
            directory.save_state(RealmState())
            SharedDisk.create(directory.disk)

    async def update_realm(self, message: dict[str, Any]) -> None:
        """UpdateRealm: another launch for a halted realm; disk and applications stay."""
        realm = self.realm(message["uuid"])
        realm.require("update", HALTED)
        if realm.definition.layout != "shared":
            raise WardenError("a realm in upstream's form cannot be updated", code="not-supported")

        async def update() -> None:
            await asyncio.to_thread(definition.write_launch, realm.directory, message, realm.name)
            realm.reload_definition()
            definition.remove_unused_files(realm.directory)

        await realm.run("update", update())

    async def destroy(self, text: str) -> None:
        """DestroyRealm: a halted realm, or a broken one, goes with all its files."""
        identity = uuid.UUID(text)
        if identity in self._broken:
            await asyncio.to_thread(self._workdir.remove_realm, identity)
            del self._broken[identity]
            return
        realm = self.realm(text)
        realm.require("destroy", HALTED)

        async def remove() -> None:
            await asyncio.to_thread(self._workdir.remove_realm, identity)
            del self._realms[identity]

        await realm.run("destroy", remove())

    async def inspect(self, text: str) -> dict[str, Any]:
        """InspectRealm."""
        return await _description(self.realm(text))

    async def list_realms(self) -> list[dict[str, Any]]:
        """ListRealms; never fails for one realm, and a broken one is listed as halted."""
        found = await asyncio.gather(*(_description(realm) for realm in self._realms.values()))
        broken = [
            {"uuid": str(identity), "state": HALTED, "applications": [], "network": []} for identity in self._broken
        ]
        return [*found, *broken]

    async def describe(self) -> list[dict[str, Any]]:
        """DescribeRealms."""
        found = await asyncio.gather(*(_details(realm) for realm in self._realms.values()))
        return [*found, *(_broken_details(identity, why) for identity, why in self._broken.items())]

    def describe_launch(self, text: str) -> dict[str, Any]:
        """DescribeLaunch: the plan as it is launched, and the disks in measured order."""
        realm = self.realm(text)
        plan = realm.definition.plan_for(len(realm.applications))
        metadata = realm.definition.metadata
        disks = [str(disk.path) for disk in realm.storage.disks(realm.applications)]
        return {"launch": plan.to_json(), "metadata": str(metadata) if metadata else None, "disks": disks}

    async def console(self, text: str, follow: bool) -> AsyncIterator[bytes]:
        """RealmConsole: this launch's output, or the last one's."""
        realm = self.realm(text)
        if realm.boot is None:
            if realm.directory.console_log.exists():
                yield await asyncio.to_thread(realm.directory.console_log.read_bytes)
        elif follow:
            async for data in realm.boot.vm.console.follow():
                yield data
        else:
            yield realm.boot.vm.console.read(0)[0]

    # ------------------------------------------------------------------------------ applications

    async def create_application(self, realm_uuid: str, config: dict[str, Any]) -> uuid.UUID:
        """CreateApplication: disk and configuration, together or not at all."""
        realm = self.realm(realm_uuid)
        realm.require("creating an application", HALTED)
        wanted = _checked(config)
        if any(other.name == wanted.name for other in realm.applications.values()):
            raise InputError(f"realm {realm.name} has an application named {wanted.name}", code="bad-config")
        application = uuid.uuid4()

        def build() -> None:
            with realm.directory.new_application(application, wanted) as directory:
                realm.storage.create(application, wanted, directory)

        async def create() -> None:
            await asyncio.to_thread(build)
            realm.applications[application] = wanted
            realm.save()

        await realm.run("creating an application", create())
        return application

    async def update_application(self, realm_uuid: str, application_uuid: str, config: dict[str, Any]) -> None:
        """UpdateApplication: a new configuration, effective from the next start."""
        realm, application = self._application(realm_uuid, application_uuid)
        realm.require("updating an application", HALTED, RUNNING, NEED_REBOOT)
        wanted = _checked(config)
        has_data = application in realm.stored.provisioned and application not in realm.stored.reformat
        check_resize(realm.applications[application], wanted, has_data=has_data)

        async def update() -> None:
            realm.directory.save_application(application, wanted)
            realm.applications[application] = wanted
            if realm.state == RUNNING:
                realm.state = NEED_REBOOT

        await realm.run("updating an application", update())

    async def remove_application(self, realm_uuid: str, application_uuid: str) -> None:
        """RemoveApplication: its directory first, then its data is wiped."""
        realm, application = self._application(realm_uuid, application_uuid)
        realm.require("removing an application", HALTED)

        async def remove() -> None:
            await asyncio.to_thread(realm.directory.remove_application, application)
            del realm.applications[application]
            for listed in (realm.stored.provisioned, realm.stored.reformat):
                if application in listed:
                    listed.remove(application)
            realm.save()
            await asyncio.to_thread(realm.storage.remove, application)

        await realm.run("removing an application", remove())

    async def confirm_reformat(self, realm_uuid: str, application_uuid: str) -> None:
        """ConfirmReformat: at the next start this application's data may be discarded."""
        realm, application = self._application(realm_uuid, application_uuid)
        if application not in realm.stored.reformat:
            realm.stored.reformat.append(application)
        realm.save()

    async def inspect_application(self, realm_uuid: str, application_uuid: str) -> dict[str, Any]:
        """InspectApplication."""
        realm, application = self._application(realm_uuid, application_uuid)
        return await applications.describe(realm, application)

    async def start_application(self, realm_uuid: str, application_uuid: str) -> None:
        """StartApplication."""
        await applications.start(*self._running(realm_uuid, application_uuid))

    async def stop_application(self, realm_uuid: str, application_uuid: str) -> None:
        """StopApplication: SIGTERM and its grace period, then KillApp."""
        await applications.stop(*self._running(realm_uuid, application_uuid))

    async def kill_application(self, realm_uuid: str, application_uuid: str) -> None:
        """KillApplication."""
        await applications.kill(*self._running(realm_uuid, application_uuid))

    def logs(self, realm_uuid: str, application_uuid: str, follow: bool) -> AsyncIterator[bytes]:
        """ApplicationLogs."""
        realm = self.realm(realm_uuid)
        realm.require("logs", PROVISIONING, RUNNING, NEED_REBOOT)
        _, application = self._application(realm_uuid, application_uuid)
        return applications.logs(realm, application, follow)

    def _application(self, realm_uuid: str, application_uuid: str) -> tuple[Realm, uuid.UUID]:
        realm = self.realm(realm_uuid)
        application = uuid.UUID(application_uuid)
        realm.application(application)
        return realm, application

    def _running(self, realm_uuid: str, application_uuid: str) -> tuple[Realm, uuid.UUID]:
        """The state is checked before the application is looked up, as upstream does."""
        self.realm(realm_uuid).require("this", RUNNING, NEED_REBOOT)
        return self._application(realm_uuid, application_uuid)


def _checked(config: dict[str, Any]) -> ApplicationConfig:
    wanted = ApplicationConfig.from_message(config)
    check_sizes(wanted.image_storage_size_mb, wanted.data_storage_size_mb)
    for what, text in (("name", wanted.name), ("version", wanted.version)):
        if not text or len(text) > _LARGEST_NAME or any(character < " " for character in text):
            raise InputError(f"application {what} {text!r}: 1 to 255 characters, none of control", code="bad-config")
    RegistryAddress.parse(wanted.image_registry)
    return wanted


async def _description(realm: Realm) -> dict[str, Any]:
    return {
        "uuid": str(realm.uuid),
        "state": realm.state,
        "applications": [str(item) for item in realm.applications],
        "network": await realm.addresses(),
    }


async def _details(realm: Realm) -> dict[str, Any]:
    progress = realm.progress
    described = await asyncio.gather(*(applications.describe(realm, item) for item in list(realm.applications)))
    return {
        "uuid": str(realm.uuid),
        "name": realm.name,
        "state": realm.state,
        "broken": False,
        "busy": realm.busy,
        "last_error": realm.stored.last_error,
        "rim": realm.stored.rim,
        "accel": realm.accel,
        "publish": [item.to_message() for item in realm.published],
        "internet": realm.definition.internet,
        "progress": dict(progress.__dict__) if progress else None,
        "applications": described,
    }


def _broken_details(identity: uuid.UUID, why: str) -> dict[str, Any]:
    return {
        "uuid": str(identity),
        "name": str(identity),
        "state": HALTED,
        "broken": True,
        "busy": None,
        "last_error": why,
        "rim": None,
        "accel": None,
        "publish": [],
        "internet": False,
        "progress": None,
        "applications": [],
    }
