"""The realm's clock. It is the host's word; only one thing is certain: it is later than when the image was made."""

from __future__ import annotations

import time
from pathlib import Path

from islet_cli.errors import InputError
from islet_cli.fsutil import read_file

BUILD_TIME = Path("/etc/islet-build-time")


def read_build_time(path: Path = BUILD_TIME) -> int | None:
    """The image's build time, seconds since 1970; None when the image does not tell.

    Raises:
        InputError: The file is malformed.
    """
    if not path.exists():
        return None
    text = read_file(path, limit=64).strip()
    if not text.isdigit():
        raise InputError(f"{path}: not a number of seconds", code="build-time")
    return int(text)


def raise_clock(build_time: int) -> bool:
    """Set the clock to `build_time` when it is earlier; whether it was."""
    if time.time() >= build_time:
        return False
    time.clock_settime(time.CLOCK_REALTIME, build_time)
    return True
