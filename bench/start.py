"""How long the command takes to start."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure, command_seconds


def measure() -> Iterator[Figure]:
    """`islet --version` and `islet --help` beside the bare interpreter."""
    islet = str(Path(sys.executable).with_name("islet"))
    bare = command_seconds([sys.executable, "-c", "pass"])
    yield Figure("islet --version", command_seconds([islet, "--version"]), bare, "s", "python -c pass")
    yield Figure("islet --help", command_seconds([islet, "--help"]), bare, "s", "python -c pass")
