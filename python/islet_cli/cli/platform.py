"""`islet platform`: the emulated platform of a workspace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from islet_cli.cli.common import DebugOption, JsonOption, WorkspaceOption, note, show, workspace_of

if TYPE_CHECKING:
    from islet_cli.config import Workspace
    from islet_cli.platform.hes import Hes

NAME = "platform"

app = typer.Typer(
    help="The emulated platform: HES and RMM for development.", no_args_is_help=True, rich_markup_mode=None
)


@app.command()
def up(
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay in the foreground and log to stderr.")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Start the platform."""
    from islet_cli import services
    from islet_cli.attestation.verify import EMULATED_WARNING

    found = workspace_of(workspace)
    if foreground:
        _serve(found)
        return
    running = services.start(found, NAME, [NAME, "up", "--foreground"])
    note(EMULATED_WARNING)
    show({"pid": running.pid, **running.info}, f"platform: running, process {running.pid}", as_json=as_json)


def _serve(workspace: Workspace) -> None:
    """Run the platform until SIGTERM, SIGINT or a shutdown request."""
    import logging

    from islet_cli import services
    from islet_cli.platform import hes
    from islet_cli.platform.server import serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    platform, is_new = hes.load_or_create(workspace.platform_dir)
    log = logging.getLogger(__name__)
    instance = platform.instance_id.hex()
    log.info("platform %s%s", instance, " (new identity)" if is_new else "")
    info = {"socket": str(workspace.platform_socket), "instance_id": instance, "emulated": True}
    try:
        with serve(platform, workspace.platform_socket) as server, services.announce(workspace, NAME, info):
            server.run()
    except KeyboardInterrupt:
        log.info("stopping")


@app.command()
def down(workspace: WorkspaceOption = None, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Stop the platform. Realms that run lose their RSI until they are restarted."""
    from islet_cli import services

    stopped = services.stop(workspace_of(workspace), NAME)
    show({"stopped": stopped}, "platform: stopped" if stopped else "platform: was not running", as_json=as_json)


@app.command()
def status(workspace: WorkspaceOption = None, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Whether it runs, and its realm descriptors. Exit code 3 when it does not run."""
    from islet_cli import services
    from islet_cli.attestation.verify import EMULATED_WARNING
    from islet_cli.errors import UnavailableError
    from islet_cli.platform.client import PlatformClient

    found = workspace_of(workspace)
    running = services.find(found, NAME)
    if running is None:
        raise UnavailableError("the platform is not running", code="platform-down", hint="run: islet platform up")
    with PlatformClient(found.platform_socket, timeout_s=10) as client:
        realms = client.realm_list()
    value = {"running": True, "pid": running.pid, **running.info, "warning": EMULATED_WARNING, "realms": realms}
    lines = [f"platform: running, process {running.pid}", f"instance: {running.info.get('instance_id')}"]
    lines += [f"realm {realm['rd']}: {realm['state']}, RIM {realm['rim'][:16]}…" for realm in realms]
    show(value, "\n".join([*lines, EMULATED_WARNING]), as_json=as_json)


@app.command("show")
def show_identity(workspace: WorkspaceOption = None, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Show the platform's identity; never its secrets."""
    from islet_cli.attestation.verify import EMULATED_WARNING
    from islet_cli.platform import hes

    found = workspace_of(workspace)
    platform = hes.load(found.platform_dir)
    value = _identity(platform) | {
        "cpak": str(found.platform_dir / hes.CPAK_FILE),
        "emulated": True,
        "warning": EMULATED_WARNING,
    }
    lines = [
        f"instance id:       {value['instance_id']}",
        f"platform key:      {value['cpak']} (SHA-256 of SPKI {value['cpak_fingerprint']})",
        f"implementation id: {value['implementation_id']}",
        f"lifecycle:         {value['lifecycle']:#x}",
        f"profile:           {value['profile']}",
        *(f"slot {entry['slot']}: {entry['type']:<12} {entry['value']}" for entry in value["slots"]),
        EMULATED_WARNING,
    ]
    show(value, "\n".join(lines), as_json=as_json)


def _identity(platform: Hes) -> dict[str, Any]:
    own = platform.identity
    return {
        "instance_id": platform.instance_id.hex(),
        "cpak_fingerprint": platform.cpak.public.fingerprint,
        "implementation_id": own.implementation_id.hex(),
        "lifecycle": own.lifecycle,
        "profile": own.profile,
        "slots": [
            {"slot": index, "type": entry.sw_type, "version": entry.sw_version, "value": entry.value.hex()}
            for index, entry in enumerate(platform.slots.measurements())
        ],
    }


@app.command()
def reset(
    yes: Annotated[bool, typer.Option("--yes", help="Yes, everything that was sealed may be lost.")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Make a new identity. Every volume that was sealed under the old one becomes unreadable."""
    from islet_cli import services
    from islet_cli.errors import InputError, OperationError
    from islet_cli.platform import hes

    found = workspace_of(workspace)
    if not yes:
        raise InputError(
            "every volume sealed under this platform would be lost", code="usage", hint="pass --yes if that is meant"
        )
    if services.find(found, NAME) is not None:
        raise OperationError("the platform is running", code="busy", hint="run: islet platform down")
    platform = hes.reset(found.platform_dir)
    instance = platform.instance_id.hex()
    show({"instance_id": instance}, f"new platform identity: {instance}", as_json=as_json)
