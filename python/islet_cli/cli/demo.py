"""`islet demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from islet_cli.cli.common import DebugOption, JsonOption, note, show


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the workspace and its services as they are.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show the whole story: build, sign, measure, attest, run, reboot, update, and what is refused."""
    from islet_cli.developer import demo as library

    # With --json, stdout holds one document and the telling goes to stderr.
    result = library.run(note if as_json else _say, keep=keep)
    total = sum(step["seconds"] for step in result["steps"])
    show(result, f"\nAll {len(result['steps'])} steps hold ({total:.0f} s).", as_json=as_json)


def _say(line: str) -> None:
    print(line, flush=True)
