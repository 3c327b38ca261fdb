"""What `islet run PATH` can be given, and how each becomes a signed image in the registry.

PATH is a program, a directory or a root file system (built), an OCI layout or archive (copied), or
`docker://HOST/REPOSITORY:TAG` (pulled). Environment and arguments enter the image's signed configuration.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from islet_cli.config import Workspace
from islet_cli.developer import pipeline
from islet_cli.developer.amend import amend
from islet_cli.errors import InputError

if TYPE_CHECKING:
    from islet_cli.developer.run import Options, Screen

TAG = "latest"
_REGISTRY_PREFIX = "docker://"


def application_name(path: str) -> str:
    """The application's name from what it is made of: lower-cased and made to fit the repository grammar.

    Raises:
        InputError: Nothing usable is left.
    """
    last = path.removeprefix(_REGISTRY_PREFIX).rstrip("/").rpartition("/")[2].partition("@")[0]
    stem = last.partition(":")[0] if path.startswith(_REGISTRY_PREFIX) else Path(last).name
    stem = re.sub(r"\.(tar|tar\.gz|tgz|tar\.zst|py|sh|elf|bin)$", "", stem.lower())
    # A realm bears the same name, so the narrower of both grammars applies.
    name = re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:32].strip("-")
    if not name:
        raise InputError(f"{path}: no name can be made of this", code="bad-name", hint="say it with --name")
    return name


def prepare_image(workspace: Workspace, options: Options, screen: Screen) -> pipeline.SignedImage:
    """Build, copy or pull what `options.path` names, sign it, add it to the workspace's registry."""
    from islet_cli.registry import store

    name = options.name or application_name(options.path)
    scratch = pipeline.scratch_directory(workspace, name)
    layout = scratch / "image"
    try:
        _make(options, name, layout, screen)
        pipeline.sign_in_place(workspace, layout, TAG)
        image = pipeline.signed_image(layout, TAG, name)
        store.add(workspace.registry_root, layout, name, tag=TAG)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    screen.say(f"image: {name}:{TAG} {image.manifest_digest}")
    return image


def _make(options: Options, name: str, layout: Path, screen: Screen) -> None:
    """Put the image under `TAG` of a new layout."""
    from islet_cli.oci.build import build_image
    from islet_cli.oci.layout import is_layout

    path = Path(options.path)
    entrypoint = list(options.entrypoint) or None
    if options.path.startswith(_REGISTRY_PREFIX):
        _pull(options.path, layout, screen)
    elif not path.exists():
        raise InputError(f"{path}: no such file", code="no-such-file", hint="name a program, a directory or an image")
    elif is_layout(path):
        _copy_layout(path, layout)
    elif path.is_file() and _is_archive(path):
        _unpack_archive(path, layout)
    else:
        with screen.bar(f"building {name}") as report:
            built = build_image(
                path,
                layout,
                name=name,
                tag=TAG,
                entrypoint=entrypoint,
                cmd=options.arguments,
                env=options.env,
                report=report,
            )
        for warning in built.warnings:
            screen.say(f"warning: {warning}")
        return
    amend(
        layout,
        TAG,
        name=name,
        env=options.env,
        cmd=list(options.arguments) if options.arguments else None,
        entrypoint=entrypoint,
    )


def _is_archive(path: Path) -> bool:
    return path.name.endswith((".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd"))


def _copy_layout(source: Path, layout: Path) -> None:
    from islet_cli.oci.layout import load
    from islet_cli.signing.sign import set_tag

    load(source)
    shutil.copytree(source, layout, symlinks=True)
    set_tag(layout, TAG)


def _unpack_archive(archive: Path, layout: Path) -> None:
    from islet_cli.signing.archive import extract_layout

    layout.mkdir(mode=0o700)
    extract_layout(archive, layout, TAG)


def _pull(reference: str, layout: Path, screen: Screen) -> None:
    from islet_cli.oci.names import parse_remote
    from islet_cli.oci.remote import fetch
    from islet_cli.signing.sign import set_tag

    remote = parse_remote(reference)
    # As docker does: a registry on this machine's loopback speaks plain HTTP, any other one TLS.
    loopback = remote.address.rpartition(":")[0] in ("localhost", "127.0.0.1", "[::1]")
    with screen.bar("pulling") as report:
        fetch(remote, layout, tls="none" if loopback else "tls", report=report)
    set_tag(layout, TAG)
