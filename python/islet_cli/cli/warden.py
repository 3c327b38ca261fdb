"""`islet warden`: the host daemon that launches realms."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from islet_cli.cli.common import DebugOption, JsonOption, WorkspaceOption, note, show, workspace_of

if TYPE_CHECKING:
    from islet_cli.config import Workspace
    from islet_cli.warden.options import WardenOptions

NAME = "warden"

app = typer.Typer(no_args_is_help=True, help="The host daemon that launches realms.", rich_markup_mode=None)


@app.command()
def up(
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay in the foreground and log to stderr.")] = False,
    runner: Annotated[str, typer.Option("--runner", help="qemu.")] = "qemu",
    accel: Annotated[str | None, typer.Option("--accel", help="auto, kvm or tcg.")] = None,
    network: Annotated[str | None, typer.Option("--network", help="user or none.")] = None,
    transport: Annotated[str | None, typer.Option("--transport", help="virtio-serial or vsock.")] = None,
    port: Annotated[int, typer.Option("--port", min=80, help="vsock port.")] = 1337,
    virtualizer: Annotated[
        Path | None, typer.Option("--virtualizer-path", metavar="FILE", help="QEMU binary (default: in PATH).")
    ] = None,
    workdir: Annotated[
        Path | None, typer.Option("--warden-workdir-path", metavar="DIR", help="State (default: .islet/warden).")
    ] = None,
    socket: Annotated[
        Path | None, typer.Option("--unix-sock-path", metavar="FILE", help="Client socket (default: the workspace's).")
    ] = None,
    socket_mode: Annotated[str, typer.Option("--socket-mode", help="Octal mode of the client socket.")] = "0600",
    connect_s: Annotated[float, typer.Option("--realm-connection-wait-time-secs", min=1)] = 60.0,
    response_s: Annotated[float, typer.Option("--realm-response-wait-time-secs", min=1)] = 10.0,
    provision_s: Annotated[float, typer.Option("--realm-provision-wait-time-secs", min=1)] = 600.0,
    stop_s: Annotated[float, typer.Option("--stop-timeout", min=0, help="For a realm to end by itself.")] = 15.0,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Start the warden."""
    from islet_cli import services
    from islet_cli.attestation.verify import EMULATED_WARNING
    from islet_cli.errors import InputError

    space = workspace_of(workspace)
    settings = space.settings.warden
    chosen = {
        "--runner": runner,
        "--accel": accel or settings.accel,
        "--network": network or settings.network,
        "--transport": transport or settings.transport,
        "--port": port,
        "--virtualizer-path": virtualizer and virtualizer.absolute(),
        "--warden-workdir-path": (workdir or space.warden_dir).absolute(),
        "--unix-sock-path": (socket or space.warden_socket).absolute(),
        "--socket-mode": socket_mode,
        "--realm-connection-wait-time-secs": connect_s,
        "--realm-response-wait-time-secs": response_s,
        "--realm-provision-wait-time-secs": provision_s,
        "--stop-timeout": stop_s,
    }
    for option, allowed in _CHOICES.items():
        if chosen[option] not in allowed:
            raise InputError(f"{option} {chosen[option]}: expected {' or '.join(allowed)}", code="usage")
    if foreground:
        _serve(space, _options(space, chosen))
        return
    arguments = [str(item) for pair in chosen.items() if pair[1] is not None for item in pair]
    running = services.start(space, NAME, [NAME, "up", "--foreground", *arguments])
    note(EMULATED_WARNING)
    show({"pid": running.pid, **running.info}, f"warden: running, process {running.pid}", as_json=as_json)


_CHOICES = {
    "--runner": ("qemu",),
    "--accel": ("auto", "kvm", "tcg"),
    "--network": ("user", "none"),
    "--transport": ("virtio-serial", "vsock"),
}


