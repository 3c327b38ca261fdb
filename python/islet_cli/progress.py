"""Progress bars: the one place that draws them. Libraries report through a `Report` callback."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

Report = Callable[[int, int], None]
"""`report(done, total)` in bytes; `total` is 0 when unknown."""


def silent(_done: int, _total: int) -> None:
    """Report nothing."""


@contextlib.contextmanager
def bar(title: str, *, enabled: bool = True) -> Iterator[Report]:
    """Draw a bar with rate on stderr when it is a terminal; otherwise stay silent."""
    if not enabled or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task(title, total=None)

        def report(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total or None)

        yield report
