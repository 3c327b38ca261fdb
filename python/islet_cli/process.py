"""Facts about processes: start times, parent-death signal."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def start_time(pid: int) -> int | None:
    """Return field 22 of /proc/PID/stat (clock ticks since boot), or None when there is no such process.

    Together with the pid it names one process for good: pids are reused, pairs are not.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    if fields[0] in ("Z", "X"):
        return None
    return int(fields[19])


def is_alive(pid: int, started: int) -> bool:
    """Whether the process that had `pid` and start time `started` still runs."""
    return start_time(pid) == started


def die_with_parent() -> Callable[[], None]:
    """Return a `preexec_fn` that asks the kernel to kill the child when the thread that starts it ends."""
    parent = os.getpid()

    def request() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        # The parent may have ended before the request stood.
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return request
