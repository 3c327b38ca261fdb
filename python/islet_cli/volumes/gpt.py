"""GUID partition tables: the exact bytes, and a reader that trusts none of them.

Sectors have 512 bytes. A table has 128 entries of 128 bytes; the primary copy stands in LBA 0..33
(protective MBR, header, entries), the backup in the last 33 sectors (entries, header).

Source: UEFI Specification 2.10, section 5 (GUID Partition Table Disk Layout).
"""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass, field, replace

from islet_cli.errors import OperationError

SECTOR = 512
MIB_SECTORS = 2048
ENTRY_COUNT = 128
ENTRY_SIZE = 128
ENTRIES_SECTORS = ENTRY_COUNT * ENTRY_SIZE // SECTOR
PRIMARY_SECTORS = 2 + ENTRIES_SECTORS
BACKUP_SECTORS = 1 + ENTRIES_SECTORS
LARGEST_MIB = 102_400
LINUX_FILE_SYSTEM = uuid.UUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4")

_HEADER = struct.Struct("<8s4sIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_SIGNATURE = b"EFI PART"
_REVISION = b"\x00\x00\x01\x00"
_NO_TYPE = bytes(16)


class DiskError(OperationError):
    """A disk cannot be read, or its partition table is not what it must be. Nothing was written."""

    default_code = "disk"


@dataclass(frozen=True)
class Partition:
    """One entry. `first` and `last` are inclusive LBAs; `name` has at most 36 UTF-16 units."""

    guid: uuid.UUID
    first: int
    last: int
    name: str
    type_guid: uuid.UUID = LINUX_FILE_SYSTEM
    attributes: int = 0

    @property
    def sectors(self) -> int:
        return self.last - self.first + 1

    @property
    def start_bytes(self) -> int:
        return self.first * SECTOR

    @property
    def size_bytes(self) -> int:
        return self.sectors * SECTOR

    def encode(self) -> bytes:
        name = self.name.encode("utf-16-le")
        if len(name) > 72:
            raise DiskError(f"partition name {self.name!r} is longer than 36 characters")
        return _ENTRY.pack(self.type_guid.bytes_le, self.guid.bytes_le, self.first, self.last, self.attributes, name)


@dataclass(frozen=True)
class Table:
    """A partition table for a disk of `sectors` sectors."""

    guid: uuid.UUID
    sectors: int
    partitions: tuple[Partition, ...] = field(default=())

    @property
    def first_usable(self) -> int:
        return PRIMARY_SECTORS

    @property
    def last_usable(self) -> int:
        return self.sectors - BACKUP_SECTORS - 1

    def by_guid(self, guid: uuid.UUID) -> Partition | None:
        return next((partition for partition in self.partitions if partition.guid == guid), None)

    def by_name(self, name: str) -> Partition | None:
        return next((partition for partition in self.partitions if partition.name == name), None)

    def with_partitions(self, *partitions: Partition) -> Table:
        """Return the table with `partitions` added, or put in place of those with the same GUID."""
        changed = {partition.guid: partition for partition in partitions}
        kept = [changed.pop(partition.guid, partition) for partition in self.partitions]
        return replace(self, partitions=(*kept, *changed.values()))

    def without(self, *guids: uuid.UUID) -> Table:
        return replace(self, partitions=tuple(entry for entry in self.partitions if entry.guid not in guids))

    def validate(self) -> None:
        """Require that every partition lies in the usable range, overlaps no other and has a GUID of its own.

        Raises:
            DiskError: It does not hold.
        """
        if self.last_usable < self.first_usable:
            raise DiskError(f"a disk of {self.sectors} sectors is too small for a partition table")
        if len(self.partitions) > ENTRY_COUNT:
            raise DiskError(f"{len(self.partitions)} partitions, a table holds {ENTRY_COUNT}")
        if len({partition.guid for partition in self.partitions}) != len(self.partitions):
            raise DiskError("two partitions have the same GUID")
        free = self.first_usable
        for partition in sorted(self.partitions, key=lambda entry: entry.first):
            if not free <= partition.first <= partition.last <= self.last_usable:
                raise DiskError(f"partition {partition.guid} overlaps another or leaves the usable range")
            free = partition.last + 1

    def encode_primary(self) -> bytes:
        """Return LBA 0..33: protective MBR, header, entries."""
        return self._mbr() + self._header(1, self.sectors - 1, 2) + self._entries()

    def encode_backup(self) -> bytes:
        """Return the last 33 sectors: entries, header."""
        return self._entries() + self._header(self.sectors - 1, 1, self.sectors - BACKUP_SECTORS)

    def _mbr(self) -> bytes:
        entry = b"\x00\x00\x02\x00\xee\xff\xff\xff" + struct.pack("<II", 1, min(self.sectors - 1, 0xFFFFFFFF))
        return bytes(446) + entry + bytes(48) + b"\x55\xaa"

    def _entries(self) -> bytes:
        return b"".join(entry.encode() for entry in self.partitions).ljust(ENTRY_COUNT * ENTRY_SIZE, b"\0")

    def _header(self, own: int, other: int, entries: int) -> bytes:
        def pack(crc: int) -> bytes:
            return _HEADER.pack(
                _SIGNATURE, _REVISION, _HEADER.size, crc, 0, own, other, self.first_usable, self.last_usable,
                self.guid.bytes_le, entries, ENTRY_COUNT, ENTRY_SIZE, zlib.crc32(self._entries()),
            )  # fmt: skip

        return pack(zlib.crc32(pack(0))).ljust(SECTOR, b"\0")


@dataclass(frozen=True)
class Header:
    """A header whose signature, sizes and checksum hold."""

    own_lba: int
    other_lba: int
    first_usable: int
    last_usable: int
    guid: uuid.UUID
    entries_lba: int
    entries_crc: int


def parse_header(sector: bytes, lba: int) -> Header:
    """Parse the header that was read from `lba`.

    Raises:
        DiskError: Signature, revision, sizes, checksum or own position are wrong.
    """
    if len(sector) < _HEADER.size:
        raise DiskError(f"LBA {lba}: no partition table header (the disk ends there)")
    (
        signature,
        revision,
        size,
        crc,
        reserved,
        own,
        other,
        first,
        last,
        guid,
        entries,
        count,
        entry_size,
        entries_crc,
    ) = _HEADER.unpack_from(sector)
    if signature != _SIGNATURE:
        raise DiskError(f"LBA {lba}: no partition table header")
    if revision != _REVISION or size != _HEADER.size or reserved or count != ENTRY_COUNT or entry_size != ENTRY_SIZE:
        raise DiskError(f"LBA {lba}: a partition table of an unknown form")
    zeroed = sector[:16] + bytes(4) + sector[20 : _HEADER.size]
    if zlib.crc32(zeroed) != crc:
        raise DiskError(f"LBA {lba}: the partition table header's checksum is wrong")
    if own != lba:
        raise DiskError(f"LBA {lba}: the partition table header belongs at LBA {own}")
    return Header(own, other, first, last, uuid.UUID(bytes_le=guid), entries, entries_crc)


def parse_entries(header: Header, data: bytes) -> tuple[Partition, ...]:
    """Parse the 16384 bytes of entries that belong to `header`.

    Raises:
        DiskError: The checksum is wrong, or a name is not UTF-16.
    """
    if len(data) != ENTRY_COUNT * ENTRY_SIZE or zlib.crc32(data) != header.entries_crc:
        raise DiskError(f"LBA {header.entries_lba}: the partition entries' checksum is wrong")
    partitions = []
    for type_guid, guid, first, last, attributes, name in _ENTRY.iter_unpack(data):
        if type_guid == _NO_TYPE:
            continue
        try:
            text = name.decode("utf-16-le").partition("\0")[0]
        except UnicodeDecodeError:
            raise DiskError(f"LBA {header.entries_lba}: a partition name is not UTF-16") from None
        type_ = uuid.UUID(bytes_le=type_guid)
        partitions.append(Partition(uuid.UUID(bytes_le=guid), first, last, text, type_, attributes))
    return tuple(partitions)


def table_of(header: Header, partitions: tuple[Partition, ...]) -> Table:
    """Join a header (primary or backup) and its entries into a table whose ranges hold.

    Raises:
        DiskError: The header's own values or a partition's range contradict each other.
    """
    last_lba = max(header.own_lba, header.other_lba)
    table = Table(header.guid, last_lba + 1, partitions)
    if min(header.own_lba, header.other_lba) != 1 or last_lba >= 1 << 55:
        raise DiskError("the two copies of the partition table are not at the two ends of the disk")
    if header.first_usable < table.first_usable or header.last_usable > table.last_usable:
        raise DiskError("the usable range covers the partition table itself")
    table.validate()
    return table


def application_table(
    image_mib: int, data_mib: int, *, disk_guid: uuid.UUID, image_guid: uuid.UUID, data_guid: uuid.UUID
) -> Table:
    """The table of one application's own disk, as upstream writes it: no alignment, partitions from LBA 34.

    Args:
        image_mib: Size of the partition `image` in MiB, 1 to 102400.
        data_mib: Size of the partition `data` in MiB, 1 to 102400.
        disk_guid: GUID of the disk.
        image_guid: GUID of the image partition.
        data_guid: GUID of the data partition.

    Source: the upstream warden's application disk (`gpt` crate 3.1.0).
    """
    image, data = image_mib * MIB_SECTORS, data_mib * MIB_SECTORS
    middle = PRIMARY_SECTORS + image
    return Table(
        disk_guid,
        PRIMARY_SECTORS + image + data + 1 + BACKUP_SECTORS,
        (
            Partition(image_guid, PRIMARY_SECTORS, middle - 1, "image"),
            Partition(data_guid, middle, middle + data - 1, "data"),
        ),
    )
