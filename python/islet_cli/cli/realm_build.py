"""`islet realm build` and `islet realm publish`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from islet_cli.cli.common import DebugOption, JsonOption, WorkspaceOption, note, show, workspace_of

ManifestOption = Annotated[
    Path | None, typer.Option("-m", "--manifest", metavar="FILE", help="The realm manifest (default: the workspace's).")
]


def _manifest(workspace: Any, path: Path | None) -> Any:
    from islet_cli.launch.manifest import load_manifest

    return load_manifest(path or workspace.manifest_path(workspace.settings.run.realm))


def build(
    manifest: ManifestOption = None,
    kernel: Annotated[
        Path | None, typer.Option("--kernel", metavar="FILE", help="This kernel instead of Debian's.")
    ] = None,
    modules: Annotated[
        Path | None, typer.Option("--modules", metavar="DIR", help="Where the .ko files of --kernel are.")
    ] = None,
    package_cache: Annotated[
        Path | None, typer.Option("--package-cache", metavar="DIR", help="Packages by digest; serves builds offline.")
    ] = None,
    update_lock: Annotated[
        bool, typer.Option("--update-lock", help="Choose today's package versions; gives a new RIM.")
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Build the realm image: a kernel and a reproducible initramfs."""
    from islet_cli.progress import bar
    from islet_cli.realm_image.build import build as build_image

    space = workspace_of(workspace)
    with bar("packages", enabled=not as_json) as report:
        image = build_image(
            space,
            _manifest(space, manifest),
            kernel=kernel,
            modules=modules,
            package_cache=package_cache,
            update_lock=update_lock,
            report=report,
        )
    if image.reused:
        note("unchanged: the image of an earlier build is used")
    lines = [f"{name:<10} {image.sizes[name]:>10} bytes  sha256:{image.digests[name]}" for name in image.sizes]
    show(image.to_json(), "\n".join(lines), as_json=as_json)


def publish(
    manifest: ManifestOption = None,
    key: Annotated[
        Path | None,
        typer.Option("-k", "--key", metavar="KEY", help="Signs the metadata block (default: the workspace's)."),
    ] = None,
    apps: Annotated[
        list[str] | None,
        typer.Option("--app", metavar="LAYOUT[:TAG]", help="A signed image that the realm will run; repeatable."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Bundle (default: .islet/published/NAME).")
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Publish a realm: kernel, initramfs, manifest, lock, RIM, metadata block and reference values."""
    from islet_cli.realm_image.publish import publish as publish_realm

    space = workspace_of(workspace)
    signer = None
    if key is not None:
        from islet_cli.keys.ecc import load_private

        signer = load_private(key)
    published = publish_realm(space, _manifest(space, manifest), signer, [_image(app) for app in apps or []], output)
    lines = [f"published in {published.directory}"]
    lines += [f"metadata block signed by {published.signer}"] if published.signer else []
    lines += [f"RIM: {published.rim.hex()}"]
    show(published.to_json(), "\n".join(lines), as_json=as_json)


def _image(text: str) -> tuple[Path, str | None]:
    """`LAYOUT[:TAG]`; a path that exists as it is has no tag."""
    path, colon, tag = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), None
    return Path(path), tag


COMMANDS = {"build": build, "publish": publish}
