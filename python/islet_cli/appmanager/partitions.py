"""Partitions found by GUID, by reading the partition tables ourselves.

The disks are the host's. A table is believed only when everything in it agrees with itself, and a partition only
when the kernel's own view of it (start and size in sysfs) is the same.

Source: UEFI specification 2.10, section 5.3 (GPT).
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from islet_cli.errors import InputError, OperationError

SECTOR = 512
HEADER_SIZE = 92
ENTRY_SIZE = 128
MAX_ENTRIES = 1024

_SIGNATURE = b"EFI PART"
_REVISION = 0x00010000
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_NOT_DISKS = ("dm-", "loop", "ram", "zram", "md", "sr", "nbd", "fd")
_SYSFS = Path("/sys/class/block")
_DEV = Path("/dev")


class PartitionError(OperationError):
    """A disk or partition is missing or contradictory (`disk`)."""

    default_code = "disk"


@dataclass(frozen=True)
class Entry:
    """One used entry of a table.

    Attributes:
        number: Position in the table, from 1.
        guid: Lower-case hyphenated unique GUID.
        first: First sector.
        sectors: Length in 512-byte sectors.
    """

    number: int
    guid: str
    first: int
    sectors: int


@dataclass(frozen=True)
class Partition:
    """A block device that holds one partition.

    Attributes:
        guid: Lower-case hyphenated unique GUID.
        device: Its node.
        number: `MAJOR:MINOR`, as device-mapper tables name it.
        sectors: Length in 512-byte sectors.
    """

    guid: str
    device: Path
    number: str
    sectors: int


def guid_text(raw: bytes) -> str:
    """A GUID of a table (mixed-endian) as text."""
    first, second, third = struct.unpack_from("<IHH", raw)
    return f"{first:08x}-{second:04x}-{third:04x}-{raw[8:10].hex()}-{raw[10:].hex()}"


def _invalid(problem: str) -> InputError:
    return InputError(f"partition table: {problem}", code="gpt")


@dataclass(frozen=True)
class _Header:
    first_usable: int
    last_usable: int
    entries_lba: int
    count: int
    entries_crc: int


def _parse_header(sector: bytes, own_lba: int, last_lba: int) -> _Header:
    if len(sector) < HEADER_SIZE:
        raise _invalid("header is cut off")
    fields = _HEADER.unpack_from(sector)
    signature, revision, size, crc, reserved, lba, other, first, last, _disk, entries, count, width, array_crc = fields
    if signature != _SIGNATURE or revision != _REVISION or size != HEADER_SIZE or reserved != 0:
        raise _invalid("no header of version 1.0")
    if zlib.crc32(sector[:16] + b"\0\0\0\0" + sector[20:HEADER_SIZE]) != crc:
        raise _invalid("header checksum does not hold")
    if lba != own_lba or other > last_lba:
        raise _invalid("header does not stand where it says")
    if width != ENTRY_SIZE or not 1 <= count <= MAX_ENTRIES:
        raise _invalid("unusual entry size or number")
    if not first <= last <= last_lba:
        raise _invalid("usable range is empty or past the disk's end")
    end = entries + -(-count * ENTRY_SIZE // SECTOR)
    if not 1 < entries < end <= last_lba or (entries <= last and end > first):
        raise _invalid("entries overlap the usable range")
    return _Header(first, last, entries, count, array_crc)


def _parse_entries(array: bytes, header: _Header) -> list[Entry]:
    if zlib.crc32(array) != header.entries_crc:
        raise _invalid("entries checksum does not hold")
    out = []
    for index in range(header.count):
        kind, guid, first, last, _attributes, _name = _ENTRY.unpack_from(array, index * ENTRY_SIZE)
        if kind == bytes(16):
            continue
        if not header.first_usable <= first <= last <= header.last_usable:
            raise _invalid(f"partition {index + 1} lies outside the usable range")
        out.append(Entry(index + 1, guid_text(guid), first, last - first + 1))
    ordered = sorted(out, key=lambda entry: entry.first)
    for left, right in itertools.pairwise(ordered):
        if left.first + left.sectors > right.first:
            raise _invalid(f"partitions {left.number} and {right.number} overlap")
    if len({entry.guid for entry in out}) != len(out):
        raise _invalid("a GUID is repeated")
    return out


def parse_table(read: Callable[[int, int], bytes], total_sectors: int) -> list[Entry]:
    """Read a GUID partition table, from its backup when the primary one is damaged.

    Args:
        read: `read(lba, count)` gives `count` sectors from `lba` on.
        total_sectors: Size of the disk.

    Raises:
        InputError: Neither copy is valid (`gpt`); the message is the primary copy's.
    """
    if total_sectors < 68:
        raise _invalid("the disk is too small to have one")
    problem: InputError | None = None
    last = total_sectors - 1
    for lba in (1, last):
        try:
            header = _parse_header(read(lba, 1), lba, last)
            size = header.count * ENTRY_SIZE
            array = read(header.entries_lba, -(-size // SECTOR))
            if len(array) < size:
                raise _invalid("entries are cut off")
            return _parse_entries(array[:size], header)
        except InputError as error:
            problem = problem or error
    assert problem is not None
    raise problem


class ReadAt:
    """Reads sectors of a file or device."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, lba: int, count: int) -> bytes:
        with self._path.open("rb", buffering=0) as file:
            file.seek(lba * SECTOR)
            data = b""
            while len(data) < count * SECTOR:
                part = file.read(count * SECTOR - len(data))
                if not part:
                    break
                data += part
            return data


class PartitionFinder:
    """Finds partitions on the disks that the kernel shows.

    Args:
        sysfs: Where the kernel lists block devices.
        dev: Where their nodes are.
    """

    def __init__(self, sysfs: Path = _SYSFS, dev: Path = _DEV) -> None:
        self._sysfs = sysfs
        self._dev = dev

    def find(self, guid: str) -> Partition:
        """The one partition with this GUID.

        Raises:
            PartitionError: It is not there, there more than once, or the kernel sees it elsewhere.
        """
        found = [(disk, entry) for disk in self._disks() for entry in self._entries(disk) if entry.guid == guid]
        if len(found) != 1:
            problem = "not on any disk" if not found else "there more than once"
            raise PartitionError(f"partition {guid}: {problem}")
        return self._device(*found[0])

    def _disks(self) -> Iterator[str]:
        for entry in sorted(self._sysfs.iterdir()):
            if not entry.name.startswith(_NOT_DISKS) and not (entry / "partition").exists():
                yield entry.name

    def _entries(self, disk: str) -> list[Entry]:
        try:
            block = (self._sysfs / disk / "queue" / "logical_block_size").read_text().strip()
            if block != str(SECTOR):
                return []
            return parse_table(ReadAt(self._dev / disk), _number(self._sysfs / disk / "size"))
        except (OSError, InputError):
            # A disk without a readable table simply has no partitions of ours.
            return []

    def _device(self, disk: str, entry: Entry) -> Partition:
        for child in sorted((self._sysfs / disk).iterdir()):
            if not (child / "partition").exists() or _number(child / "partition") != entry.number:
                continue
            if (_number(child / "start"), _number(child / "size")) != (entry.first, entry.sectors):
                raise PartitionError(f"partition {entry.guid}: the kernel sees it elsewhere on {disk}")
            number = (child / "dev").read_text().strip()
            return Partition(entry.guid, self._dev / child.name, number, entry.sectors)
        raise PartitionError(f"partition {entry.guid}: the kernel does not show number {entry.number} of {disk}")


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError) as error:
        raise PartitionError(f"{path}: unreadable") from error
