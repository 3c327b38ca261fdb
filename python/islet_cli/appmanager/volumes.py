"""The two encrypted partitions of an application.

An image partition holds, inside its dm-crypt mapping, the record area and two slots (see `record`): a new image goes
into a fresh file system in the idle slot, which is unmounted before the record names it. A data partition is formatted
only when it is fresh or when that was allowed; whatever else does not open is left exactly as it is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from islet_cli import _native, strictjson
from islet_cli.appmanager import filesystem
from islet_cli.appmanager.config import Crypto
from islet_cli.appmanager.devicemapper import Device, DeviceMapper, crypt_target, linear_target
from islet_cli.appmanager.partitions import SECTOR, Partition, PartitionFinder
from islet_cli.appmanager.record import Record, RecordArea, Slot, choose_slot
from islet_cli.errors import IsletError, OperationError
from islet_cli.fsutil import read_file, write_atomic

FRESH_CHECK = 1 << 20
"""A partition is fresh when its first MiB reads as zero before decryption."""

MARKER_SIZE = 4096
MARKER = b"islet: formatting this volume\n".ljust(MARKER_SIZE, b"\0")
"""Stands, encrypted, in the last 4 KiB (which the file system does not use) while a volume is formatted."""

DATA_LABEL = "data"
IMAGE_ROOT = "img"


class DataAtRiskError(OperationError):
    """A data partition holds something that these keys do not open. Nothing was written (`data-at-risk`)."""

    default_code = "data-at-risk"


class DataState(Enum):
    """What a data partition is found to be."""

    FRESH = "fresh"
    UNFINISHED = "unfinished"
    FILE_SYSTEM = "file-system"
    FOREIGN = "foreign"


class ImageVolume(Protocol):
    """An opened image partition."""

    def record(self) -> Record | None:
        """The installed image, if any."""

    def install(self, fill: Callable[[Path], None], record_of: Callable[[Slot], Record]) -> None:
        """Put a new image into the idle slot and switch to it; the old one stays until then.

        Args:
            fill: Unpacks the image into the directory that it is given; a sibling directory `fetch` may hold
                what it needs meanwhile.
            record_of: Makes the record for the slot that was filled.
        """

    def mount_live(self) -> Path:
        """Mount the installed image read-only; returns its root directory."""

    def close(self) -> None:
        """Unmount and unmap."""


class DataVolume(Protocol):
    """An opened data partition."""

    @property
    def state(self) -> DataState:
        """What was found."""

    def prepare(self) -> Path:
        """Format when the state asks for it, mount, and return the directory of the file system."""

    def close(self) -> None:
        """Unmount and unmap."""


class Storage(Protocol):
    """Opens partitions. Keys are wiped by the caller."""

    def open_image(self, guid: str, key: bytearray, directory: Path) -> ImageVolume: ...

    def open_data(self, guid: str, key: bytearray, directory: Path, *, allow_reformat: bool) -> DataVolume: ...

    def mount_overlay(self, lower: Path, data: Path, target: Path) -> None: ...

    def unmount(self, target: Path) -> None: ...


class CryptStorage:
    """Partitions of the realm's disks through dm-crypt."""

    def __init__(self, crypto: Crypto, fs_type: str, *, finder: PartitionFinder | None = None) -> None:
        self._crypto = crypto
        self._fs_type = fs_type
        self._finder = finder or PartitionFinder()
        self._mapper = DeviceMapper()

    def open_image(self, guid: str, key: bytearray, directory: Path) -> ImageVolume:
        return CryptImageVolume(self._mapper, self._map(self._finder.find(guid), key), directory)

    def open_data(self, guid: str, key: bytearray, directory: Path, *, allow_reformat: bool) -> DataVolume:
        partition = self._finder.find(guid)
        fresh = is_fresh(partition.device)
        device = self._map(partition, key)
        try:
            state = DataState.FRESH if fresh else recognise(device.node, device.sectors * SECTOR)
            if state is DataState.FOREIGN:
                if not allow_reformat:
                    raise DataAtRiskError(f"the data partition {guid} holds data that this image's keys do not open")
                state = DataState.FRESH
            return CryptDataVolume(self._mapper, device, directory, self._fs_type, state)
        except BaseException:
            self._mapper.remove(device.name)
            raise

    def _map(self, partition: Partition, key: bytearray) -> Device:
        """Map a partition. The key is in the key ring only while the table is loaded."""
        description = f"app-manager:{partition.guid}"
        name = f"crypt_{partition.guid}"
        serial = _native.guest.add_logon_key(description, bytes(key))
        try:
            target = crypt_target(partition.sectors, self._crypto, description, partition.number)
            return self._mapper.create(name, [target])
        finally:
            _native.guest.remove_key(serial)

    def mount_overlay(self, lower: Path, data: Path, target: Path) -> None:
        upper, work = data / "root", data / "workdir"
        work.mkdir(mode=0o700, exist_ok=True)
        if not upper.exists():
            upper.mkdir()
            shutil.copystat(lower, upper)
            status = lower.stat()
            os.chown(upper, status.st_uid, status.st_gid)
        filesystem.mount_overlay(lower, upper, work, target)

    def unmount(self, target: Path) -> None:
        _native.guest.unmount(target)


