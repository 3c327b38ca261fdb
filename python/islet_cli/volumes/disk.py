"""Disk files: the shared disk of a realm and the disk of a single application.

Every change of a table is crash-safe: the backup copy is written and flushed first, then the primary.
A kill at any instant leaves a valid primary (the old table, whatever the backup says) or a torn
primary beside a valid backup (the new table); `load` tells which, `repair` makes both copies agree.

Source: UEFI Specification 2.10, section 5.3.2 (both headers; which of them counts).
"""

from __future__ import annotations

import ctypes
import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from islet_cli.fsutil import fsync_directory
from islet_cli.volumes.gpt import (
    BACKUP_SECTORS,
    ENTRIES_SECTORS,
    ENTRY_COUNT,
    ENTRY_SIZE,
    LARGEST_MIB,
    MIB_SECTORS,
    PRIMARY_SECTORS,
    SECTOR,
    DiskError,
    Header,
    Partition,
    Table,
    application_table,
    parse_entries,
    parse_header,
    table_of,
)

LARGEST_APPLICATIONS = ENTRY_COUNT // 2
_MIB = MIB_SECTORS * SECTOR
_PUNCH_HOLE_KEEP_SIZE = 0x01 | 0x02
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Loaded:
    """What was found on a disk."""

    table: Table
    consistent: bool
    """Both copies are valid, agree, and stand at the two ends of the file."""


# ---------------------------------------------------------------------------------------- reading


def load(path: Path) -> Loaded:
    """Read and check the partition table of `path`. Nothing is written.

    A valid primary counts; without one, a valid backup at the end of the file does.

    Raises:
        DiskError: The file cannot be read or has no valid table.
    """
    with _opened(path, os.O_RDONLY) as descriptor:
        return _load(descriptor, path)


def require_consistent(path: Path) -> Table:
    """Like `load`, but require both copies to be valid and equal."""
    loaded = load(path)
    if not loaded.consistent:
        raise DiskError(f"{path}: the two copies of the partition table differ")
    return loaded.table


def _load(descriptor: int, path: Path) -> Loaded:
    last = os.fstat(descriptor).st_size // SECTOR - 1
    try:
        primary = _read_table(descriptor, 1)
    except DiskError as error:
        try:
            return Loaded(_read_table(descriptor, last), consistent=False)
        except DiskError:
            raise DiskError(
                f"{path}: {error.message}, and there is no valid backup either",
                hint="restore the disk file; it was left as it is",
            ) from error
    if primary.sectors - 1 > last:
        raise DiskError(f"{path}: the file has {last + 1} sectors, its partition table needs {primary.sectors}")
    try:
        consistent = primary.sectors - 1 == last and _read_table(descriptor, last) == primary
    except DiskError:
        consistent = False
    return Loaded(primary, consistent)


def _read_table(descriptor: int, lba: int) -> Table:
    if lba < 1:
        raise DiskError("the disk is too small for a partition table")
    header: Header = parse_header(os.pread(descriptor, SECTOR, lba * SECTOR), lba)
    expected = 2 if lba == 1 else lba - ENTRIES_SECTORS
    if header.entries_lba != expected:
        raise DiskError(f"LBA {lba}: the partition entries are said to be at LBA {header.entries_lba}")
    entries = os.pread(descriptor, ENTRY_COUNT * ENTRY_SIZE, expected * SECTOR)
    return table_of(header, parse_entries(header, entries))


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _disk_error(error, path) from error
    try:
        yield descriptor
    except OSError as error:
        raise _disk_error(error, path) from error
    finally:
        os.close(descriptor)


def _disk_error(error: OSError, path: Path) -> DiskError:
    hint = "free some space and try again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    return DiskError(f"{path}: {error.strerror or error}", hint=hint)


# ---------------------------------------------------------------------------------------- writing


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _commit(descriptor: int, table: Table) -> None:
    """Put `table` on the disk, whose file gets exactly its size: backup first, then primary."""
    table.validate()
    size = table.sectors * SECTOR
    if os.fstat(descriptor).st_size < size:
        os.ftruncate(descriptor, size)
    _write(descriptor, table.encode_backup(), size - BACKUP_SECTORS * SECTOR)
    os.fsync(descriptor)
    _write(descriptor, table.encode_primary(), 0)
    os.fsync(descriptor)
    if os.fstat(descriptor).st_size > size:
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)


def _punch(descriptor: int, first: int, sectors: int) -> None:
    """Make sectors read as zero and give their space back."""
    offset, length = first * SECTOR, sectors * SECTOR
    result = _LIBC.fallocate(descriptor, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_longlong(offset), ctypes.c_longlong(length))
    if result != 0:
        code = ctypes.get_errno()
        if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(code, os.strerror(code))
        zeros = bytes(_MIB)
        for position in range(offset, offset + length, _MIB):
            _write(descriptor, zeros[: min(_MIB, offset + length - position)], position)
    os.fsync(descriptor)


