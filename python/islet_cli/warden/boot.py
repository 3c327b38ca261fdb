"""One launch of a realm: platform descriptor, VM process and control channel, acquired and released together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from islet_cli.launch.plan import LaunchPlan
from islet_cli.warden.channel import RealmChannel, asyncio_timeout
from islet_cli.warden.errors import WardenError
from islet_cli.warden.platform_session import Activation, Platform, PlatformSession
from islet_cli.warden.runner import LaunchRequest, Runner, Vm

_TERMINATE_S = 5.0
T = TypeVar("T")
log = logging.getLogger(__name__)


class Boot:
    """A VM that runs. `end` must be called, whatever happens."""

    def __init__(self, session: PlatformSession, vm: Vm, announced: bool) -> None:
        self._session = session
        self.vm = vm
        self.channel: RealmChannel | None = None
        self._announced = announced
        self._ended = False

    @classmethod
    async def begin(
        cls,
        runner: Runner,
        platform: Platform,
        plan: LaunchPlan,
        metadata: bytes | None,
        request: Callable[[Activation], LaunchRequest],
    ) -> Boot:
        """Measure, activate and launch.

        Args:
            request: Makes the `LaunchRequest` from the activation.

        Raises:
            IsletError: Any of it failed; nothing is left behind.
        """
        session = await platform.activate(plan, metadata)
        try:
            vm = await runner.launch(request(session.activation))
        except BaseException:
            await session.close()
            raise
        return cls(session, vm, runner.announced)

    @property
    def activation(self) -> Activation:
        return self._session.activation

    async def connected(self, timeout_s: float) -> RealmChannel:
        """Wait until the manager is connected.

        Raises:
            WardenError: `realm-timeout`; `launch-failed` as soon as the VM has ended.
        """
        return await self.while_alive(self._connected(timeout_s))

    async def _connected(self, timeout_s: float) -> RealmChannel:
        try:
            async with asyncio_timeout(timeout_s):
                if self.channel is None or self.channel.closed.is_set():
                    self.channel = RealmChannel(*await self.vm.connect(), announced=self._announced)
                await self.channel.connected.wait()
                return self.channel
        except asyncio.TimeoutError:
            tail = self.vm.console.tail()
            raise WardenError(
                f"the realm did not connect within {timeout_s:g} s" + (f"; console: {tail}" if tail else ""),
                code="realm-timeout",
            ) from None

    async def while_alive(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work`, but give up as soon as the VM has ended.

        Raises:
            WardenError: `launch-failed`, with exit status and console.
        """
        task = asyncio.ensure_future(work)
        exited = asyncio.ensure_future(self.vm.wait())
        try:
            await asyncio.wait({task, exited}, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                # The channel breaks a moment before or after the process is reaped: the process is the cause.
                task.cancel()
                raise WardenError(self.vm.describe_exit(), code="launch-failed")
            if task.exception() is not None and await self._dies_now():
                raise WardenError(self.vm.describe_exit(), code="launch-failed")
            return task.result()
        finally:
            for pending in (task, exited):
                pending.cancel()
            await asyncio.gather(task, exited, return_exceptions=True)

    async def _dies_now(self) -> bool:
        """Whether a broken channel is the first sign of the VM's end."""
        if self.channel is None or not self.channel.closed.is_set():
            return False
        return await self._ends_within(1.0)

    async def _ends_within(self, seconds: float) -> bool:
        try:
            async with asyncio_timeout(seconds):
                await self.vm.wait()
        except asyncio.TimeoutError:
            return False
        return True

    async def shut_down(self, request: str, timeout_s: float) -> bool:
        """Send `Shutdown` or `Reboot`, wait for the VM to end, then use force; release everything.

        Returns:
            Whether force was needed.
        """
        forced = False
        try:
            if self.channel is not None and self.channel.connected.is_set():
                await self.channel.send_only({request: []})
                forced = not await self._ends_within(timeout_s)
            else:
                forced = self.vm.exit_status is None
            if forced:
                log.warning("VM %d does not end by itself; stopping it by force", self.vm.pid)
        finally:
            await self.end()
        return forced

    async def end(self) -> None:
        """End the VM process if it still runs, and release the channel and the descriptor; once."""
        if self._ended:
            return
        self._ended = True
        try:
            if self.vm.exit_status is None:
                self.vm.terminate()
                if not await self._ends_within(_TERMINATE_S):
                    self.vm.kill()
                    if not await self._ends_within(_TERMINATE_S):
                        log.error("VM process %d cannot be killed", self.vm.pid)
        finally:
            self.vm.kill()
            if self.channel is not None:
                await self.channel.close()
            with contextlib.suppress(Exception):
                await self._session.close()

    def kill(self) -> None:
        """End the VM at once; `end` still has to be called."""
        self.vm.kill()
