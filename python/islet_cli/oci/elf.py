"""Reading the few facts of an ELF file that decide what else a program needs.

Nothing is executed: `ldd` runs the program's own loader, which must not happen to a file that is
only to be packed.

Source: System V ABI, chapters 4 and 5; Linux Foundation, "ELF and ABI Standards".
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from islet_cli.errors import InputError
from islet_cli.fsutil import os_error

# e_machine -> architecture as OCI spells it.
MACHINES = {62: "amd64", 183: "arm64"}
_EXECUTABLE, _DYNAMIC = 2, 3
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 10, 15, 29
_MAX_HEADERS = 4096
_MAX_TABLE = 16 << 20


@dataclass(frozen=True)
class Elf:
    """A program or shared library.

    Attributes:
        architecture: `amd64` or `arm64`.
        interpreter: Path of its loader, None for a static program or a library.
        needed: Names of the libraries it asks for, in order.
        rpath, runpath: Their directories, `$ORIGIN` not yet replaced.
    """

    architecture: str
    interpreter: str | None
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]


def read(path: Path) -> Elf | None:
    """Read an ELF file; None when it is not one at all.

    Raises:
        InputError: `elf_invalid` for a damaged file, an object file, or one of a machine that realms do
            not have.
    """
    try:
        with path.open("rb", buffering=0) as file:
            return _Parser(file.fileno(), path).parse()
    except OSError as error:
        raise os_error(error, path) from error


class _Parser:
    def __init__(self, file: int, path: Path) -> None:
        self._file = file
        self._path = path
        self._loads: list[tuple[int, int, int]] = []

    def _bad(self, problem: str) -> InputError:
        return InputError(f"{self._path}: {problem}", code="elf_invalid")

    def _at(self, offset: int, size: int) -> bytes:
        if size > _MAX_TABLE or offset >= 1 << 62:
            raise self._bad("damaged ELF file: a table is too large")
        data = os.pread(self._file, size, offset)
        if len(data) != size:
            raise self._bad("damaged ELF file: it ends early")
        return data

    def parse(self) -> Elf | None:
        if os.pread(self._file, 4, 0) != b"\x7fELF":
            return None
        header = self._at(0, 64)
        machine = struct.unpack_from("<H", header, 18)[0]
        if header[4:6] != b"\x02\x01" or machine not in MACHINES:
            raise self._bad("not an ELF file for x86-64 or 64-bit Arm")
        if struct.unpack_from("<H", header, 16)[0] not in (_EXECUTABLE, _DYNAMIC):
            raise self._bad("neither a program nor a shared library")
        table, size, count = struct.unpack_from("<Q", header, 32)[0], *struct.unpack_from("<HH", header, 54)
        if size != 56 or count > _MAX_HEADERS:
            raise self._bad("damaged ELF file: unexpected program headers")
        interpreter, dynamic = None, b""
        for raw in struct.iter_unpack("<IIQQQQQQ", self._at(table, size * count)):
            kind, _flags, offset, address, _physical, file_size, _memory, _align = raw
            if kind == _PT_LOAD:
                self._loads.append((address, file_size, offset))
            elif kind == _PT_INTERP:
                interpreter = os.fsdecode(self._at(offset, min(file_size, 4096)).rstrip(b"\0"))
            elif kind == _PT_DYNAMIC:
                dynamic = self._at(offset, file_size - file_size % 16)
        return self._finish(MACHINES[machine], interpreter, dynamic)

    def _finish(self, architecture: str, interpreter: str | None, dynamic: bytes) -> Elf:
        values: dict[int, list[int]] = {}
        for tag, value in struct.iter_unpack("<QQ", dynamic):
            if tag == _DT_NULL:
                break
            values.setdefault(tag, []).append(value)
        strings = self._strings(values)

        def text(offset: int) -> str:
            end = strings.find(b"\0", offset)
            if offset >= len(strings) or end < 0:
                raise self._bad("damaged ELF file: a name lies outside its table")
            return os.fsdecode(strings[offset:end])

        def directories(tag: int) -> tuple[str, ...]:
            return tuple(part for offset in values.get(tag, ()) for part in text(offset).split(":") if part)

        needed = tuple(text(offset) for offset in values.get(_DT_NEEDED, ()))
        return Elf(architecture, interpreter, needed, directories(_DT_RPATH), directories(_DT_RUNPATH))

    def _strings(self, values: dict[int, list[int]]) -> bytes:
        if _DT_STRTAB not in values or _DT_STRSZ not in values:
            return b""
        address, size = values[_DT_STRTAB][0], values[_DT_STRSZ][0]
        for start, length, offset in self._loads:
            if start <= address and address + size <= start + length:
                return self._at(offset + address - start, size)
        raise self._bad("damaged ELF file: its string table is not loaded")