def is_fresh(device: Path) -> bool:
    """Whether the first MiB (or the whole of a smaller partition) reads as zero, before decryption."""
    with device.open("rb", buffering=0) as file:
        remaining = FRESH_CHECK
        while remaining:
            part = file.read(min(remaining, 1 << 16))
            if not part:
                return remaining < FRESH_CHECK
            if part.count(0) != len(part):
                return False
            remaining -= len(part)
    return True


def recognise(node: Path, size: int) -> DataState:
    """What a mapping shows that is not fresh: a marker, a file system of ours, or noise."""
    with node.open("rb", buffering=0) as file:
        file.seek(_marker_at(size))
        if file.read(MARKER_SIZE) == MARKER:
            return DataState.UNFINISHED
    superblock = filesystem.read_superblock(node)
    if superblock is not None and superblock.label == DATA_LABEL:
        return DataState.FILE_SYSTEM
    return DataState.FOREIGN


def _marker_at(size: int) -> int:
    return size // MARKER_SIZE * MARKER_SIZE - MARKER_SIZE


def write_block(node: Path, offset: int, data: bytes) -> None:
    """Write and flush."""
    descriptor = os.open(node, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.pwrite(descriptor, data, offset) != len(data):
            raise OperationError(f"{node}: short write", code="storage")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class CryptImageVolume:
    """See `ImageVolume`."""

    def __init__(self, mapper: DeviceMapper, device: Device, directory: Path) -> None:
        self._mapper = mapper
        self._device = device
        self._directory = directory
        self._area = RecordArea(device.node)
        self._cleanup = contextlib.ExitStack()
        self._cleanup.callback(mapper.remove, device.name)

    def record(self) -> Record | None:
        return self._area.read()

    def install(self, fill: Callable[[Path], None], record_of: Callable[[Slot], Record]) -> None:
        current = self._area.read()
        slot = choose_slot(self._device.sectors * SECTOR, current.slot if current else None)
        record = record_of(slot)
        with contextlib.ExitStack() as stack:
            device = self._map_slot("new", slot, stack)
            filesystem.make(device.node, "ext4", "image", slot.size, journal=False)
            place = self._directory / "install"
            filesystem.mount(device.node, place, "ext4")
            stack.callback(_native.guest.unmount, place)
            root = place / IMAGE_ROOT
            root.mkdir(mode=0o755)
            fill(root)
            shutil.rmtree(place / "fetch", ignore_errors=True)
            os.sync()
        self._area.write(record)

    def _map_slot(self, kind: str, slot: Slot, stack: contextlib.ExitStack, *, read_only: bool = False) -> Device:
        name = self._device.name.replace("crypt_", f"{kind}_", 1)
        target = linear_target(slot.size // SECTOR, self._device.number, slot.offset // SECTOR)
        device = self._mapper.create(name, [target], read_only=read_only)
        stack.callback(self._mapper.remove, name)
        return device

    def mount_live(self) -> Path:
        record = self._area.read()
        if record is None:
            raise OperationError("no image is installed", code="storage")
        device = self._map_slot("live", record.slot, self._cleanup, read_only=True)
        place = self._directory / "image"
        filesystem.mount(device.node, place, "ext4", read_only=True)
        self._cleanup.callback(_native.guest.unmount, place)
        return place / IMAGE_ROOT

    def close(self) -> None:
        self._cleanup.close()


class CryptDataVolume:
    """See `DataVolume`."""

    def __init__(self, mapper: DeviceMapper, device: Device, directory: Path, fs_type: str, state: DataState) -> None:
        self._device = device
        self._directory = directory
        self._fs_type = fs_type
        self._state = state
        self._size = _marker_at(device.sectors * SECTOR)
        self._cleanup = contextlib.ExitStack()
        self._cleanup.callback(mapper.remove, device.name)

    @property
    def state(self) -> DataState:
        return self._state

    def prepare(self) -> Path:
        node = self._device.node
        formatting = self._state is not DataState.FILE_SYSTEM
        if formatting:
            write_block(node, self._size, MARKER)
            filesystem.make(node, self._fs_type, DATA_LABEL, self._size, journal=self._fs_type != "ext2")
            os.sync()
        superblock = filesystem.read_superblock(node)
        if superblock is None:
            raise OperationError(f"{node}: no file system after formatting", code="storage")
        if superblock.has_errors:
            filesystem.repair(node)
        place = self._directory / "data"
        # Mounting read-write replays the journal after an unclean stop.
        filesystem.mount(node, place, self._fs_type)
        self._cleanup.callback(_native.guest.unmount, place)
        if formatting:
            # The marker goes last: a volume without it has a file system and knows that it is fresh.
            write_state(place, VolumeState())
            os.sync()
            write_block(node, self._size, bytes(MARKER_SIZE))
        if superblock.size < self._size // filesystem.BLOCK * filesystem.BLOCK:
            filesystem.grow(place, self._size)
        return place

    def close(self) -> None:
        self._cleanup.close()


# ---------------------------------------------------------------------------------------------------------
# What a data volume remembers outside the overlay, out of the application's reach

_STATE = "rollback.json"


@dataclass(frozen=True)
class VolumeState:
    """What a data volume remembers.

    Attributes:
        highest_security_version: The highest of all images that ran on it.
        fresh: No application was started on it yet. It stays so until one was, however often the realm is
            stopped before: else a host could wipe a disk, stop the realm after formatting, and have the
            application take an empty volume for its old one.
    """

    highest_security_version: int = 0
    fresh: bool = True


def read_state(data: Path) -> VolumeState:
    """Read the state from the root of a mounted data volume; a volume without one is new.

    Raises:
        OperationError: The file is damaged (`volume-state`); going on regardless would fail open.
    """
    path = data / _STATE
    if not path.exists():
        return VolumeState()
    try:
        value = strictjson.loads(read_file(path, limit=4096), what=_STATE)
    except IsletError as error:
        raise OperationError(error.message, code="volume-state") from error
    highest = value.get("highest_security_version") if isinstance(value, dict) else None
    fresh = value.get("fresh") if isinstance(value, dict) else None
    if type(highest) is not int or not 0 <= highest < 1 << 64 or type(fresh) is not bool:
        raise OperationError(f"{_STATE}: not the state of a volume", code="volume-state")
    return VolumeState(highest, fresh)


def write_state(data: Path, state: VolumeState) -> None:
    """Keep the state durably."""
    write_atomic(data / _STATE, strictjson.dumps({"schema": 1, **asdict(state)}))
