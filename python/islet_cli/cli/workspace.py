"""`islet init` and `islet down`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from islet_cli.cli.common import DebugOption, JsonOption, WorkspaceOption, show, workspace_of


def init(
    directory: Annotated[Path, typer.Argument(help="Where; made when missing.")] = Path(),
    registry_name: Annotated[
        list[str] | None, typer.Option("--registry-name", metavar="HOST", help="Further name of the registry.")
    ] = None,
    listen: Annotated[str, typer.Option(help="Address of the registry; port 0 takes any.")] = "127.0.0.1:1337",
    realm: Annotated[str, typer.Option(help="Name of the first realm.")] = "default",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Make a workspace: keys, certificates, an emulated platform's identity, islet.toml and realm.toml."""
    from islet_cli.developer.workspace import make_workspace

    made = make_workspace(directory, registry_names=registry_name or [], listen=listen, realm=realm)
    lines = [f"workspace: {made.workspace.root}"]
    lines += [f"  {role + ' key:':<20} {fingerprint}" for role, fingerprint in made.fingerprints.items()]
    lines.append("next: islet run ./my_app")
    show({"workspace": str(made.workspace.root), "keys": made.fingerprints}, "\n".join(lines), as_json=as_json)


def down(workspace: WorkspaceOption = None, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Stop every service of the workspace: warden (and its realms), registry, platform."""
    from islet_cli.developer.pipeline import stop_services

    stopped = stop_services(workspace_of(workspace))
    text = "\n".join(f"{name}: stopped" for name in stopped) or "nothing was running"
    show({"stopped": stopped}, text, as_json=as_json)
