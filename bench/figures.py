"""One measured figure beside its peer."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """`ours` and `peer` in `unit`; `peer_name` says what the peer is (or which goal stands in for one)."""

    what: str
    ours: float
    peer: float
    unit: str
    peer_name: str

    def __str__(self) -> str:
        ratio = self.ours / self.peer if self.peer else float("nan")
        ours, peer = f"{self.ours:.3f} {self.unit}", f"{self.peer:.3f} {self.unit}"
        return f"{self.what:<46} {ours:>12} {peer:>12} {ratio:>8.2f}  {self.peer_name}"


def median_seconds(action: Callable[[], object], times: int) -> float:
    """Median duration of `action` over `times` runs, after one to warm up."""
    action()
    durations = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        durations.append(time.perf_counter() - began)
    return statistics.median(durations)


def command_seconds(argv: Sequence[str], times: int = 15) -> float:
    """Median wall time of a command."""
    return median_seconds(lambda: subprocess.run(argv, check=True, stdout=subprocess.DEVNULL), times)