def _copy(source: int, start: int, target: int, destination: int, length: int) -> None:
    """Copy `length` bytes that are not holes; the destination reads as zero beforehand."""
    position, end = start, start + length
    while position < end:
        try:
            position = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        stop = min(os.lseek(source, position, os.SEEK_HOLE), end)
        while position < stop:
            data = os.pread(source, min(stop - position, 4 << 20), position)
            if not data:
                return
            _write(target, data, destination + position - start)
            position += len(data)


def check_sizes(image_mib: int, data_mib: int) -> None:
    """Require both sizes in 1..102400 MiB.

    Raises:
        DiskError: One is not (`bad-config`).
    """
    for what, size in (("image", image_mib), ("data", data_mib)):
        if not 1 <= size <= LARGEST_MIB:
            raise DiskError(f"{what} storage of {size} MiB: must be 1 to {LARGEST_MIB} MiB", code="bad-config")


# ------------------------------------------------------------------------------------ shared disk


def partition_names(application: uuid.UUID) -> tuple[str, str]:
    """The names of an application's image and data partitions on the shared disk."""
    return f"i-{application.hex}", f"d-{application.hex}"


@dataclass(frozen=True)
class ApplicationPartitions:
    """Where an application lives."""

    image: Partition
    data: Partition


class SharedDisk:
    """One GPT disk for all applications of a realm: two partitions each, 1 MiB aligned, up to 64 applications.

    The file is opened for each operation; the caller makes sure that no VM uses it meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> SharedDisk:
        """Make a new disk with an empty table.

        Raises:
            DiskError: It exists already, or the file system refused (nothing is left behind then).
        """
        with _created(path) as descriptor:
            _commit(descriptor, Table(uuid.uuid4(), 2 * MIB_SECTORS))
        return cls(path)

    def table(self) -> Table:
        """Read the table.

        Raises:
            DiskError: There is no valid one.
        """
        return load(self.path).table

    def repair(self) -> bool:
        """Make both copies of the table agree after a crash or damage; return whether anything was written.

        Raises:
            DiskError: Neither copy is valid; nothing is written.
        """
        with _opened(self.path, os.O_RDWR) as descriptor:
            loaded = _load(descriptor, self.path)
            if not loaded.consistent:
                _commit(descriptor, loaded.table)
            return not loaded.consistent

    def applications(self) -> dict[uuid.UUID, ApplicationPartitions]:
        """Every application that has both partitions."""
        images: dict[str, Partition] = {}
        data: dict[str, Partition] = {}
        for partition in self.table().partitions:
            kind, _, name = partition.name.partition("-")
            {"i": images, "d": data}.get(kind, {})[name] = partition
        return {
            uuid.UUID(name): ApplicationPartitions(images[name], data[name])
            for name in images.keys() & data.keys()
            if len(name) == 32 and all(digit in "0123456789abcdef" for digit in name)
        }

    def find(self, application: uuid.UUID) -> ApplicationPartitions:
        """The partitions of one application.

        Raises:
            DiskError: It has none.
        """
        found = self.applications().get(application)
        if found is None:
            raise DiskError(f"{self.path}: no partitions of application {application}")
        return found

    def create_application(self, application: uuid.UUID, image_mib: int, data_mib: int) -> ApplicationPartitions:
        """Allocate two partitions that read as zero.

        Raises:
            DiskError: Sizes out of range, 64 applications already, or the file system refused.
        """
        check_sizes(image_mib, data_mib)
        image_name, data_name = partition_names(application)
        with self._changing() as (descriptor, table):
            if table.by_name(image_name) or table.by_name(data_name):
                raise DiskError(f"{self.path}: application {application} has partitions already")
            if len(table.partitions) + 2 > ENTRY_COUNT:
                raise DiskError(f"{self.path}: holds {LARGEST_APPLICATIONS} applications already", code="bad-config")
            table, image_first = _reserve(descriptor, table, image_mib * MIB_SECTORS)
            image = Partition(uuid.uuid4(), image_first, image_first + image_mib * MIB_SECTORS - 1, image_name)
            reserved = table.with_partitions(image)
            reserved, data_first = _reserve(descriptor, reserved, data_mib * MIB_SECTORS, committed=table)
            data = Partition(uuid.uuid4(), data_first, data_first + data_mib * MIB_SECTORS - 1, data_name)
            _punch(descriptor, image.first, image.sectors)
            _punch(descriptor, data.first, data.sectors)
            _commit(descriptor, reserved.with_partitions(data))
        return ApplicationPartitions(image, data)

    def remove_application(self, application: uuid.UUID) -> None:
        """Zero and free the partitions of an application; without partitions nothing happens."""
        names = partition_names(application)
        with self._changing() as (descriptor, table):
            found = [partition for partition in table.partitions if partition.name in names]
            for partition in found:
                _punch(descriptor, partition.first, partition.sectors)
            if found:
                _commit(descriptor, table.without(*(partition.guid for partition in found)))

    def resize(self, guid: uuid.UUID, size_mib: int, *, keep: bool) -> None:
        """Give a partition another size; its GUID and name stay.

        Args:
            guid: The partition.
            size_mib: New size in MiB.
            keep: Copy the content (only when growing); otherwise the partition reads as zero afterwards.

        Raises:
            DiskError: Unknown partition, size out of range, shrinking with `keep` (`data-at-risk`).
        """
        check_sizes(size_mib, 1)
        with self._changing() as (descriptor, table):
            old = table.by_guid(guid)
            if old is None:
                raise DiskError(f"{self.path}: no partition {guid}")
            sectors = size_mib * MIB_SECTORS
            if sectors == old.sectors:
                return
            if keep and sectors < old.sectors:
                raise DiskError(f"partition {old.name}: shrinking would lose data", code="data-at-risk")
            table, first = _reserve(descriptor, table, sectors)
            _punch(descriptor, first, sectors)
            if keep:
                _copy(descriptor, old.start_bytes, descriptor, first * SECTOR, old.size_bytes)
                os.fsync(descriptor)
            _commit(descriptor, table.with_partitions(replace(old, first=first, last=first + sectors - 1)))
            _punch(descriptor, old.first, old.sectors)

    @contextmanager
    def _changing(self) -> Iterator[tuple[int, Table]]:
        """Open the disk for a change, with both copies of its table in agreement."""
        with _opened(self.path, os.O_RDWR) as descriptor:
            loaded = _load(descriptor, self.path)
            if not loaded.consistent:
                _commit(descriptor, loaded.table)
            yield descriptor, loaded.table


def _reserve(descriptor: int, table: Table, sectors: int, *, committed: Table | None = None) -> tuple[Table, int]:
    """Find room for `sectors` sectors on a 1 MiB boundary, extending the disk when there is none.

    Args:
        table: What is taken already, planned partitions included.
        committed: The partitions to write when the disk grows; `table` itself unless some are only planned.

    Returns:
        The table, for a longer disk perhaps, and the first LBA of the room.
    """
    free = MIB_SECTORS
    for partition in sorted(table.partitions, key=lambda entry: entry.first):
        if partition.first - free >= sectors:
            return table, free
        free = -(-(partition.last + 1) // MIB_SECTORS) * MIB_SECTORS
    needed = -(-(free + sectors + BACKUP_SECTORS) // MIB_SECTORS) * MIB_SECTORS
    if needed > table.sectors:
        table = replace(table, sectors=needed)
        _commit(descriptor, replace(committed or table, sectors=needed))
    return table, free


@contextmanager
def _created(path: Path) -> Iterator[int]:
    """A new file, removed again when the block fails."""
    with _opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as descriptor:
        try:
            yield descriptor
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    fsync_directory(path.parent)


# ---------------------------------------------------------------------- one application's own disk


def create_application_disk(path: Path, image_mib: int, data_mib: int) -> Table:
    """Make the disk of one application in upstream's layout, sparse, with random GUIDs.

    Raises:
        DiskError: Sizes out of range (`bad-config`), or the file system refused; nothing is left behind.
    """
    check_sizes(image_mib, data_mib)
    table = application_table(
        image_mib, data_mib, disk_guid=uuid.uuid4(), image_guid=uuid.uuid4(), data_guid=uuid.uuid4()
    )
    with _created(path) as descriptor:
        _commit(descriptor, table)
    return table


def read_application_disk(path: Path, image_mib: int, data_mib: int) -> ApplicationPartitions:
    """Find the partitions `image` and `data` of an application's disk and require the configured sizes.

    Raises:
        DiskError: Damaged, or of another size.
    """
    table = require_consistent(path)
    found = ApplicationPartitions(_named(table, path, "image"), _named(table, path, "data"))
    for partition, size in ((found.image, image_mib), (found.data, data_mib)):
        if partition.sectors != size * MIB_SECTORS:
            raise DiskError(f"{path}: partition {partition.name} has {partition.sectors} sectors, not {size} MiB")
    return found


def resize_application_disk(path: Path, image_mib: int, data_mib: int, *, discard: bool = False) -> None:
    """Rewrite an application's disk with other sizes: same GUIDs; contents are copied to partitions that grow.

    The new disk is built aside and renamed over the old one.

    Raises:
        DiskError: The data partition would shrink and not `discard` (`data-at-risk`), or the disk is damaged.
    """
    check_sizes(image_mib, data_mib)
    old = require_consistent(path)
    image, data = _named(old, path, "image"), _named(old, path, "data")
    if data_mib * MIB_SECTORS < data.sectors and not discard:
        raise DiskError("shrinking the data partition would lose data", code="data-at-risk")
    table = application_table(image_mib, data_mib, disk_guid=old.guid, image_guid=image.guid, data_guid=data.guid)
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)
    with _created(aside) as descriptor, _opened(path, os.O_RDONLY) as source:
        for before, after in zip((image, data), table.partitions, strict=True):
            if after.sectors >= before.sectors:
                _copy(source, before.start_bytes, descriptor, after.start_bytes, before.size_bytes)
        _commit(descriptor, table)
    aside.replace(path)
    fsync_directory(path.parent)


def _named(table: Table, path: Path, name: str) -> Partition:
    partition = table.by_name(name)
    if partition is None:
        raise DiskError(f"{path}: no partition named {name}")
    return partition


assert PRIMARY_SECTORS <= MIB_SECTORS, "aligned partitions begin behind the primary table"
