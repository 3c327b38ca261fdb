"""Device-mapper devices through the kernel's control node.

Source: Linux, include/uapi/linux/dm-ioctl.h (interface version 4) and Documentation/admin-guide/device-mapper/.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from islet_cli.appmanager.config import Crypto
from islet_cli.errors import OperationError

CONTROL = Path("/dev/mapper/control")
NAME_LIMIT = 127

_HEADER = struct.Struct("=3I2IIiIIIQ128s129s7x")
_TARGET = struct.Struct("=QQiI16s")
_VERSION = (4, 0, 0)
_BUFFER = 16384

_CREATE, _REMOVE, _SUSPEND, _STATUS, _LOAD, _TABLE_STATUS = 3, 4, 6, 7, 9, 12
_FLAG_READ_ONLY = 1
_FLAG_SUSPEND = 1 << 1
_FLAG_STATUS_TABLE = 1 << 4
_FLAG_SECURE_DATA = 1 << 15

_REMOVE_TRIES = 50
_REMOVE_DELAY_S = 0.1


class DeviceMapperError(OperationError):
    """The kernel refused a device-mapper request (`device-mapper`)."""

    default_code = "device-mapper"


@dataclass(frozen=True)
class Target:
    """One line of a table: `FIRST SECTORS KIND PARAMETERS`, in 512-byte sectors."""

    first: int
    sectors: int
    kind: str
    parameters: str


@dataclass(frozen=True)
class Device:
    """A live device: its name, node, and `MAJOR:MINOR` for other tables."""

    name: str
    node: Path
    number: str
    sectors: int


def crypt_target(sectors: int, crypto: Crypto, key_description: str, device: str, *, start: int = 0) -> Target:
    """A dm-crypt line whose key is the logon key `key_description`, never in the table itself.

    Args:
        sectors: Length of the mapping.
        crypto: Cipher, key size, IV offset and further options.
        key_description: Description of the key in the user key ring.
        device: `MAJOR:MINOR` of what is encrypted.
        start: First sector there.
    """
    options = f" {len(crypto.options)} {' '.join(crypto.options)}" if crypto.options else ""
    key = f":{crypto.key_size}:logon:{key_description}"
    return Target(0, sectors, "crypt", f"{crypto.cipher} {key} {crypto.iv_offset} {device} {start}{options}")


def linear_target(sectors: int, device: str, start: int) -> Target:
    """A part of another device, from sector `start` on."""
    return Target(0, sectors, "linear", f"{device} {start}")


def encode_targets(targets: list[Target]) -> bytes:
    """The targets as TABLE_LOAD takes them: each padded to 8 bytes, `next` relative to its own start."""
    out = b""
    for target in targets:
        text = target.parameters.encode() + b"\0"
        size = -(-(_TARGET.size + len(text)) // 8) * 8
        line = _TARGET.pack(target.first, target.sectors, 0, size, target.kind.encode()) + text
        out += line.ljust(size, b"\0")
    return out


class DeviceMapper:
    """The control node. Every method is one request; failures name the device and the kernel's reason."""

    def __init__(self, control: Path = CONTROL, dev: Path = Path("/dev")) -> None:
        self._control = control
        self._dev = dev

    def create(self, name: str, targets: list[Target], *, read_only: bool = False) -> Device:
        """Create, load and resume a device; nothing of it is left when a step fails."""
        number = self._request(_CREATE, name)[1]
        try:
            flags = _FLAG_SECURE_DATA | (_FLAG_READ_ONLY if read_only else 0)
            self._request(_LOAD, name, flags=flags, count=len(targets), data=encode_targets(targets))
            self._request(_SUSPEND, name)  # without the suspend flag this resumes
        except BaseException:
            with contextlib.suppress(DeviceMapperError):
                self._request(_REMOVE, name)
            raise
        major, minor = os.major(number), os.minor(number)
        sectors = max(target.first + target.sectors for target in targets)
        return Device(name, self._node(minor), f"{major}:{minor}", sectors)

    def _node(self, minor: int) -> Path:
        node = self._dev / f"dm-{minor}"
        deadline = time.monotonic() + 5
        while not node.exists():
            if time.monotonic() > deadline:
                raise DeviceMapperError(f"{node}: did not appear")
            time.sleep(0.01)
        return node

    def remove(self, name: str) -> None:
        """Remove a device; waits a little for its last user."""
        for attempt in range(_REMOVE_TRIES):
            try:
                self._request(_REMOVE, name)
                return
            except DeviceMapperError as error:
                if error.details.get("errno") != errno.EBUSY or attempt == _REMOVE_TRIES - 1:
                    raise
            time.sleep(_REMOVE_DELAY_S)

    def exists(self, name: str) -> bool:
        """Whether there is a device of this name."""
        try:
            self._request(_STATUS, name)
        except DeviceMapperError as error:
            if error.details.get("errno") == errno.ENXIO:
                return False
            raise
        return True

    def table(self, name: str) -> list[Target]:
        """The live table; the kernel shows the description of a key, never the key."""
        buffer, _number = self._request(_TABLE_STATUS, name, flags=_FLAG_STATUS_TABLE)
        return list(_decode_targets(buffer))

    def _request(
        self, command: int, name: str, *, flags: int = 0, count: int = 0, data: bytes = b""
    ) -> tuple[bytes, int]:
        encoded = name.encode()
        if not 0 < len(encoded) <= NAME_LIMIT or b"/" in encoded:
            raise DeviceMapperError(f"device-mapper name {name!r}: not usable")
        size = max(_BUFFER, _HEADER.size + len(data))
        header = _HEADER.pack(*_VERSION, size, _HEADER.size, count, 0, flags, 0, 0, 0, encoded, b"")
        buffer = bytearray((header + data).ljust(size, b"\0"))
        request = 3 << 30 | _HEADER.size << 16 | 0xFD << 8 | command
        try:
            descriptor = os.open(self._control, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(descriptor, request, buffer, True)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DeviceMapperError(
                f"device-mapper device {name}: {error.strerror}", code="device-mapper", errno=error.errno
            ) from error
        return bytes(buffer), int(_HEADER.unpack_from(buffer)[10])


def _decode_targets(buffer: bytes) -> Iterator[Target]:
    fields = _HEADER.unpack_from(buffer)
    base, count = fields[4], fields[5]
    at = base
    for _ in range(count):
        first, sectors, _status, following, kind = _TARGET.unpack_from(buffer, at)
        end = buffer.index(b"\0", at + _TARGET.size)
        parameters = buffer[at + _TARGET.size : end].decode("utf-8", "replace")
        yield Target(first, sectors, kind.rstrip(b"\0").decode("ascii", "replace"), parameters)
        at = base + following
