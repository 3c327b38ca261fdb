"""A strict CBOR reader for hostile tokens.

`cbor2` writes our tokens, but it cannot read them for us: it drops repeated map keys, interprets tags of its
own accord (dates, shared references, big numbers) and has no budget for items. Here a map keeps its entries
as they stand, tags are only reported, and depth, items and size are bounded.

Every well-formed encoding is accepted (indefinite lengths, longer heads than needed), as RFC 8949 asks of a
generic decoder. Text must be UTF-8.

Source: RFC 8949 sections 3 and 5.3.1 and appendix C.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, NoReturn

from islet_cli.attestation.errors import TokenError

MAX_DEPTH = 16
MAX_ITEMS = 4096
MAX_SIZE = 256 << 10

_BREAK = object()


@dataclass(frozen=True)
class Tag:
    """A tagged item; the tag is not interpreted."""

    number: int
    value: Any


@dataclass(frozen=True)
class Map:
    """A map as it stands: entries in order, repeated keys included."""

    entries: tuple[tuple[Any, Any], ...]


@dataclass(frozen=True)
class Simple:
    """A simple value without a Python counterpart."""

    number: int


def decode(data: bytes, *, what: str) -> tuple[Any, int]:
    """Decode the first item.

    Args:
        data: At most 256 KiB.
        what: Names the input in errors.

    Returns:
        The item and the number of bytes that it took; the caller decides about bytes after it. Integers,
        byte strings, text, lists, booleans, None and floats come as Python values; maps, tags and other
        simple values as `Map`, `Tag` and `Simple`.

    Raises:
        TokenError: `cbor`: not well-formed, or beyond a limit.
    """
    if len(data) > MAX_SIZE:
        raise TokenError(f"{what}: {len(data)} bytes long, at most {MAX_SIZE} are read", code="cbor")
    reader = _Reader(data, what)
    value = reader.item(0)
    return value, reader.at


class _Reader:
    def __init__(self, data: bytes, what: str) -> None:
        self.data = data
        self.what = what
        self.at = 0
        self.items = 0

    def fail(self, problem: str) -> NoReturn:
        raise TokenError(f"{self.what}: not well-formed CBOR at byte {self.at}: {problem}", code="cbor")

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            self.fail("it ends too early")
        part = self.data[self.at : self.at + count]
        self.at += count
        return part

    def head(self) -> tuple[int, int, int | None]:
        """Return (major type, additional information, argument); None is the indefinite length."""
        initial = self.take(1)[0]
        major, info = initial >> 5, initial & 0x1F
        if info < 24:
            return major, info, info
        if info < 28:
            return major, info, int.from_bytes(self.take(1 << (info - 24)), "big")
        if info < 31 or major in (0, 1, 6):
            self.fail("reserved length")
        return major, info, None

    def item(self, depth: int, *, allow_break: bool = False) -> Any:
        self.items += 1
        if self.items > MAX_ITEMS:
            self.fail(f"more than {MAX_ITEMS} items")
        if depth > MAX_DEPTH:
            self.fail(f"nested deeper than {MAX_DEPTH}")
        major, info, argument = self.head()
        if major == 7:
            if argument is None and not allow_break:
                self.fail("break outside an indefinite item")
            return _BREAK if argument is None else self.simple(info, argument)
        if major in (2, 3):
            return self.string(major, argument)
        if major == 4:
            return self.array(argument, depth)
        if major == 5:
            return self.map(argument, depth)
        assert argument is not None
        if major == 6:
            return Tag(argument, self.item(depth + 1))
        return argument if major == 0 else -1 - argument

    def string(self, major: int, length: int | None) -> bytes | str:
        if length is not None:
            return self.text_or_bytes(major, self.take(length))
        chunks: list[bytes | str] = []
        while True:
            self.items += 1
            if self.items > MAX_ITEMS:
                self.fail(f"more than {MAX_ITEMS} items")
            inner, _info, size = self.head()
            if inner == 7 and size is None:
                break
            if inner != major or size is None:
                self.fail("a chunk of another type")
            chunks.append(self.text_or_bytes(major, self.take(size)))
        return b"".join(chunks) if major == 2 else "".join(chunks)  # type: ignore[arg-type]

    def text_or_bytes(self, major: int, raw: bytes) -> bytes | str:
        if major == 2:
            return raw
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail("text is not UTF-8")

    def array(self, length: int | None, depth: int) -> list[Any]:
        if length is not None:
            # Each item takes a byte at least, so a huge announced length fails before anything is collected.
            if length > len(self.data) - self.at:
                self.fail("it ends too early")
            return [self.item(depth + 1) for _ in range(length)]
        members: list[Any] = []
        while (value := self.item(depth + 1, allow_break=True)) is not _BREAK:
            members.append(value)
        return members

    def map(self, length: int | None, depth: int) -> Map:
        entries: list[tuple[Any, Any]] = []
        if length is not None:
            if 2 * length > len(self.data) - self.at:
                self.fail("it ends too early")
            for _ in range(length):
                key = self.item(depth + 1)
                entries.append((key, self.item(depth + 1)))
        else:
            while (key := self.item(depth + 1, allow_break=True)) is not _BREAK:
                entries.append((key, self.item(depth + 1)))
        return Map(tuple(entries))

    def simple(self, info: int, argument: int) -> Any:
        if info < 24:
            return {20: False, 21: True, 22: None}.get(argument, Simple(argument))
        if info == 24:
            if argument < 32:
                self.fail("a simple value in two bytes that fits one")
            return Simple(argument)
        size, form = {25: (2, ">e"), 26: (4, ">f"), 27: (8, ">d")}[info]
        return struct.unpack(form, argument.to_bytes(size, "big"))[0]
