"""What every command module shares: standard options and the two ways to present a result."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from islet_cli.config import Workspace

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
WorkspaceOption = Annotated[
    Path | None, typer.Option("--workspace", metavar="DIR", help="The workspace (default: the nearest islet.toml).")
]


def workspace_of(explicit: Path | None) -> Workspace:
    """The workspace that the command works in."""
    return Workspace.find(explicit)


def workspace_if_any(explicit: Path | None) -> Workspace | None:
    """Like `workspace_of`, but None where there is no workspace and none was named."""
    from islet_cli.errors import UnavailableError

    try:
        return Workspace.find(explicit)
    except UnavailableError:
        if explicit is not None:
            raise
        return None


def show(value: Any, text: str, *, as_json: bool) -> None:
    """Print `value` as JSON, or `text`, on stdout."""
    if as_json:
        json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
        print()
    else:
        print(text)


def note(message: str) -> None:
    """Print a message for people on stderr.

    A service's stderr is a log file: that its disk is full must not end the service.
    """
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr)
