"""`islet image …`: building images, looking into them, moving them from and to registries."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from islet_cli.cli.common import DebugOption, JsonOption, WorkspaceOption, note, show, workspace_of

app = typer.Typer(no_args_is_help=True, help="OCI images.", rich_markup_mode=None)

LayoutArgument = Annotated[Path, typer.Argument(help="An OCI layout directory or an OCI archive.")]
TagOption = Annotated[str | None, typer.Option("--tag", "-t", help="Tag or digest (default: the only image).")]
CredentialsOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="One line USER:PASSWORD, readable by you only.")
]


class Pack(str, Enum):
    """Compression of a layer."""

    zstd = "zstd"
    gzip = "gzip"


class Tls(str, Enum):
    """Transport to a registry."""

    none = "none"
    tls = "tls"


@app.command()
def build(
    path: Annotated[Path, typer.Argument(help="A program, a script, a directory or a root file system.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="LAYOUT", help="The layout to make.")],
    name: Annotated[str | None, typer.Option(help="Application name (default: from the file name).")] = None,
    tag: Annotated[str, typer.Option("--tag", "-t", help="Tag of the image.")] = "latest",
    entrypoint: Annotated[str | None, typer.Option(help="What to start: shell words, or a JSON list.")] = None,
    cmd: Annotated[str | None, typer.Option(help="Further arguments: shell words, or a JSON list.")] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="K=V", help="Environment variable.")] = None,
    user: Annotated[str, typer.Option(metavar="U[:G]", help="User and group, names or numbers.")] = "",
    workdir: Annotated[str, typer.Option(metavar="DIR", help="Working directory.")] = "",
    arch: Annotated[str | None, typer.Option(help="amd64 or arm64 (default: the program's own).")] = None,
    version: Annotated[str | None, typer.Option("--version", help="Version label, for people.")] = None,
    security_version: Annotated[
        int | None, typer.Option(min=0, help="Security version: realms refuse a lower one later.")
    ] = None,
    compression: Annotated[Pack, typer.Option(help="Compression of the layer.")] = Pack.zstd,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing layout.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Make a reproducible OCI layout of a program, a directory or a root file system."""
    from islet_cli.oci.build import build_image
    from islet_cli.oci.names import fit_repository
    from islet_cli.oci.words import split_words
    from islet_cli.progress import bar

    with bar("packing", enabled=not as_json) as report:
        built = build_image(
            path,
            output,
            name=name if name is not None else fit_repository(path.resolve().name),
            tag=tag,
            entrypoint=None if entrypoint is None else split_words(entrypoint, what="--entrypoint"),
            cmd=[] if cmd is None else split_words(cmd, what="--cmd"),
            env=env or [],
            user=user,
            workdir=workdir,
            arch=arch,
            version=version,
            security_version=security_version,
            compression=compression.value,
            report=report,
            force=force,
        )
    for warning in built.warnings:
        note(f"warning: {warning}")
    text = f"{built.layout}: {built.name}:{built.tag}\nmanifest: {built.manifest_digest}"
    text += f"\nsize: {built.compressed_bytes} bytes, {built.unpacked_bytes} unpacked"
    show(built.to_json(), text, as_json=as_json)


