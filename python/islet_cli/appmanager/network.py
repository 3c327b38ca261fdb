"""The realm's network addresses."""

from __future__ import annotations

import time
from collections.abc import Iterable

from islet_cli.appmanager.messages import InterfaceAddress

WAIT_S = 20.0

Row = tuple[str, bool, str, "str | None", "str | None"]


def choose_addresses(rows: Iterable[Row]) -> dict[str, InterfaceAddress]:
    """One address an interface: IPv4, else global IPv6, else link-local IPv6; no loopback.

    Args:
        rows: (interface, loopback, address, netmask, destination) as the kernel lists them.
    """
    import ipaddress

    best: dict[str, tuple[int, InterfaceAddress]] = {}
    for name, loopback, address, netmask, destination in rows:
        if loopback:
            continue
        parsed = ipaddress.ip_address(address)
        rank = 0 if parsed.version == 4 else 2 if parsed.is_link_local else 1
        if name not in best or rank < best[name][0]:
            best[name] = (rank, InterfaceAddress(address, netmask, destination))
    return {name: chosen for name, (_rank, chosen) in best.items()}


def addresses() -> dict[str, InterfaceAddress]:
    """The realm's addresses now.

    Raises:
        OperationError: The kernel refused.
    """
    from islet_cli import _native

    return choose_addresses(_native.guest.interface_addresses())


def wait_for_address(timeout_s: float = WAIT_S) -> bool:
    """Wait until an interface has an address that reaches others; False when the time is over."""
    import ipaddress

    deadline = time.monotonic() + timeout_s
    while True:
        if any(not ipaddress.ip_address(one.address).is_link_local for one in addresses().values()):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
