"""The few facts about ELF files that the builder needs, read from the file itself.

Source: System V ABI, chapters 4 and 5; Linux Standard Base, "Symbol Versioning"; Linux, kernel/module (`.modinfo`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from islet_cli.errors import InputError

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_STRTAB, _DT_VERNEED, _DT_VERNEEDNUM = 1, 5, 0x6FFFFFFE, 0x6FFFFFFF


@dataclass(frozen=True)
class Facts:
    """What a shared object or program needs: libraries by SONAME, and symbol versions such as `GLIBC_2.34`."""

    machine: int
    needed: tuple[str, ...]
    versions: tuple[str, ...]


def is_elf(data: bytes) -> bool:
    """Whether the bytes start like a 64-bit little-endian ELF file."""
    return data[:6] == b"\x7fELF\x02\x01"


def facts(data: bytes, *, what: str) -> Facts:
    """Read what an ELF file needs.

    Raises:
        InputError: Not a well-formed 64-bit little-endian ELF file (`bad-elf`).
    """
    try:
        segments = _segments(data)
        (machine,) = struct.unpack_from("<H", data, 18)
        dynamic = _dynamic(data, segments)
        strings = _offset(segments, dict(dynamic).get(_DT_STRTAB, 0))
        needed = tuple(_text(data, strings + value) for tag, value in dynamic if tag == _DT_NEEDED)
        return Facts(machine, needed, tuple(_versions(data, segments, dict(dynamic), strings)))
    except (struct.error, ValueError, IndexError) as error:
        raise InputError(f"{what}: not a well-formed ELF file: {error}", code="bad-elf") from error


def trimmed(data: bytes, *, what: str) -> bytes:
    """Cut off what no loader reads: everything after the last segment (symbol table, section headers).

    Raises:
        InputError: Not a well-formed ELF file (`bad-elf`).
    """
    try:
        end = max(offset + size for _kind, offset, _address, size in _segments(data))
    except (struct.error, ValueError) as error:
        raise InputError(f"{what}: not a well-formed ELF file: {error}", code="bad-elf") from error
    head = bytearray(data[:end])
    struct.pack_into("<Q", head, 40, 0)  # e_shoff
    struct.pack_into("<HH", head, 60, 0, 0)  # e_shnum, e_shstrndx
    return bytes(head)


def module_info(data: bytes, *, what: str) -> dict[str, list[str]]:
    """Return the `.modinfo` values of a kernel module by key (`depends`, `alias`, `vermagic`, …).

    Raises:
        InputError: Not a kernel module (`bad-elf`).
    """
    try:
        section = _section(data, ".modinfo")
    except (struct.error, ValueError, IndexError) as error:
        raise InputError(f"{what}: not a kernel module: {error}", code="bad-elf") from error
    out: dict[str, list[str]] = {}
    for item in section.split(b"\0"):
        key, equals, value = item.partition(b"=")
        if equals:
            out.setdefault(key.decode("ascii", "replace"), []).append(value.decode("utf-8", "replace"))
    return out


def _segments(data: bytes) -> list[tuple[int, int, int, int]]:
    """Return (type, file offset, address, size in the file) of each segment."""
    if not is_elf(data):
        raise ValueError("no ELF64 little-endian header")
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    out = []
    for index in range(count):
        kind, _flags, offset, address, _physical, in_file = struct.unpack_from("<IIQQQQ", data, table + index * size)
        if offset + in_file > len(data):
            raise ValueError("a segment lies outside of the file")
        out.append((kind, offset, address, in_file))
    if not out:
        raise ValueError("no segments")
    return out


def _dynamic(data: bytes, segments: list[tuple[int, int, int, int]]) -> list[tuple[int, int]]:
    for kind, offset, _address, size in segments:
        if kind == _PT_DYNAMIC:
            pairs = struct.iter_unpack("<QQ", data[offset : offset + size - size % 16])
            return [(tag, value) for tag, value in pairs if tag]
    return []


def _offset(segments: list[tuple[int, int, int, int]], address: int) -> int:
    for kind, offset, start, size in segments:
        if kind == _PT_LOAD and start <= address < start + size:
            return offset + address - start
    return 0


def _text(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode("ascii")


def _versions(
    data: bytes, segments: list[tuple[int, int, int, int]], dynamic: dict[int, int], strings: int
) -> list[str]:
    position = _offset(segments, dynamic.get(_DT_VERNEED, 0))
    out = []
    for _ in range(dynamic.get(_DT_VERNEEDNUM, 0)):
        _version, count, _file, first, following = struct.unpack_from("<HHIII", data, position)
        item = position + first
        for _ in range(count):
            _hash, _flags, _other, name, step = struct.unpack_from("<IHHII", data, item)
            out.append(_text(data, strings + name))
            item += step
        position += following
    return sorted(out)


def _section(data: bytes, wanted: str) -> bytes:
    if not is_elf(data):
        raise ValueError("no ELF64 little-endian header")
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    headers = [struct.unpack_from("<IIQQQQ", data, table + index * size) for index in range(count)]
    strings = headers[names][4]
    for name, _kind, _flags, _address, offset, length in headers:
        if _text(data, strings + name) == wanted:
            return data[offset : offset + length]
    raise ValueError(f"no section {wanted}")
