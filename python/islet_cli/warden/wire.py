"""Frames over asyncio streams."""

from __future__ import annotations

import asyncio
from typing import Any

from islet_cli import framing
from islet_cli.warden import codec


async def read_body(reader: asyncio.StreamReader) -> bytes | None:
    """Read one frame's body; None at a clean end of the stream.

    Raises:
        FramingError: The prefix is above the limit (decided before anything is allocated), or the
            stream ends inside a frame.
    """
    try:
        prefix = await reader.readexactly(framing.PREFIX.size)
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise framing.FramingError("the stream ended inside a frame") from None
    return await _rest(reader, prefix)


async def _rest(reader: asyncio.StreamReader, prefix: bytes) -> bytes:
    length = framing.decode_length(prefix)
    try:
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError:
        raise framing.FramingError("the stream ended inside a frame") from None


def frame(shape: codec.Shape, value: Any) -> bytes:
    """Return the frame of one message.

    Raises:
        FramingError: It is above the frame limit.
    """
    body = codec.encode(shape, value)
    if len(body) > framing.MAX_FRAME:
        raise framing.FramingError(f"message of {len(body)} bytes exceeds the frame limit of {framing.MAX_FRAME}")
    return framing.PREFIX.pack(len(body)) + body


async def send(writer: asyncio.StreamWriter, shape: codec.Shape, value: Any) -> None:
    """Write one message and wait until the peer takes it."""
    writer.write(frame(shape, value))
    await writer.drain()
