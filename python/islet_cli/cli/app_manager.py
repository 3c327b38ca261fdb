"""`islet app-manager`: the daemon inside a realm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from islet_cli.cli.common import DebugOption

_DEFAULT = Path("/etc/app-manager/config.yml")


def app_manager(
    config: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The measured configuration.")] = (
        _DEFAULT
    ),
    debug: DebugOption = False,
) -> None:
    """Serve the host from inside a realm: provision, attest and supervise applications. The realm's init runs it."""
    from islet_cli.appmanager.__main__ import serve

    raise typer.Exit(serve(config))
