"""Length-prefixed JSON frames, shared by warden, realm and platform.

Source: docs/protocols.md: `u32 big-endian length N | N bytes of UTF-8 JSON`, N at most
8 MiB and judged from the prefix alone.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from islet_cli import strictjson
from islet_cli.errors import InputError

MAX_FRAME = 8 * 1024 * 1024
PREFIX = struct.Struct(">I")


class FramingError(InputError):
    """The byte stream is out of step; the connection cannot go on."""

    default_code = "framing"


class BodyError(InputError):
    """One frame's body is unreadable; the stream itself stays in step."""

    default_code = "body"


def encode(value: Any, *, limit: int = MAX_FRAME) -> bytes:
    """Return the frame that holds `value`."""
    body = strictjson.dumps(value)
    if len(body) > limit:
        raise FramingError(f"message of {len(body)} bytes exceeds the frame limit of {limit}")
    return PREFIX.pack(len(body)) + body


def decode_length(prefix: bytes, *, limit: int = MAX_FRAME) -> int:
    """Return N of a 4-byte prefix; refuse N above `limit`."""
    (length,) = PREFIX.unpack(prefix)
    if length > limit:
        raise FramingError(f"frame of {length} bytes announced, the limit is {limit}")
    return int(length)


def decode_body(body: bytes) -> Any:
    """Parse a frame's body as one strict JSON value."""
    try:
        return strictjson.loads(body, what="message")
    except InputError as error:
        raise BodyError(error.message) from error


def read_frame(receive: Callable[[int], bytes], *, limit: int = MAX_FRAME) -> Any | None:
    """Read one frame from a blocking source.

    Args:
        receive: `receive(n)` returns 1..n bytes, or `b""` at end of stream (like `socket.recv`).
        limit: Largest accepted N in bytes.

    Returns:
        The JSON value, or None when the stream ended cleanly between two frames.

    Raises:
        FramingError: The stream ended inside a frame, or N exceeds `limit`.
        BodyError: The body is not strict JSON.
    """
    prefix = receive_exactly(receive, PREFIX.size, allow_end=True)
    if prefix is None:
        return None
    body = receive_exactly(receive, decode_length(prefix, limit=limit))
    assert body is not None
    return decode_body(body)


def receive_exactly(receive: Callable[[int], bytes], count: int, *, allow_end: bool = False) -> bytes | None:
    """Read exactly `count` bytes; None at a clean end when `allow_end`."""
    parts: list[bytes] = []
    missing = count
    while missing:
        part = receive(min(missing, 1 << 20))
        if not part:
            if allow_end and missing == count:
                return None
            raise FramingError("the stream ended inside a frame")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
