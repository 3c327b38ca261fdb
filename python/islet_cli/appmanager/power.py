"""Ending the machine."""

from __future__ import annotations

from typing import Literal, Protocol

Action = Literal["poweroff", "restart"]


class Power(Protocol):
    """Ends the machine."""

    def end(self, action: Action) -> None:
        """Flush all file systems, then power off or restart; returns only when that failed."""


class KernelPower:
    """reboot(2)."""

    def end(self, action: Action) -> None:
        from islet_cli import _native

        _native.guest.reboot(action)
