"""The life of realms: `islet realm create`, `update`, `start`, `stop`, `reboot`, `destroy`, `list`, `inspect`, …"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from islet_cli.cli.common import DebugOption, JsonOption, WorkspaceOption, note, show, workspace_of

if TYPE_CHECKING:
    from islet_cli.config import Workspace
    from islet_cli.warden.client import WardenClient
    from islet_cli.warden.creation import Creation

RealmArgument = Annotated[str, typer.Argument(metavar="REALM", help="Name or uuid.")]
ManifestOption = Annotated[
    Path | None, typer.Option("-m", "--manifest", metavar="FILE", help="The realm manifest (default: the workspace's).")
]
BundleOption = Annotated[Path | None, typer.Option("--from", metavar="DIR", help="A bundle of `islet realm publish`.")]
MetadataOption = Annotated[
    Path | None, typer.Option("--metadata", metavar="FILE", help="This metadata block instead of the published one.")
]
NoMetadataOption = Annotated[bool, typer.Option("--no-metadata", help="Launch without a metadata block.")]
PublishOption = Annotated[
    list[str] | None,
    typer.Option("-p", "--publish", metavar="HOST:GUEST", help="Publish a port; HOST 0 picks one. Repeatable."),
]
InternetOption = Annotated[
    bool, typer.Option("--internet", help="Open the network instead of registry and published ports only.")
]


def connect(workspace: Workspace) -> WardenClient:
    """The warden of the workspace."""
    from islet_cli.warden.client import WardenClient

    return WardenClient(workspace.warden_socket)


@contextmanager
def drawn(title: str, *, enabled: bool) -> Iterator[Any]:
    """A progress bar in the form that the client reports to."""
    from islet_cli.progress import bar

    with bar(title, enabled=enabled) as report:
        yield lambda _application, _stage, done, total: report(done, total)


def _creation(
    workspace: Workspace, manifest: Path | None, bundle: Path | None, metadata: Path | None, no_metadata: bool
) -> Creation:
    from islet_cli.errors import InputError
    from islet_cli.warden import creation

    if (manifest and bundle) or (metadata and no_metadata):
        raise InputError("-m excludes --from, and --metadata excludes --no-metadata", code="usage")
    if bundle is not None:
        return creation.from_bundle(bundle, metadata=metadata, use_metadata=not no_metadata)
    return creation.from_workspace(workspace, manifest, metadata=metadata, use_metadata=not no_metadata)


def create(
    manifest: ManifestOption = None,
    name: Annotated[str | None, typer.Option("--name", help="Name (default: the manifest's).")] = None,
    bundle: BundleOption = None,
    metadata: MetadataOption = None,
    no_metadata: NoMetadataOption = False,
    publish: PublishOption = None,
    internet: InternetOption = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Create a realm from a manifest or a bundle."""
    from islet_cli.warden.creation import parse_publish

    space = workspace_of(workspace)
    made = _creation(space, manifest, bundle, metadata, no_metadata)
    with connect(space) as warden:
        uuid = warden.create_realm_launch(
            name or made.name,
            made.launch,
            metadata=made.metadata,
            publish=[parse_publish(item) for item in publish or ()],
            internet=internet or made.internet,
        )
    show({"uuid": uuid, "name": name or made.name}, f"realm {uuid}", as_json=as_json)


