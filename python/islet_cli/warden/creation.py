"""From a realm manifest or a published bundle to what `create_realm_launch` and `update_realm` take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from islet_cli.config import Workspace
from islet_cli.errors import InputError
from islet_cli.launch.manifest import load_manifest
from islet_cli.launch.plan import plan_of
from islet_cli.warden.network import Publish

MANIFEST_NAME = "realm.toml"
METADATA_NAME = "metadata.bin"


@dataclass(frozen=True)
class Creation:
    """A realm to be created."""

    name: str
    launch: dict[str, Any]
    metadata: Path | None
    internet: bool


def from_workspace(
    workspace: Workspace, manifest: Path | None, *, metadata: Path | None, use_metadata: bool = True
) -> Creation:
    """Take a manifest of the workspace and the metadata block published for it.

    Args:
        workspace: The workspace.
        manifest: The manifest; by default that of `run.realm`.
        metadata: Another metadata block.
        use_metadata: False launches without any.

    Raises:
        InputError: The realm is not built, or its metadata block is not published.
    """
    loaded = load_manifest(manifest or workspace.manifest_path(workspace.settings.run.realm))
    block = metadata
    if block is None and use_metadata and loaded.launch.metadata:
        block = workspace.published_dir(loaded.name) / METADATA_NAME
        _require(block, "islet realm publish, or pass --no-metadata")
    return Creation(loaded.name, plan_of(loaded).to_json(), block if use_metadata else None, loaded.devices.internet)


def from_bundle(directory: Path, *, metadata: Path | None, use_metadata: bool = True) -> Creation:
    """Take a bundle that `islet realm publish` made.

    Raises:
        InputError: A file is missing.
    """
    if not (directory / MANIFEST_NAME).is_file():
        raise InputError(
            f"{directory}: holds no {MANIFEST_NAME}",
            code="no-such-file",
            hint="make it with: islet realm publish -o DIR",
        )
    loaded = load_manifest(directory / MANIFEST_NAME)
    block = metadata
    if block is None and use_metadata and loaded.launch.metadata:
        block = directory / METADATA_NAME
        _require(block, "ask the vendor for a complete bundle, or pass --no-metadata")
    return Creation(loaded.name, plan_of(loaded).to_json(), block if use_metadata else None, loaded.devices.internet)


def parse_publish(text: str) -> Publish:
    """Parse `[ADDRESS:]HOST:GUEST`.

    Raises:
        InputError: `usage`.
    """
    *address, host, guest = text.split(":") if ":" in text else ("", text)
    if len(address) > 1 or not (host.isdecimal() and guest.isdecimal()) or max(int(host), int(guest)) > 65535:
        raise InputError(f"-p {text}: expected [ADDRESS:]HOST:GUEST", code="usage", hint="for example -p 8080:80")
    return Publish(address[0] if address else "127.0.0.1", int(host), int(guest))


def _require(file: Path, how: str) -> None:
    if not file.is_file():
        raise InputError(f"{file}: no metadata block", code="no-such-file", hint=f"run: {how}")
