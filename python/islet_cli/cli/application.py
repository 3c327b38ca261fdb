"""`islet app`: applications of a realm."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from islet_cli.cli.common import DebugOption, JsonOption, WorkspaceOption, show, workspace_of
from islet_cli.cli.realm_life import application_text, connect

RealmArgument = Annotated[str, typer.Argument(metavar="REALM", help="Name or uuid.")]
ApplicationArgument = Annotated[str, typer.Argument(metavar="APP", help="Name or uuid.")]
VersionOption = Annotated[str | None, typer.Option("--version", metavar="TAG", help="Tag or sha256:… digest.")]
RegistryOption = Annotated[
    str | None, typer.Option("--registry", metavar="HOST:PORT", help="Registry (default: the workspace's).")
]
ImageOption = Annotated[int | None, typer.Option("--image-mb", metavar="MIB", help="Size of the image partition.")]
DataOption = Annotated[int | None, typer.Option("--data-mb", metavar="MIB", help="Size of the data partition.")]
DEFAULT_IMAGE_MIB = 256

app = typer.Typer(no_args_is_help=True, help="Applications of a realm.", rich_markup_mode=None)


@app.command()
def create(
    realm: RealmArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the image's repository in the registry.")],
    version: VersionOption = None,
    registry: RegistryOption = None,
    image_mb: ImageOption = None,
    data_mb: DataOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Add an application to a halted realm."""
    from islet_cli import services
    from islet_cli.errors import UnavailableError

    space = workspace_of(workspace)
    if registry is None:
        running = services.find(space, "registry")
        registry = str(running.info["address"]) if running else space.settings.registry.listen
        if registry.endswith(":0"):
            raise UnavailableError(
                "the registry is not running, and its port is chosen when it starts",
                code="not-running",
                hint="run: islet registry up, or pass --registry HOST:PORT",
            )
    with connect(space) as warden:
        uuid = warden.create_application(
            realm,
            name,
            registry=registry,
            version=version or "latest",
            image_mb=DEFAULT_IMAGE_MIB if image_mb is None else image_mb,
            data_mb=space.settings.run.data_mb if data_mb is None else data_mb,
        )
    show({"uuid": uuid, "name": name}, f"application {uuid}", as_json=as_json)


@app.command()
def update(
    realm: RealmArgument,
    application: ApplicationArgument,
    name: Annotated[str | None, typer.Option("--name", help="Another image; refused while there is data.")] = None,
    version: VersionOption = None,
    registry: RegistryOption = None,
    image_mb: ImageOption = None,
    data_mb: DataOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Change an application; what is not given stays. It takes effect at the next start or reboot."""
    with connect(workspace_of(workspace)) as warden:
        warden.update_application(
            realm, application, name=name, version=version, registry=registry, image_mb=image_mb, data_mb=data_mb
        )
        described = warden.describe_application(realm, name or application)
    show(described, application_text(described), as_json=as_json)


@app.command()
def start(
    realm: RealmArgument,
    application: ApplicationArgument,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Start an application of a running realm."""
    with connect(workspace_of(workspace)) as warden:
        warden.start_application(realm, application)
    show({"started": application}, f"application {application}: started", as_json=as_json)


@app.command()
def stop(
    realm: RealmArgument,
    application: ApplicationArgument,
    kill: Annotated[bool, typer.Option("--kill", help="At once, without its grace period.")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Stop an application of a running realm."""
    with connect(workspace_of(workspace)) as warden:
        (warden.kill_application if kill else warden.stop_application)(realm, application)
    show({"stopped": application}, f"application {application}: stopped", as_json=as_json)


@app.command()
def remove(
    realm: RealmArgument,
    application: ApplicationArgument,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Remove an application of a halted realm and wipe its data."""
    with connect(workspace_of(workspace)) as warden:
        warden.remove_application(realm, application)
    show({"removed": application}, f"application {application}: removed", as_json=as_json)


@app.command("list")
def list_applications(
    realm: RealmArgument, workspace: WorkspaceOption = None, as_json: JsonOption = False, debug: DebugOption = False
) -> None:
    """List the applications of a realm in creation order."""
    with connect(workspace_of(workspace)) as warden:
        found = warden.describe_realm(realm)["applications"]
    show(found, "\n".join(map(application_text, found)) or "no applications", as_json=as_json)


@app.command()
def logs(
    realm: RealmArgument,
    application: ApplicationArgument,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the realm halts.")] = False,
    workspace: WorkspaceOption = None,
    debug: DebugOption = False,
) -> None:
    """Show the output of an application; it is kept in the realm's memory only."""
    with connect(workspace_of(workspace)) as warden:
        for data in warden.logs(realm, application, follow=follow):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


@app.command()
def reformat(
    realm: RealmArgument,
    application: ApplicationArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Yes, the application's data may be lost.")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Let the next start discard an application's data: the mend for `data-at-risk` when the data may go."""
    from islet_cli.errors import InputError

    if not yes:
        raise InputError(
            f"the data of {application} would be lost at the next start",
            code="usage",
            hint="pass --yes if that is meant",
        )
    with connect(workspace_of(workspace)) as warden:
        warden.confirm_reformat(realm, application)
    show({"reformat": application}, f"application {application}: the next start may discard its data", as_json=as_json)
