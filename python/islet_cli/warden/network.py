"""User-mode networking of a realm: published ports, forwards to registries, and the addresses in ProvisionInfo.

The network is closed (`restrict=on`) unless the launch says `internet`: the realm reaches only the
registries of its applications, each through a forwarder that QEMU starts per connection.

Source: QEMU documentation, "Network options" (`-netdev user`: restrict, hostfwd, guestfwd).
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from islet_cli.errors import InputError, UnavailableError
from islet_cli.warden.errors import WardenError

GUEST_REGISTRY = "10.0.2.100"
_REGISTRY = re.compile(r"(?:(https?)://)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*)(?::([0-9]{1,5}))?/?")
_FORWARDER = Path(__file__).with_name("forward.py")


@dataclass(frozen=True)
class Publish:
    """A port of the realm on an address of the host; `host_port` 0 lets the warden pick one."""

    address: str
    host_port: int
    guest_port: int

    def to_message(self) -> dict[str, object]:
        return {"address": self.address, "host_port": self.host_port, "guest_port": self.guest_port}


@dataclass(frozen=True)
class Forward:
    """A port of the guest-side address `10.0.2.100` that leads to a registry on the host's loopback."""

    host: str
    port: int

    def command(self) -> str:
        """The program that QEMU starts for each connection, in shell quoting."""
        return f"'{sys.executable}' -I -S '{_FORWARDER}' {self.host} {self.port}"


@dataclass(frozen=True)
class Network:
    """What one launch may reach and where it can be reached."""

    publish: tuple[Publish, ...] = field(default=())
    forwards: tuple[Forward, ...] = field(default=())
    internet: bool = False
    mac: str | None = None
    device: str = "virtio-net-pci"


@dataclass(frozen=True)
class RegistryAddress:
    """A registry as a configuration names it: `[scheme://]host[:port]`."""

    scheme: str | None
    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> RegistryAddress:
        """Raises InputError (`bad-config`) for anything else."""
        found = _REGISTRY.fullmatch(text)
        if found is None or (found[3] and not 1 <= int(found[3]) <= 65535):
            raise InputError(f"image registry {text!r}: expected HOST[:PORT] or a URL of it", code="bad-config")
        return cls(found[1], found[2], int(found[3]) if found[3] else None)

    @property
    def loopback(self) -> str | None:
        """The host's loopback address that is meant, or None."""
        name = self.host.strip("[]").lower()
        if name == "localhost":
            return "127.0.0.1"
        with contextlib.suppress(ValueError):
            return name if ipaddress.ip_address(name).is_loopback else None
        return None

    @property
    def effective_port(self) -> int:
        return self.port or (80 if self.scheme == "http" else 443)


def seen_by_realm(registry: str) -> str:
    """How a realm reaches `registry`: a loopback host becomes 10.0.2.100, everything else stays."""
    address = RegistryAddress.parse(registry)
    if address.loopback is None:
        return registry
    prefix = f"{address.scheme}://" if address.scheme else ""
    return f"{prefix}{GUEST_REGISTRY}:{address.effective_port}"


def forwards_for(registries: Iterable[str]) -> tuple[Forward, ...]:
    """One forward per loopback registry, by port.

    Raises:
        InputError: Two registries on different loopback addresses share a port (`bad-config`).
    """
    found: dict[int, Forward] = {}
    for registry in registries:
        address = RegistryAddress.parse(registry)
        if address.loopback is None:
            continue
        forward = Forward(address.loopback, address.effective_port)
        if found.setdefault(forward.port, forward) != forward:
            raise InputError(
                f"registries {found[forward.port].host} and {forward.host} share port {forward.port}",
                code="bad-config",
                hint="name both by the same address",
            )
    return tuple(found.values())


def check_publish(publish: Iterable[Publish]) -> None:
    """Require IPv4 addresses and guest ports, and no host port twice.

    Raises:
        InputError: `bad-config`.
    """
    taken = set()
    for item in publish:
        try:
            ipaddress.IPv4Address(item.address)
        except ValueError:
            raise InputError(f"published address {item.address!r}: not an IPv4 address", code="bad-config") from None
        if item.guest_port == 0:
            raise InputError("published guest port 0", code="bad-config")
        if item.host_port and (item.address, item.host_port) in taken:
            raise InputError(f"port {item.host_port} is published twice", code="bad-config")
        taken.add((item.address, item.host_port))


def bind_ports(publish: Iterable[Publish]) -> tuple[Publish, ...]:
    """Require that every published port is free now, and pick one where the port is 0.

    Raises:
        UnavailableError: `network`: one is in use or may not be bound.
    """
    bound = []
    with contextlib.ExitStack() as stack:
        for item in publish:
            probe = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((item.address, item.host_port))
            except OSError as error:
                raise UnavailableError(
                    f"port {item.address}:{item.host_port} cannot be published: {error.strerror}",
                    code="network",
                    hint="publish another port, or 0 for any free one (islet realm update -p 0:GUEST)",
                ) from error
            bound.append(replace(item, host_port=probe.getsockname()[1]))
    return tuple(bound)


def check_mac(mac: str) -> None:
    """Raises WardenError (`bad-config`) unless `mac` is six pairs of hex digits of a unicast address."""
    if not re.fullmatch(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}", mac) or int(mac[:2], 16) & 1:
        raise WardenError(f"MAC address {mac!r}: expected six pairs of hex digits, unicast", code="bad-config")
