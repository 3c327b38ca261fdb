"""Lines for the realm's console, which the host reads: short, escaped, never a secret."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

_PROGRESS_INTERVAL_S = 1.0
_LIMIT = 400
_lock = threading.Lock()


def say(text: str) -> None:
    """Print `islet: TEXT` as one line."""
    line = "".join(character if character.isprintable() else "?" for character in text)[:_LIMIT]
    with _lock:
        sys.stdout.write(f"islet: {line}\n")
        sys.stdout.flush()


def describe(error: BaseException) -> str:
    """An unexpected exception in one line: its type, its text, and where it was raised."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f" at {Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place is not None else ""
    return f"{type(error).__name__}: {error}{where}"


class Progress:
    """Progress lines of all applications together: at most one a second."""

    def __init__(self, print_line: Callable[[str], None] = say) -> None:
        self._print = print_line
        self._lock = threading.Lock()
        self._next = 0.0

    def report(self, name: str, phase: str, done: int, total: int) -> None:
        """Print `NAME PHASE DONE/TOTAL` (bytes) unless a line was printed less than a second ago."""
        now = time.monotonic()
        with self._lock:
            if now < self._next:
                return
            self._next = now + _PROGRESS_INTERVAL_S
        self._print(f"{name} {phase} {done}/{total}")
