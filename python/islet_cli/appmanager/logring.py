"""The last MiB of an application's output, addressed by offsets that only grow."""

from __future__ import annotations

import threading

CAPACITY = 1 << 20


class LogRing:
    """Bytes since the application was set up; the oldest give way. Safe for several threads."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._data = bytearray()
        self._start = 0
        self._lock = threading.Lock()

    def append(self, data: bytes) -> None:
        """Add output."""
        with self._lock:
            self._data += data
            excess = len(self._data) - self._capacity
            if excess > 0:
                del self._data[:excess]
                self._start += excess

    def read(self, offset: int, limit: int) -> tuple[int, bytes]:
        """Up to `limit` bytes from `offset`; the offset that comes back is larger when older bytes are gone."""
        with self._lock:
            begin = min(max(offset, self._start), self._start + len(self._data))
            at = begin - self._start
            return begin, bytes(self._data[at : at + limit])
