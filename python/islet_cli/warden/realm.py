"""One realm: its state machine, one operation at a time, and the watch over its VM.

    Halted -> Provisioning -> Running <-> NeedReboot -> Halted

Every failure ends in Halted with the cause and without a process, so that the next start works.
Reads use the last known state and never wait for an operation.

Source: docs/protocols.md (realm and application life cycle).
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Coroutine
from typing import Any, TypeVar

from islet_cli.errors import InputError, IsletError
from islet_cli.warden import definition as definitions
from islet_cli.warden.boot import Boot
from islet_cli.warden.channel import RealmChannel, RealmRefusedError, gone
from islet_cli.warden.console import Progress
from islet_cli.warden.definition import Definition
from islet_cli.warden.errors import WardenError
from islet_cli.warden.network import Network, Publish, bind_ports, forwards_for, seen_by_realm
from islet_cli.warden.options import Timeouts, WardenOptions
from islet_cli.warden.platform_session import Activation, Platform
from islet_cli.warden.runner import LaunchRequest, Runner, VmFailedError
from islet_cli.warden.state import ApplicationConfig, RealmDirectory
from islet_cli.warden.storage import Storage, storage_of

HALTED, PROVISIONING, RUNNING, NEED_REBOOT = "Halted", "Provisioning", "Running", "NeedReboot"
CHALLENGE_BYTES = 64
_PROVISION_ATTEMPTS = 3
_KVM_CONNECT_S = 20.0
_RECONNECT_S = 30.0
T = TypeVar("T")
log = logging.getLogger(__name__)


class Realm:
    """A realm that could be read from disk.

    Args:
        directory: Its files.
        runner: Starts its VM.
        platform: Measures and activates it.
        options: Time limits and networking.

    Raises:
        IsletError: The directory is unreadable.
    """

    def __init__(self, directory: RealmDirectory, runner: Runner, platform: Platform, options: WardenOptions) -> None:
        self.directory = directory
        self.uuid = directory.uuid
        self.definition: Definition = definitions.load(directory)
        self.state = HALTED
        self.busy: str | None = None
        self.stored = directory.state()
        self.applications: dict[uuid.UUID, ApplicationConfig] = self._ordered(directory.applications())
        self.boot: Boot | None = None
        self.published: tuple[Publish, ...] = self.definition.publish
        self.exits: dict[uuid.UUID, int] = {}
        """Raw wait status of applications that ended by themselves in this boot."""
        self._runner, self._platform, self._options = runner, platform, options
        self._limits = options.timeouts
        self._storage: Storage = storage_of(directory, self.definition)
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None

    def _ordered(self, found: dict[uuid.UUID, ApplicationConfig]) -> dict[uuid.UUID, ApplicationConfig]:
        """Applications in creation order; REM values depend on it."""
        known = [item for item in self.stored.applications if item in found]
        return {item: found[item] for item in (*known, *(item for item in found if item not in known))}

    # ------------------------------------------------------------------------------------- reads

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def progress(self) -> Progress | None:
        """How far provisioning is, while it goes on."""
        return self.boot.vm.console.progress if self.boot and self.state == PROVISIONING else None

    @property
    def accel(self) -> str | None:
        return self.boot.vm.accel if self.boot else None

    def application(self, application: uuid.UUID) -> ApplicationConfig:
        """Raises WardenError (`no-such-application`) when there is none."""
        found = self.applications.get(application)
        if found is None:
            raise InputError(f"no application {application} in realm {self.name}", code="no-such-application")
        return found

    def channel(self) -> RealmChannel:
        """The connected manager of a provisioned realm.

        Raises:
            WardenError: `bad-state` or `realm-gone`.
        """
        self.require("this", RUNNING, NEED_REBOOT)
        channel = self.boot.channel if self.boot else None
        if channel is None or not channel.connected.is_set():
            raise gone()
        return channel

    def require(self, what: str, *states: str) -> None:
        """Raises WardenError (`bad-state`) unless the realm is in one of `states`."""
        if self.state not in states:
            halted = states == (HALTED,)
            wanted = "a halted realm" if halted else "a running realm"
            mend = None if what == "stop" else f"run: islet realm {'stop' if halted else 'start'} {self.name}"
            raise WardenError(f"{what} needs {wanted}, {self.name} is {self.state}", code="bad-state", hint=mend)

    async def addresses(self) -> list[dict[str, str]]:
        """The realm's network addresses, sorted by interface; empty when it does not answer in time."""
        if self.state not in (RUNNING, NEED_REBOOT):
            return []
        try:
            # The limit covers waiting for another request's answer as well.
            _, found = await asyncio.wait_for(
                self.channel().request({"GetIfAddrs": []}, self._limits.query), self._limits.query
            )
        except (IsletError, asyncio.TimeoutError):
            return []
        if not isinstance(found, dict):
            return []
        return [{"ip": found[name]["address"], "if_name": name} for name in sorted(found)]

    # -------------------------------------------------------------------------------- operations

    async def run(self, what: str, work: Coroutine[Any, Any, T]) -> T:
        """Run an operation; only one at a time. It goes on when the client that asked for it leaves.

        Raises:
            WardenError: `busy`; `bad-state` when a stop cancelled it.
        """
        if self.busy is not None:
            work.close()
            raise WardenError(f"realm {self.name} is busy with {self.busy}", code="busy")
        self.busy = what
        task = self._task = asyncio.create_task(self._finishing(work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise WardenError(f"{what} of realm {self.name} was cancelled", code="bad-state") from None
            raise

    async def _finishing(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return await work
        finally:
            self.busy = self._task = None

    async def start(self) -> None:
        """Launch, connect, provision."""
        self.require("start", HALTED)
        await self.run("start", self._start())

    async def stop(self) -> None:
        """Shut down, by force if needed; a start in progress is cancelled."""
        if self.busy in ("start", "reboot") and self._task is not None:
            task = self._task
            task.cancel()
            await asyncio.wait({task})
            return
        self.require("stop", RUNNING, NEED_REBOOT, PROVISIONING)
        await self.run("stop", self._stop())

    async def reboot(self) -> None:
        """End the VM in good order and start it again with a new realm descriptor."""
        self.require("reboot", RUNNING, NEED_REBOOT)
        await self.run("reboot", self._reboot())

    async def fetch_token(self, challenge: bytes) -> bytes:
        """An attestation token; a halted realm is booted for it without being provisioned."""
        if len(challenge) != CHALLENGE_BYTES:
            raise InputError(f"challenge of {len(challenge)} bytes: must be {CHALLENGE_BYTES}", code="bad-config")
        if self.state == HALTED:
            return await self.run("token", self._token_by_short_boot(challenge))
        return await _token(self.channel(), challenge, self._limits.response)

    async def _start(self) -> None:
        await self._prepare()
        await self._bring_up()

    async def _prepare(self) -> None:
        empty = {item for item in self.applications if item not in self.stored.provisioned}
        await asyncio.to_thread(self._storage.prepare, self.applications, empty | set(self.stored.reformat))

    async def _stop(self) -> None:
        self._unwatch()
        boot = self.boot
        try:
            if boot is not None and await boot.shut_down("Shutdown", self._limits.stop):
                log.warning("realm %s was stopped by force", self.name)
        finally:
            self._halted(None)

    async def _reboot(self) -> None:
        self._unwatch()
        self.state = PROVISIONING
        try:
            if self.boot is not None:
                await self.boot.shut_down("Reboot", self._limits.stop)
            self.boot = None
            await self._prepare()
        except BaseException as error:
            self._halted(_cause(error))
            raise
        await self._bring_up()

    async def _bring_up(self) -> None:
        """From a prepared disk to Running, or back to Halted with the cause."""
        self.state = PROVISIONING
        try:
            boot = await self._launch()
            # From here on the applications may have data, whether or not the answer is good.
            self.stored.provisioned = list(dict.fromkeys((*self.stored.provisioned, *self.applications)))
            self.save()
            await boot.while_alive(self._provision(boot))
        except BaseException as error:
            await self._abandon()
            self._halted(_cause(error))
            raise
        self.stored.reformat = []
        self.stored.last_error = None
        self.stored.desired = RUNNING
        self._save()
        self.state = RUNNING
        self._watcher = asyncio.create_task(self._watch(boot))

    async def _abandon(self) -> None:
        boot, self.boot = self.boot, None
        if boot is not None:
            await asyncio.shield(boot.end())

    async def _launch(self) -> Boot:
        """Launch and wait for the manager; once more with another accelerator when the first brings no guest up."""
        try:
            return await self._launch_once()
        except VmFailedError as error:
            if not self._runner.fall_back():
                raise
            log.warning("realm %s: %s; trying again under emulation", self.name, error.message)
            await self._abandon()
            return await self._launch_once()

    async def _launch_once(self) -> Boot:
        boot = await self._begin()
        limit = self._limits.connect
        try:
            await boot.connected(min(limit, _KVM_CONNECT_S) if boot.vm.accel == "kvm" else limit)
        except WardenError as error:
            if boot.vm.accel == "kvm":
                raise VmFailedError(error.message, code=error.code, hint=error.hint) from error
            raise
        return boot

    async def _begin(self) -> Boot:
        plan = self.definition.plan_for(len(self.applications))
        metadata = self.definition.metadata_block()
        boot = self.boot = await Boot.begin(self._runner, self._platform, plan, metadata, self._request)
        self.stored.rim = boot.activation.rim
        self.stored.vm_pid, self.stored.vm_started = boot.vm.pid, boot.vm.started
        self.exits.clear()
        self._save()
        return boot

    def _request(self, activation: Activation) -> LaunchRequest:
        user = self._options.network == "user"
        # From Halted these are the definition's; across a reboot a port that was picked stays.
        self.published = bind_ports(self.published) if user else ()
        network = Network(
            publish=self.published,
            forwards=forwards_for(config.image_registry for config in self.applications.values()),
            internet=self.definition.internet,
            mac=self.definition.mac,
            device=self.definition.device,
        )
        return LaunchRequest(
            realm=self.uuid,
            plan=self.definition.plan_for(len(self.applications)),
            activation=activation,
            disks=self._storage.disks(self.applications),
            network=network if user else None,
            console_log=self.directory.console_log,
            vm_log=self.directory.vm_log,
            machine=self.definition.machine,
            cpu=self.definition.cpu,
            vsock_cid=self.definition.vsock_cid if self._options.transport == "vsock" else None,
        )

    async def _provision(self, boot: Boot) -> None:
        """Hand over the applications; again when the manager begins anew before it is done."""
        infos = await asyncio.to_thread(self._infos)
        for attempt in range(1, _PROVISION_ATTEMPTS + 1):
            try:
                channel = await boot.connected(_RECONNECT_S)
                for application in self.stored.reformat:
                    if application in self.applications:
                        await self._allow_reformat(channel, application)
                await channel.request({"ProvisionInfo": infos}, self._limits.provision)
            except WardenError as error:
                if error.code == "data-at-risk":
                    error.hint = f"islet app reformat {self.name} APP --yes discards the data"
                if error.code != "realm-gone" or attempt == _PROVISION_ATTEMPTS:
                    raise
                log.warning("realm %s: its manager began anew while provisioning", self.name)
            else:
                channel.reset.clear()
                return

    async def _allow_reformat(self, channel: RealmChannel, application: uuid.UUID) -> None:
        try:
            await channel.request({"AllowReformat": str(application)}, self._limits.response)
        except RealmRefusedError as error:
            if error.kind != "InvalidRequest":
                raise
            raise WardenError("this realm's manager cannot discard data on order", code="not-supported") from error

    def _infos(self) -> list[dict[str, str]]:
        partitions = self._storage.partitions(self.applications)
        rewrite = self._options.network == "user"
        return [
            {
                "id": str(application),
                "name": config.name,
                "version": config.version,
                "image_registry": seen_by_realm(config.image_registry) if rewrite else config.image_registry,
                "image_part_uuid": str(partitions[application].image.guid),
                "data_part_uuid": str(partitions[application].data.guid),
            }
            for application, config in self.applications.items()
        ]

    async def _token_by_short_boot(self, challenge: bytes) -> bytes:
        try:
            boot = await self._launch()
            channel = await boot.connected(self._limits.connect)
            token = await boot.while_alive(_token(channel, challenge, self._limits.response))
            await boot.shut_down("Shutdown", self._limits.stop)
            return token
        finally:
            await self._abandon()
            self._halted(self.stored.last_error)

    # ------------------------------------------------------------------------------ watching a VM

    async def _watch(self, boot: Boot) -> None:
        """Notice the VM's end, and a manager that begins anew, while the realm runs."""
        channel = boot.channel
        assert channel is not None
        exited = asyncio.create_task(boot.vm.wait())
        reset = asyncio.create_task(channel.reset.wait())
        try:
            await asyncio.wait({exited, reset}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            exited.cancel()
            reset.cancel()
        if self.busy is not None:
            return
        if boot.vm.exit_status is not None:
            log.warning("realm %s: %s", self.name, boot.vm.describe_exit())
            await self._abandon()
            self._halted(boot.vm.describe_exit())
            return
        log.warning("realm %s: its manager began anew; provisioning again", self.name)
        self._watcher = None
        try:
            await self.run("provisioning", self._provision_again(boot))
        except IsletError as error:
            log.error("realm %s: %s", self.name, error.message)

    async def _provision_again(self, boot: Boot) -> None:
        self.state = PROVISIONING
        try:
            await boot.while_alive(self._provision(boot))
        except BaseException as error:
            await self._abandon()
            self._halted(_cause(error))
            raise
        self.state = RUNNING
        self._watcher = asyncio.create_task(self._watch(boot))

    def _unwatch(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()

    # -------------------------------------------------------------------------------- bookkeeping

    def _halted(self, cause: str | None) -> None:
        self.boot = None
        self.state = HALTED
        self.published = self.definition.publish
        self.stored.desired = HALTED
        self.stored.vm_pid = self.stored.vm_started = None
        self.stored.last_error = cause
        self._save()

    def _save(self) -> None:
        """Write `state.json`; a full disk must not keep a realm from reaching Halted."""
        self.stored.applications = list(self.applications)
        try:
            self.directory.save_state(self.stored)
        except IsletError as error:
            log.error("realm %s: its state could not be written: %s", self.name, error.message)

    def save(self) -> None:
        """Write `state.json`.

        Raises:
            IsletError: The file system refused.
        """
        self.stored.applications = list(self.applications)
        self.directory.save_state(self.stored)

    def reload_definition(self) -> None:
        """Read the definition again after an update."""
        self.definition = definitions.load(self.directory)
        self.published = self.definition.publish

    @property
    def storage(self) -> Storage:
        return self._storage

    @property
    def limits(self) -> Timeouts:
        return self._limits

    def kill(self) -> None:
        """End the VM at once (second signal)."""
        if self.boot is not None:
            self.boot.kill()


async def _token(channel: RealmChannel, challenge: bytes, timeout_s: float) -> bytes:
    name, content = await channel.request({"GetAttestationToken": list(challenge)}, timeout_s)
    if name != "AttestationToken":
        raise WardenError(f"the realm answered {name} instead of a token", code="protocol")
    return bytes(content)


def _cause(error: BaseException) -> str:
    if isinstance(error, IsletError):
        return error.message
    return "cancelled" if isinstance(error, asyncio.CancelledError) else f"{type(error).__name__}: {error}"
