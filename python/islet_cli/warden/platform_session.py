"""One realm descriptor on the emulated platform, for the life of one VM process.

Source: docs/protocols.md (management interface).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from islet_cli.errors import IsletError
from islet_cli.launch.plan import LaunchPlan


@dataclass(frozen=True)
class Activation:
    """An active realm descriptor: what the VM must be started with.

    `kernel_fd` and `initramfs_fd` are the sealed copies that were measured; `bootargs` the measured
    kernel command line.
    """

    rd: str
    rim: str
    bootargs: str
    rsi_socket: str
    kernel_fd: int
    initramfs_fd: int


class PlatformSession(Protocol):
    """A management connection with one descriptor."""

    activation: Activation

    async def close(self) -> None:
        """Destroy the descriptor and close every file descriptor that came with it."""


class Platform(Protocol):
    """Makes realm descriptors."""

    async def activate(self, plan: LaunchPlan, metadata: bytes | None) -> PlatformSession:
        """Create, measure and activate.

        Raises:
            IsletError: The platform is unreachable, or it refused the launch or the metadata block.
        """


class EmulatedPlatform:
    """The platform process, reached through its management socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def activate(self, plan: LaunchPlan, metadata: bytes | None) -> PlatformSession:
        work = asyncio.ensure_future(asyncio.to_thread(_Session, self._socket, plan, metadata))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # The thread cannot be interrupted; what it makes must not be left behind.
            with contextlib.suppress(IsletError):
                await (await work).close()
            raise


class _Session:
    """Blocking calls, made in threads: measuring takes up to a second."""

    def __init__(self, socket: Path, plan: LaunchPlan, metadata: bytes | None) -> None:
        from islet_cli.platform.client import PlatformClient

        self._client = PlatformClient(socket)
        try:
            created = self._client.realm_create(plan.to_json())
            rd = created["rd"]
            if metadata is not None:
                self._client.realm_set_metadata(rd, metadata)
            rsi_socket, kernel_fd, initramfs_fd = self._client.realm_activate(rd)
        except BaseException:
            self._client.close()
            raise
        self.activation = Activation(rd, created["rim"], created["bootargs"], rsi_socket, kernel_fd, initramfs_fd)

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        with contextlib.suppress(IsletError, OSError):
            self._client.realm_destroy(self.activation.rd)
        self._client.close()
        for descriptor in (self.activation.kernel_fd, self.activation.initramfs_fd):
            with contextlib.suppress(OSError):
                os.close(descriptor)
