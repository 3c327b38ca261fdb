"""What a runner is asked for and what it gives back. Runners are `runner_qemu` and a fake one in tests."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from islet_cli.launch.plan import LaunchPlan
from islet_cli.warden.console import Console
from islet_cli.warden.errors import WardenError
from islet_cli.warden.network import Network
from islet_cli.warden.platform_session import Activation


class VmFailedError(WardenError):
    """The VM process ended or hung before its guest came up."""

    default_code = "launch-failed"


@dataclass(frozen=True)
class Disk:
    """One block device; `serial` has at most 20 characters."""

    path: Path
    serial: str


@dataclass(frozen=True)
class LaunchRequest:
    """One VM process: the measured launch, its devices and where its output goes."""

    realm: uuid.UUID
    plan: LaunchPlan
    activation: Activation
    disks: tuple[Disk, ...]
    network: Network | None
    """None: the VM has no network device."""
    console_log: Path
    vm_log: Path
    machine: str | None = None
    cpu: str | None = None
    vsock_cid: int | None = None


class Vm(Protocol):
    """A running VM. `exit_status` is None until the process has been reaped."""

    pid: int
    started: int
    accel: str
    console: Console
    exit_status: int | None

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The host's end of the control channel."""

    async def wait(self) -> int:
        """Wait until the process has ended and everything of it is cleaned up; return its status."""

    def terminate(self) -> None:
        """Ask the process to end at once."""

    def kill(self) -> None:
        """End the process by force."""

    def describe_exit(self) -> str:
        """Exit status and the last lines of diagnostics and console."""


class Runner(Protocol):
    """Starts VMs."""

    announced: bool
    """The control channel has no connections of its own; see `RealmChannel`."""

    async def launch(self, request: LaunchRequest) -> Vm:
        """Start a VM process.

        Raises:
            IsletError: It could not be started; nothing is left behind.
        """

    def fall_back(self) -> bool:
        """Choose a slower accelerator from now on, after one that was chosen freely brought no guest up.

        Returns:
            Whether there is another one to try.
        """