def _options(workspace: Workspace, chosen: dict[str, object]) -> WardenOptions:
    from islet_cli.errors import InputError
    from islet_cli.warden.options import Timeouts, WardenOptions

    try:
        mode = int(str(chosen["--socket-mode"]), 8)
    except ValueError:
        mode = -1
    if not 0o600 <= mode <= 0o666 or mode & 0o111 or mode & 0o600 != 0o600:
        raise InputError(f"--socket-mode {chosen['--socket-mode']}: expected an octal mode like 0600", code="usage")
    virtualizer = chosen["--virtualizer-path"]
    return WardenOptions(
        workdir=Path(str(chosen["--warden-workdir-path"])),
        socket=Path(str(chosen["--unix-sock-path"])),
        platform_socket=workspace.platform_socket,
        accel=str(chosen["--accel"]),
        network="none" if chosen["--network"] == "none" else "user",
        transport="vsock" if chosen["--transport"] == "vsock" else "virtio-serial",
        vsock_port=int(str(chosen["--port"])),
        virtualizer=None if virtualizer is None else Path(str(virtualizer)),
        socket_mode=mode,
        timeouts=Timeouts(
            connect=float(str(chosen["--realm-connection-wait-time-secs"])),
            provision=float(str(chosen["--realm-provision-wait-time-secs"])),
            response=float(str(chosen["--realm-response-wait-time-secs"])),
            stop=float(str(chosen["--stop-timeout"])),
        ),
    )


def _serve(workspace: Workspace, options: WardenOptions) -> None:
    """Run the warden until a signal."""
    import logging

    from islet_cli import services
    from islet_cli.warden.daemon import serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Every VM that ends is end-of-file to the monitor's library; the warden reports the ends itself.
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
    info = {"socket": str(options.socket), "workdir": str(options.workdir), "emulated": True}
    serve(options, lambda: services.announce(workspace, NAME, info))


@app.command()
def down(workspace: WorkspaceOption = None, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Stop every realm in good order, then the warden."""
    from islet_cli import services

    stopped = services.stop(workspace_of(workspace), NAME)
    show({"stopped": stopped}, "warden: stopped" if stopped else "warden: was not running", as_json=as_json)


@app.command()
def status(workspace: WorkspaceOption = None, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Whether it runs, and its realms. Exit code 3 when it does not run."""
    from islet_cli import services
    from islet_cli.attestation.verify import EMULATED_WARNING
    from islet_cli.cli.realm_life import connect
    from islet_cli.errors import UnavailableError

    space = workspace_of(workspace)
    running = services.find(space, NAME)
    if running is None:
        raise UnavailableError("the warden is not running", code="warden-down", hint="run: islet warden up")
    with connect(space) as warden:
        realms = warden.describe()
    value = {"running": True, "pid": running.pid, **running.info, "warning": EMULATED_WARNING, "realms": realms}
    lines = [f"warden: running, process {running.pid}"]
    lines += [f"realm {realm['name']}: {'broken' if realm['broken'] else realm['state']}" for realm in realms]
    show(value, "\n".join([*lines, EMULATED_WARNING]), as_json=as_json)


@app.command()
def client(
    socket: Annotated[
        Path | None, typer.Option("-u", "--unix-socket-path", metavar="SOCKET", help="Default: the workspace's.")
    ] = None,
    workspace: WorkspaceOption = None,
    debug: DebugOption = False,
) -> int:
    """Read commands with upstream's names from standard input; `help` lists them."""
    return _interact(socket or workspace_of(workspace).warden_socket)


def _interact(socket: Path) -> int:
    """Serve standard input until its end; 0 when every command succeeded, else 1."""
    import sys

    from islet_cli.errors import IsletError
    from islet_cli.warden.client import WardenClient
    from islet_cli.warden.interactive import ENDS, execute

    failed = False
    with contextlib.ExitStack() as stack:
        warden = stack.enter_context(WardenClient(socket))
        while True:
            if sys.stdin.isatty():
                print("$ ", end="", flush=True)
            line = sys.stdin.readline()
            if not line or line.strip() in ENDS:
                return 1 if failed else 0
            try:
                answer = execute(warden, line)
            except IsletError as error:
                failed = True
                note(f"error: {error.message}" + (f" ({error.hint})" if error.hint else ""))
                if error.code in ("warden-down", "not-supported"):
                    warden = stack.enter_context(WardenClient(socket))
                continue
            if answer:
                print(answer, flush=True)