@app.command()
def inspect(
    image: LayoutArgument,
    tag: Annotated[str | None, typer.Option("--tag", "-t", help="Only this tag or digest.")] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what is in a layout or archive; every digest is checked, signatures are not."""
    from islet_cli.progress import bar
    from islet_cli.signing.inspect import as_text
    from islet_cli.signing.inspect import inspect as describe
    from islet_cli.signing.source import opened_layout

    with bar("reading", enabled=not as_json) as report, opened_layout(image) as layout:
        described = {**describe(layout, tag, report=report), "layout": str(image)}
    for warning in described["warnings"]:
        note(f"warning: {warning}")
    show(described, as_text(described), as_json=as_json)


@app.command()
def unpack(
    image: LayoutArgument,
    destination: Annotated[Path, typer.Argument(help="An empty or new directory.")],
    tag: TagOption = None,
    skip_devices: Annotated[bool, typer.Option("--skip-devices", help="Leave device nodes out.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Unpack an image's layers safely into a directory; it appears whole or not at all."""
    from islet_cli.oci.extract import extract_image
    from islet_cli.progress import bar
    from islet_cli.signing.source import opened_layout, reference_of

    with bar("unpacking", enabled=not as_json) as report, opened_layout(image) as layout:
        chosen = reference_of(layout, tag)
        result = extract_image(layout, chosen, destination, skip_devices=skip_devices, report=report)
    for warning in result["warnings"]:
        note(f"warning: {warning}")
    show(result, f"{destination}: {result['manifest']} unpacked", as_json=as_json)


@app.command()
def pull(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="docker://HOST[:PORT]/NAME[:TAG|@DIGEST]")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="LAYOUT", help="The layout to make.")],
    tls: Annotated[Tls, typer.Option(help="Transport.")] = Tls.tls,
    root_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM of the registry's CA (default: the system's).")
    ] = None,
    platform: Annotated[str | None, typer.Option(metavar="OS/ARCH", help="Which image of an index.")] = None,
    credentials: CredentialsOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Fetch an image from a registry into a new layout, every byte checked."""
    from islet_cli.oci.names import parse_remote
    from islet_cli.oci.remote import fetch
    from islet_cli.progress import bar

    remote = parse_remote(image)
    with bar("fetching", enabled=not as_json) as report:
        digest = fetch(
            remote,
            output,
            tls=tls.value,
            root_ca=root_ca,
            platform=platform,
            credentials=credentials,
            report=report,
        )
    value = {"layout": str(output), "reference": remote.reference, "digest": digest}
    show(value, f"{output}: {remote.repository} {digest}", as_json=as_json)


@app.command()
def push(
    image: LayoutArgument,
    destination: Annotated[
        str, typer.Argument(metavar="IMAGE", help="docker://HOST[:PORT]/NAME[:TAG]; with a socket NAME[:TAG].")
    ],
    tag: TagOption = None,
    tls: Annotated[Tls, typer.Option(help="Transport.")] = Tls.tls,
    root_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM of the registry's CA (default: the system's).")
    ] = None,
    socket: Annotated[
        Path | None, typer.Option(metavar="SOCKET", help="Push socket of a registry (default: the workspace's).")
    ] = None,
    credentials: CredentialsOption = None,
    mount_from: Annotated[
        str | None, typer.Option(metavar="NAME", help="Repository there that may hold the same blobs.")
    ] = None,
    chunk_mib: Annotated[
        int, typer.Option("--chunk-size", min=1, metavar="MIB", help="Larger blobs are sent in chunks.")
    ] = 64,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Push an image or an index to a registry; what is there already is not sent again."""
    from islet_cli.oci.names import is_remote, parse_remote
    from islet_cli.oci.remote import send
    from islet_cli.progress import bar
    from islet_cli.signing.source import opened_layout, reference_of

    transport = tls
    if socket is not None or not is_remote(destination):
        path = socket.absolute() if socket is not None else _push_socket(workspace)
        remote = replace(parse_remote(f"socket/{destination}"), address=f"unix:{path}")
        transport = Tls.none
    else:
        remote = parse_remote(destination)
    with bar("pushing", enabled=not as_json) as report, opened_layout(image) as layout:
        sent = send(
            layout,
            reference_of(layout, tag),
            remote,
            tls=transport.value,
            root_ca=root_ca,
            credentials=credentials,
            mount_from=mount_from,
            chunk_bytes=chunk_mib << 20,
            report=report,
        )
    value = {"repository": remote.repository, "reference": remote.reference, **sent.to_json()}
    text = (
        f"{remote.repository}:{remote.reference}  {sent.digest}\n{len(sent.uploaded)} blobs sent ({sent.bytes} bytes), "
    )
    text += f"{len(sent.mounted)} mounted, {len(sent.present)} there already"
    show(value, text, as_json=as_json)


def _push_socket(workspace: Path | None) -> str:
    """Where the workspace's registry takes pushes."""
    from islet_cli import services
    from islet_cli.errors import UnavailableError

    running = services.find(workspace_of(workspace), "registry")
    found = running.info.get("push") if running is not None else None
    if not isinstance(found, str) or not found.startswith("/"):
        problem = "is not running" if running is None else "takes no pushes on a socket"
        raise UnavailableError(
            f"the workspace's registry {problem}",
            code="not-running",
            hint="run: islet registry up, or name another registry: docker://HOST:PORT/NAME",
        )
    return found
