"""Virtio-serial ports, found by the name that the virtual machine monitor gave them."""

from __future__ import annotations

from pathlib import Path

from islet_cli.errors import UnavailableError

SYSFS = Path("/sys/class/virtio-ports")
DEV = Path("/dev")


def find_port(name: str, *, sysfs: Path = SYSFS, dev: Path = DEV) -> Path:
    """The device node of the port `name`. Its number depends on the device order, so only the name counts.

    Raises:
        UnavailableError: There is none, or more than one.
    """
    found = []
    for entry in sorted(sysfs.glob("vport*")):
        try:
            text = (entry / "name").read_text().strip()
        except OSError:
            continue
        if text == name:
            found.append(dev / entry.name)
    if len(found) != 1:
        problem = "not there" if not found else "there more than once"
        raise UnavailableError(f"virtio-serial port {name}: {problem}", code="no-port")
    return found[0]
