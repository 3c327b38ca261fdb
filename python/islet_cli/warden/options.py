"""How a warden is set up: where things are, and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Timeouts:
    """Limits in seconds."""

    connect: float = 60.0
    """From launch until the realm's manager is connected."""
    provision: float = 600.0
    """For the answer to ProvisionInfo: downloads take longer than a boot."""
    response: float = 10.0
    """For every other answer."""
    stop: float = 15.0
    """From Shutdown until the VM has ended by itself."""
    stop_application: float = 13.0
    """For StopApp: the application's grace period of 8 s, and 5 s more."""
    query: float = 2.0
    """For what `list` and `inspect` ask a running realm."""


@dataclass(frozen=True)
class WardenOptions:
    """Settings of a warden process."""

    workdir: Path
    socket: Path
    platform_socket: Path
    accel: str = "auto"
    network: Literal["user", "none"] = "user"
    transport: Literal["virtio-serial", "vsock"] = "virtio-serial"
    vsock_port: int = 1337
    virtualizer: Path | None = None
    socket_mode: int = 0o600
    timeouts: Timeouts = field(default_factory=Timeouts)
