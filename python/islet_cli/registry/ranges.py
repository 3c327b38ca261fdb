"""The HTTP headers that decide which bytes of a blob are sent.

Source: RFC 9110 8.8.3 (ETag), 13.1 (preconditions), 14.1 and 14.2 (ranges).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,19})-([0-9]{0,19})[ \t]*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Slice:
    """Bytes `offset` to `offset + length - 1` of a blob."""

    offset: int
    length: int


class UnsatisfiableError(Exception):
    """No byte of the blob lies in the range that was asked for."""


def parse_range(header: str | None, size: int) -> Slice | None:
    """Read a Range header; None means the whole blob.

    Other units, several ranges and what is no range at all are ignored, as RFC 9110 allows. A range whose
    first byte comes after its last is answered like one beyond the end: the distribution specification's
    conformance suite wants 416 for it.

    Raises:
        UnsatisfiableError: The answer is 416.
    """
    match = _RANGE.fullmatch(header) if header is not None else None
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        length = min(int(match[2]), size)
        if length == 0:
            raise UnsatisfiableError
        return Slice(size - length, length)
    first = int(match[1])
    last = min(int(match[2]), size - 1) if match[2] else size - 1
    if first >= size or first > last:
        raise UnsatisfiableError
    return Slice(first, last - first + 1)


def none_match(header: str | None, etag: str) -> bool:
    """Whether If-None-Match lets the content be sent, that is, names neither `etag` nor everything."""
    if header is None:
        return True
    candidates = {item.strip().removeprefix("W/") for item in header.split(",")}
    return not candidates & {etag, "*"}


def range_applies(if_range: str | None, etag: str) -> bool:
    """Whether If-Range lets a Range count: it is absent or names this very content."""
    return if_range is None or if_range.strip() == etag
