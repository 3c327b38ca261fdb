"""What `islet run` started: list it, show its output, stop it, remove it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from islet_cli import services
from islet_cli.config import Workspace
from islet_cli.developer import pipeline
from islet_cli.errors import InputError

if TYPE_CHECKING:
    from islet_cli.warden.client import WardenClient


def listing(workspace: Workspace) -> list[dict[str, Any]]:
    """Return the warden's description of each realm; nothing runs while no warden is up, and then nothing is listed
    that a start of the warden would not show again."""
    if services.find(workspace, "warden") is None:
        services.start(workspace, "warden", ["warden", "up", "--foreground"])
    with pipeline.warden_client(workspace) as warden:
        return list(warden.describe())


def _find(warden: WardenClient, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the realm and the application called `name`: the realm that `run` made for it first, else any that has it.

    Raises:
        InputError: There is none (`no-such-application`).
    """
    realms = sorted(warden.describe(), key=lambda realm: realm["name"] != name)
    for realm in realms:
        for application in realm["applications"]:
            if application["name"] == name:
                return realm, application
    raise InputError(f"no application {name!r}", code="no-such-application", hint="see: islet ps")


def output(workspace: Workspace, name: str, *, follow: bool) -> Iterator[bytes]:
    """Yield the output of the application `name`."""
    with pipeline.warden_client(workspace) as warden:
        realm, application = _find(warden, name)
        yield from warden.logs(realm["uuid"], application["uuid"], follow=follow)


def stop(workspace: Workspace, name: str) -> None:
    """Stop the realm of the application `name`."""
    with pipeline.warden_client(workspace) as warden:
        realm, _application = _find(warden, name)
        warden.stop(realm["uuid"])


def forget(workspace: Workspace, name: str) -> None:
    """Remove the realm that `run` made for `name`, with all its data.

    Raises:
        InputError: There is none, or it is not halted.
    """
    with pipeline.warden_client(workspace) as warden:
        realm = next((entry for entry in warden.describe() if entry["name"] == name), None)
        if realm is None:
            raise InputError(f"no realm {name!r}", code="no-such-realm", hint="see: islet ps")
        if realm["state"] != "Halted":
            raise InputError(
                f"realm {name} is {realm['state'].lower()}", code="bad-state", hint=f"stop it first: islet stop {name}"
            )
        warden.destroy(realm["uuid"])
    shutil.rmtree(workspace.cache_dir / "run" / name, ignore_errors=True)
