"""Reading tar archives from a stream, strictly and in bounded memory.

Understands what programs that write image archives and layers produce: ustar, GNU long names and
base-256 numbers, pax paths and sizes. Anything ambiguous is refused rather than guessed.

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Interchange Format"; GNU tar manual,
"Basic Tar Format".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from islet_cli.errors import InputError

BLOCK = 512
MAX_EXTENDED = 1 << 20
MAX_PATH = 4096

REGULAR = frozenset((b"0", b"\0", b"7"))
HARD_LINK = b"1"
SYMLINK = b"2"
DIRECTORY = b"5"
_KNOWN = REGULAR | {HARD_LINK, SYMLINK, b"3", b"4", DIRECTORY, b"6"}


def _bad(problem: str, code: str = "tar_malformed") -> InputError:
    return InputError(f"archive: {problem}", code=code)


@dataclass(frozen=True)
class Member:
    """One entry.

    Attributes:
        name: As bytes, slashes and all.
        kind: The type byte of its header.
        size: Of its data, in bytes; 0 for anything but regular files.
    """

    name: bytes
    kind: bytes
    size: int

    @property
    def is_regular(self) -> bool:
        return self.kind in REGULAR

    @property
    def is_directory(self) -> bool:
        return self.kind == DIRECTORY


class TarStream:
    """Iterates over the members of a tar stream; `read` gives the data of the current one."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._buffer = b""
        self._left = 0
        self._padding = 0

    def _take(self, count: int) -> bytes:
        """Up to `count` bytes of the stream; fewer only at its end."""
        parts = []
        while count:
            if not self._buffer:
                self._buffer = next(self._pieces, b"")
                if not self._buffer:
                    break
            part, self._buffer = self._buffer[:count], self._buffer[count:]
            count -= len(part)
            parts.append(part)
        return b"".join(parts)

    def read(self, limit: int = 1 << 20) -> bytes:
        """The next piece of the current member's data; empty at its end.

        Raises:
            InputError: `tar_truncated`.
        """
        if not self._left:
            return b""
        piece = self._take(min(limit, self._left))
        if not piece:
            raise _bad("ends inside a file", "tar_truncated")
        self._left -= len(piece)
        return piece

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            yield member

    def _next(self) -> Member | None:
        self._skip()
        extended = _Extended()
        while True:
            header = self._take(BLOCK)
            if not header or not any(header):
                extended.require_none()
                self._require_zero_rest()
                return None
            if len(header) != BLOCK:
                raise _bad("ends inside a header", "tar_truncated")
            _check_sum(header)
            kind = header[156:157]
            size = _number(header[124:136], "size")
            if kind in b"xgLK":
                extended.add(kind, self._extended(size))
                continue
            return self._member(header, kind, size, extended)

    def _member(self, header: bytes, kind: bytes, size: int, extended: _Extended) -> Member:
        if kind not in _KNOWN:
            raise _bad(f"an entry has the unknown type {kind!r}", "unsupported_entry")
        name = extended.name if extended.name is not None else _header_name(header)
        if len(name) > MAX_PATH:
            raise _bad("a name is too long", "path_too_long")
        if kind == b"\0" and name.endswith(b"/"):
            kind = DIRECTORY
        # Only regular files have data, whatever size another entry's header gives.
        size = (size if extended.size is None else extended.size) if kind in REGULAR else 0
        self._left, self._padding = size, -size % BLOCK
        return Member(name, kind, size)

    def _extended(self, size: int) -> bytes:
        if size > MAX_EXTENDED:
            raise _bad("an extended header is too large", "limit_exceeded")
        self._left, self._padding = size, -size % BLOCK
        data = b"".join(iter(self.read, b""))
        self._skip()
        return data

    def _skip(self) -> None:
        """Pass over what is left of the current data and its padding."""
        while self.read():
            pass
        if len(self._take(self._padding)) != self._padding:
            raise _bad("ends inside the padding of a file", "tar_truncated")
        self._padding = 0

    def _require_zero_rest(self) -> None:
        while piece := self._take(1 << 20):
            if any(piece):
                raise _bad("something follows its end", "tar_trailing_data")


class _Extended:
    """What extended headers say about the next entry."""

    def __init__(self) -> None:
        self.name: bytes | None = None
        self.size: int | None = None
        self._seen: set[bytes] = set()

    def add(self, kind: bytes, data: bytes) -> None:
        """Take over one extended header of type `kind`."""
        records = dict(_pax_records(data)) if kind in b"xg" else {}
        if kind == b"g":
            if set(records) - {b"comment"}:
                raise _bad("a global header says more than a comment")
            return
        if kind in self._seen:
            raise _bad("an entry has two extended headers of one kind")
        self._seen.add(kind)
        if any(key.startswith(b"GNU.sparse.") for key in records):
            raise _bad("a sparse file", "sparse_unsupported")
        if kind == b"L":
            self._set_name(data.rstrip(b"\0"))
        if b"path" in records:
            self._set_name(records[b"path"])
        if b"size" in records:
            if not records[b"size"].isdigit() or len(records[b"size"]) > 19:
                raise _bad("a pax size is not a number")
            self.size = int(records[b"size"])

    def _set_name(self, name: bytes) -> None:
        if self.name is not None:
            raise _bad("an entry has two long names")
        self.name = name

    def require_none(self) -> None:
        """Require that the archive does not end after an extended header."""
        if self._seen:
            raise _bad("an extended header has no entry after it")


def _pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    while data:
        length_text, space, _ = data.partition(b" ")
        if not space or not length_text.isdigit() or len(length_text) > 8:
            raise _bad("a pax record has no length")
        length = int(length_text)
        record = data[len(length_text) + 1 : length]
        key, equals, value = record.partition(b"=")
        if length > len(data) or not record.endswith(b"\n") or not equals or not key:
            raise _bad("a malformed pax record")
        yield key, value[:-1]
        data = data[length:]


def _header_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    # GNU's own magic is "ustar  "; its headers keep times where ustar keeps the prefix.
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _number(field: bytes, what: str) -> int:
    """An octal number, or GNU's base 256 when the first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes((field[0] & 0x7F,)) + field[1:], "big")
        if field[0] & 0x40 or value >= 1 << 63:
            raise _bad(f"a {what} is out of range")
        return value
    digits = field.rstrip(b"\0 ").lstrip(b" ")
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise _bad(f"a {what} is not octal")
    return int(digits, 8)


def _check_sum(header: bytes) -> None:
    expected = _number(header[148:156], "checksum")
    if sum(header[:148]) + 8 * 32 + sum(header[156:]) != expected:
        raise _bad("a header has a wrong checksum")
