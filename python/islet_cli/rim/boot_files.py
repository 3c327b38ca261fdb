"""What is inside kernels and initial file systems: headers, sections, members.

The files are untrusted: sizes are bounded, and a file that is not what it seems yields nothing
rather than an error, except where the launch needs it.

Source: Linux `Documentation/arch/arm64/booting.rst` (Image header); Microsoft PE Format (section
table of the EFI stub); Linux `Documentation/driver-api/early-userspace/buffer-format.rst` (cpio).
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from islet_cli.errors import InputError
from islet_cli.fsutil import os_error

HEADER_SIZE = 64
UNPACKED_LIMIT = 1 << 30
_MAGIC = b"ARM\x64"
_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 20
_MAX_HEADER_VALUE = 1 << 40
_MAX_SECTIONS = 96
_MAX_MEMBERS = 1 << 17
_MAX_NAME = 4096
_CPIO_HEADER = 110


@dataclass(frozen=True)
class KernelImage:
    """An arm64 Image as a VMM of the second dialect loads it.

    `path` is where its bytes are: the file itself, or the unpacked copy in memory that `copy` keeps open.
    """

    path: Path
    size: int
    text_offset: int
    image_size: int
    copy: BinaryIO | None = field(default=None, compare=False, repr=False)


def open_kernel(path: Path) -> KernelImage:
    """Read the header of an arm64 Image, gzip-compressed or not.

    Raises:
        InputError: Missing or unreadable, no arm64 Image (`not-an-image`), or larger than 1 GiB unpacked.
    """
    copy = None
    with _open_regular(path, "kernel") as file:
        head = file.read(HEADER_SIZE)
        if head.startswith(_GZIP):
            file.seek(0)
            copy = _unpacked(file, path)
    target = path if copy is None else Path(f"/proc/self/fd/{copy.fileno()}")
    if copy is not None:
        head = os.pread(copy.fileno(), HEADER_SIZE, 0)
    if len(head) < HEADER_SIZE or head[0x38:0x3C] != _MAGIC:
        raise InputError(
            f"kernel {path}: not an arm64 Image", code="not-an-image", hint="this dialect boots arch/arm64/boot/Image"
        )
    text_offset, image_size = struct.unpack_from("<QQ", head, 8)
    for name, value in (("text_offset", text_offset), ("image_size", image_size)):
        if value > _MAX_HEADER_VALUE:
            raise InputError(f"kernel {path}: its header's {name} is {value:#x}", code="layout")
    return KernelImage(target, target.stat().st_size, text_offset, image_size, copy)


def is_compressed(path: Path) -> bool:
    """Whether a file is compressed with gzip; one that cannot be read is not."""
    try:
        with path.open("rb") as file:
            return file.read(len(_GZIP)) == _GZIP
    except OSError:
        return False


def file_size(path: Path, what: str) -> int:
    """Bytes of a regular file that is not empty.

    Raises:
        InputError: Missing, empty or no regular file.
    """
    with _open_regular(path, what) as file:
        size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise InputError(f"{what} {path}: 0 bytes; at least 1 are needed", code="file-too-short")
    return size


def _open_regular(path: Path, what: str) -> BinaryIO:
    try:
        # Asked before opening, because opening a pipe would wait for its other end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{what} {path}: not a regular file", code="not-a-file")
        return path.open("rb")
    except OSError as error:
        raise os_error(error, path) from error


def _unpacked(file: BinaryIO, path: Path) -> BinaryIO:
    """The content of a gzip file, in memory that has a file descriptor."""
    copy = os.fdopen(os.memfd_create("kernel"), "w+b")
    inflater = zlib.decompressobj(wbits=31)
    try:
        while not inflater.eof:
            data = inflater.unconsumed_tail or file.read(_CHUNK)
            piece = inflater.decompress(data, _CHUNK)
            if not data and not piece:
                raise InputError(f"kernel {path}: the gzip stream is cut off", code="not-an-image")
            copy.write(piece)
            if copy.tell() > UNPACKED_LIMIT:
                raise InputError(f"kernel {path}: unpacks to more than 1 GiB", code="not-an-image")
    except zlib.error as error:
        raise InputError(f"kernel {path}: {error}", code="not-an-image") from error
    copy.flush()
    return copy


def place_in_kernel(path: Path, offset: int) -> str | None:
    """What stands at a byte of a kernel: the Image header or a section of the EFI stub's table; None if unknown."""
    try:
        with path.open("rb") as file:
            head = file.read(_CHUNK)
    except OSError:
        return None
    if offset < HEADER_SIZE and head[0x38:0x3C] == _MAGIC:
        return "the Image header"
    for name, start, size in _sections(head):
        if start <= offset < start + size:
            return f"section {name}"
    return None


def _sections(head: bytes) -> Iterator[tuple[str, int, int]]:
    """Name, file offset and bytes of each section that the PE header lists."""
    if head[:2] != b"MZ" or len(head) < HEADER_SIZE:
        return
    (pe,) = struct.unpack_from("<I", head, 0x3C)
    if head[pe : pe + 4] != b"PE\0\0" or len(head) < pe + 24:
        return
    count, optional = struct.unpack_from("<H", head, pe + 6)[0], struct.unpack_from("<H", head, pe + 20)[0]
    table = pe + 24 + optional
    for index in range(min(count, _MAX_SECTIONS)):
        row = head[table + 40 * index : table + 40 * (index + 1)]
        if len(row) == 40:
            size, start = struct.unpack_from("<II", row, 16)
            yield row[:8].rstrip(b"\0").decode("ascii", "replace"), start, size


def place_in_initramfs(path: Path, offset: int) -> str | None:
    """The member of an uncompressed cpio archive in which a byte lies; None if unknown."""
    try:
        with path.open("rb") as file:
            for name, start, end in _members(file):
                if start <= offset < end:
                    return f"file {name}" if name.isprintable() else f"file {name!a}"
    except (OSError, ValueError):
        return None
    return None


def _members(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Name and extent (header included) of each member of a newc archive, as far as it is one."""
    position = 0
    for _ in range(_MAX_MEMBERS):
        file.seek(position)
        header = file.read(_CPIO_HEADER)
        if len(header) < _CPIO_HEADER or header[:6] not in (b"070701", b"070702"):
            return
        size, name_size = int(header[54:62], 16), int(header[94:102], 16)
        if not 1 <= name_size <= _MAX_NAME:
            return
        name = file.read(name_size).rstrip(b"\0").decode("utf-8", "replace")
        content = (position + _CPIO_HEADER + name_size + 3) // 4 * 4
        end = (content + size + 3) // 4 * 4
        yield name, position, end
        if name == "TRAILER!!!":
            return
        position = end