def update(
    realm: RealmArgument,
    manifest: ManifestOption = None,
    bundle: BundleOption = None,
    metadata: MetadataOption = None,
    no_metadata: NoMetadataOption = False,
    publish: PublishOption = None,
    internet: InternetOption = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Give a halted realm another launch, metadata block or published ports; its disk stays."""
    from islet_cli.warden.creation import parse_publish
    from islet_cli.warden.network import Publish

    space = workspace_of(workspace)
    made = _creation(space, manifest, bundle, metadata, no_metadata)
    with connect(space) as warden:
        kept = [Publish(**item) for item in warden.describe_realm(realm)["publish"]]
        warden.update_realm(
            realm,
            made.launch,
            metadata=made.metadata,
            publish=kept if publish is None else [parse_publish(item) for item in publish],
            internet=internet or made.internet,
        )
    show({"updated": realm}, f"realm {realm}: updated", as_json=as_json)


def start(
    realm: RealmArgument, workspace: WorkspaceOption = None, as_json: JsonOption = False, debug: DebugOption = False
) -> None:
    """Start a realm: measure, launch, provision."""
    with (
        connect(workspace_of(workspace)) as warden,
        drawn(f"provisioning {realm}", enabled=not as_json) as report,
    ):
        warden.start(realm, report)
        described = warden.describe_realm(realm)
    show(described, _realm_text(described), as_json=as_json)


def stop(
    realm: RealmArgument, workspace: WorkspaceOption = None, as_json: JsonOption = False, debug: DebugOption = False
) -> None:
    """Stop a realm; a start in progress is cancelled."""
    with connect(workspace_of(workspace)) as warden:
        warden.stop(realm)
    show({"stopped": realm}, f"realm {realm}: halted", as_json=as_json)


def reboot(
    realm: RealmArgument, workspace: WorkspaceOption = None, as_json: JsonOption = False, debug: DebugOption = False
) -> None:
    """Reboot a realm: a new VM and a new realm descriptor."""
    with (
        connect(workspace_of(workspace)) as warden,
        drawn(f"provisioning {realm}", enabled=not as_json) as report,
    ):
        warden.reboot(realm, report)
    show({"rebooted": realm}, f"realm {realm}: running", as_json=as_json)


def destroy(
    realm: RealmArgument, workspace: WorkspaceOption = None, as_json: JsonOption = False, debug: DebugOption = False
) -> None:
    """Remove a halted realm with its disk."""
    with connect(workspace_of(workspace)) as warden:
        warden.destroy(realm)
    show({"destroyed": realm}, f"realm {realm}: removed", as_json=as_json)


def list_realms(workspace: WorkspaceOption = None, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List realms."""
    with connect(workspace_of(workspace)) as warden:
        realms = warden.describe()
    lines = []
    for realm in realms:
        state = "broken" if realm["broken"] else realm["state"]
        told = realm["last_error"] if realm["broken"] else f"{len(realm['applications'])} applications"
        lines.append(f"{realm['uuid']}  {state:<12}  {realm['name']}  {told}")
    show(realms, "\n".join(lines) or "no realms", as_json=as_json)


def inspect(
    realm: RealmArgument,
    command: Annotated[bool, typer.Option("--command", help="The lkvm command line that is measured.")] = False,
    upstream: Annotated[
        bool, typer.Option("--upstream", help="With --command: quotes as upstream writes them.")
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show a realm: state, last error, RIM, ports, applications."""
    with connect(workspace_of(workspace)) as warden:
        if command:
            arguments = _command(warden.describe_launch(realm), upstream)
            import shlex

            show(arguments, shlex.join(arguments), as_json=as_json)
            return
        described = warden.describe_realm(realm)
        described["network"] = warden.inspect(realm)["network"]
    show(described, _realm_text(described), as_json=as_json)


def _command(described: dict[str, Any], upstream: bool) -> list[str]:
    from islet_cli.launch.plan import LaunchPlan, lkvm_arguments

    plan = LaunchPlan.from_json(described["launch"])
    measured = lkvm_arguments(plan, disks=described["disks"], metadata=described["metadata"])
    arguments = ["lkvm", "run", *measured]
    if upstream and "-p" in arguments:
        position = arguments.index("-p") + 1
        arguments[position] = f'"{arguments[position]}"'
    return arguments


def _realm_text(realm: dict[str, Any]) -> str:
    lines = [f"realm {realm['name']} ({realm['uuid']}): {'broken' if realm['broken'] else realm['state']}"]
    lines += [f"busy:        {realm['busy']}"] if realm["busy"] else []
    lines += [f"last error:  {realm['last_error']}"] if realm["last_error"] else []
    lines += [f"RIM:         {realm['rim']}"] if realm["rim"] else []
    lines += [f"accelerator: {realm['accel']} (emulated: no protection from the host)"] if realm["accel"] else []
    lines += [f"network:     {item['if_name']} {item['ip']}" for item in realm.get("network", ())]
    lines += [
        f"port:        {port['address']}:{port['host_port']} -> {port['guest_port']}" for port in realm["publish"]
    ]
    lines += [application_text(item) for item in realm["applications"]]
    return "\n".join(lines)


def application_text(item: dict[str, Any]) -> str:
    """One application on one line."""
    code = "" if item["exit_status"] is None else f" (wait status {item['exit_status']})"
    sizes = f"{item['image_storage_size_mb']}+{item['data_storage_size_mb']} MiB"
    return f"application: {item['name']}:{item['version']} {item['uuid']} {item['status']}{code}, {sizes}"


def token(
    realm: RealmArgument,
    challenge: Annotated[
        str | None, typer.Option("--challenge", metavar="HEX", help="64 bytes (default: random).")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the token here.")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Fetch an attestation token; a halted realm is booted for it."""
    import secrets

    from islet_cli.fsutil import write_atomic

    wanted = secrets.token_bytes(64) if challenge is None else _challenge(challenge)
    with connect(workspace_of(workspace)) as warden:
        data = warden.token(realm, wanted)
    value: dict[str, Any] = {"challenge": wanted.hex(), "size": len(data)}
    if output is not None:
        write_atomic(output, data, mode=0o644)
        value["file"] = str(output)
    else:
        value["token"] = data.hex()
    note(f"host challenge: {wanted.hex()}")
    show(value, f"{output}: {len(data)} bytes" if output else data.hex(), as_json=as_json)


def _challenge(text: str) -> bytes:
    from islet_cli.errors import InputError

    try:
        data = bytes.fromhex(text)
    except ValueError:
        raise InputError(f"--challenge {text[:20]}…: not hexadecimal", code="challenge") from None
    if len(data) != 64:
        raise InputError(f"--challenge: {len(data)} bytes, must be 64", code="challenge")
    return data


def console(
    realm: RealmArgument,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the realm ends.")] = False,
    workspace: WorkspaceOption = None,
    debug: DebugOption = False,
) -> None:
    """Show a realm's console: of this boot, or of the last one."""
    with connect(workspace_of(workspace)) as warden:
        for data in warden.console(realm, follow=follow):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


COMMANDS = {
    "create": create,
    "update": update,
    "start": start,
    "stop": stop,
    "reboot": reboot,
    "destroy": destroy,
    "list": list_realms,
    "inspect": inspect,
    "token": token,
    "console": console,
}
