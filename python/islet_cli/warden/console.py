"""A VM's console: cleaned lines in a ring and a file, followers, and the provisioning progress in it.

The guest is not trusted: its output is bounded in memory and on disk, and stripped of what could
drive a terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

RING_BYTES = 256 << 10
FILE_BYTES = 8 << 20
_LINE_BYTES = 16 << 10
_ESCAPE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_c=>78])")
_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
_PROGRESS = re.compile(rb"islet: (\S{1,255}) (fetch|unpack) (\d{1,18})/(\d{1,18})$")


@dataclass(frozen=True)
class Progress:
    """How far the provisioning of one application is; `total` is 0 when unknown."""

    application: str
    stage: str
    done: int
    total: int


class Console:
    """The output of one launch."""

    def __init__(self, file: Path) -> None:
        self.progress: Progress | None = None
        self._pending = b""
        self._ring: deque[bytes] = deque()
        self._held = 0
        self._start = 0
        self._written = 0
        self._changed = asyncio.Event()
        self.closed = False
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._file = os.fdopen(descriptor, "wb", buffering=0)

    def feed(self, data: bytes) -> None:
        """Take raw output."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        if len(self._pending) > _LINE_BYTES:
            lines.append(self._pending)
            self._pending = b""
        for line in lines:
            self._add(_CONTROL.sub(b"", _ESCAPE.sub(b"", line)))

    def close(self) -> None:
        """The VM has ended: keep an unfinished line and let followers end."""
        if self._pending:
            self.feed(b"\n")
        self.closed = True
        self._file.close()
        self._changed.set()

    def _add(self, line: bytes) -> None:
        found = _PROGRESS.match(line)
        if found:
            name, stage, done, total = found.groups()
            self.progress = Progress(name.decode("utf-8", "replace"), stage.decode(), int(done), int(total))
        line += b"\n"
        self._ring.append(line)
        self._held += len(line)
        while self._held > RING_BYTES:
            dropped = len(self._ring.popleft())
            self._held -= dropped
            self._start += dropped
        if self._written + len(line) <= FILE_BYTES:
            self._written += len(line)
            with contextlib.suppress(OSError, ValueError):
                self._file.write(line)
        self._changed.set()

    def tail(self, lines: int = 8) -> str:
        """The last lines that are not blank, joined for an error message."""
        shown = [line.decode("utf-8", "replace").strip() for line in list(self._ring)[-4 * lines :]]
        return " | ".join([line for line in shown if line][-lines:])

    def read(self, offset: int) -> tuple[bytes, int]:
        """Everything from byte `offset` on that is still held, and the next offset."""
        skip = max(offset - self._start, 0)
        data = b"".join(self._ring)
        return data[skip:], self._start + len(data)

    async def follow(self) -> AsyncIterator[bytes]:
        """Yield what is held, then what comes, until the VM ends."""
        offset = 0
        while True:
            self._changed.clear()
            data, offset = self.read(offset)
            if data:
                yield data
            elif self.closed:
                return
            else:
                await self._changed.wait()
