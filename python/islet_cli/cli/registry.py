"""`islet registry`: serve applications to attested realms, and manage what is served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from islet_cli.cli.common import (
    DebugOption,
    JsonOption,
    WorkspaceOption,
    note,
    show,
    workspace_if_any,
    workspace_of,
)

if TYPE_CHECKING:
    from islet_cli.config import Workspace
    from islet_cli.registry.push_listener import PushOptions
    from islet_cli.registry.server import ServeOptions

app = typer.Typer(no_args_is_help=True, help="The application registry.", rich_markup_mode=None)

RootOption = Annotated[Path | None, typer.Option("--root", metavar="DIR", help="The store (default: the workspace's).")]


@app.command()
def serve(
    root: RootOption = None,
    listen: Annotated[str | None, typer.Option(metavar="ADDR:PORT", help="Port 0 takes any.")] = None,
    tls: Annotated[Literal["none", "tls", "ra-tls"] | None, typer.Option(help="How clients connect.")] = None,
    cert: Annotated[Path | None, typer.Option(metavar="FILE", help="Server certificate chain, PEM.")] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key, PEM.")] = None,
    reference: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Reference values of realms that may pull; repeatable.")
    ] = None,
    cpak: Annotated[
        list[str] | None, typer.Option(metavar="[emulated:]FILE", help="Pinned platform key; repeatable.")
    ] = None,
    allow_emulated: Annotated[
        bool, typer.Option("--allow-emulated", help="Admit emulated platforms, which protect nothing.")
    ] = False,
    access_log: Annotated[Path | None, typer.Option(metavar="FILE", help="Who was refused and why.")] = None,
    push_listen: Annotated[
        str | None,
        typer.Option(metavar="SOCKET|ADDR:PORT|off", help="Where pushes are taken (default: a workspace's socket)."),
    ] = None,
    push_htpasswd: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Who may push over TCP (htpasswd -B).")
    ] = None,
    push_tls: Annotated[
        Literal["none", "tls"] | None, typer.Option(help="How pushing clients connect; loopback may do without.")
    ] = None,
    workspace: WorkspaceOption = None,
    debug: DebugOption = False,
) -> None:
    """Serve in the foreground until SIGINT or SIGTERM."""
    from dataclasses import replace

    ws = workspace_if_any(workspace)
    given = {"root": root, "listen": listen, "tls": tls, "cert": cert, "key": key, "access_log": access_log}
    options = _options(ws, given, reference, cpak, allow_emulated)
    push = _push_options(ws, options, {"listen": push_listen, "htpasswd": push_htpasswd, "tls": push_tls})
    _serve(ws, replace(options, push=push), debug=debug)


def _options(
    ws: Workspace | None,
    given: dict[str, Any],
    reference: list[str] | None,
    cpak: list[str] | None,
    allow_emulated: bool,
) -> ServeOptions:
    """Explicit options before those of the workspace; a policy that was given in part replaces the whole."""
    from islet_cli.attestation.cpak import parse_pin
    from islet_cli.errors import InputError
    from islet_cli.registry.admission import Policy
    from islet_cli.registry.server import ServeOptions

    defaults = _workspace_options(ws)
    root = given["root"] or defaults.get("root")
    if root is None:
        raise InputError("no store to serve", code="usage", hint="pass --root DIR, or serve from a workspace")
    policy = defaults.get("policy")
    if reference or cpak:
        policy = Policy(
            references=[str(Path(one).absolute()) for one in reference]
            if reference
            else policy.references
            if policy
            else [],
            cpaks=[parse_pin(one) for one in cpak] if cpak else policy.cpaks if policy else [],
            allow_emulated=allow_emulated,
        )
    elif allow_emulated and policy is not None:
        policy = Policy(policy.references, policy.cpaks, allow_emulated=True)
    return ServeOptions(
        root=root,
        listen=given["listen"] or defaults.get("listen", "127.0.0.1:1337"),
        tls=given["tls"] or defaults.get("tls", "ra-tls"),
        certificate=given["cert"] or defaults.get("certificate"),
        key=given["key"] or defaults.get("key"),
        policy=policy,
        access_log=given["access_log"] or defaults.get("access_log"),
    )


def _workspace_options(ws: Workspace | None) -> dict[str, Any]:
    """What `[registry]` of islet.toml says, as keyword arguments of `ServeOptions`."""
    from islet_cli.fsutil import make_private_directory
    from islet_cli.registry.admission import Policy

    if ws is None:
        return {}
    settings = ws.settings.registry
    ws.registry_root.mkdir(parents=True, exist_ok=True)
    return {
        "root": ws.registry_root,
        "listen": settings.listen,
        "tls": settings.tls,
        "certificate": ws.path(settings.cert),
        "key": ws.path(settings.key),
        "policy": Policy(
            references=[str(ws.path(one)) for one in settings.reference],
            cpaks=[(one.kind, ws.path(one.file)) for one in settings.cpak],
            allow_emulated=settings.allow_emulated,
        ),
        "access_log": make_private_directory(ws.log_dir) / "registry-access.jsonl",
    }


def _push_options(ws: Workspace | None, options: ServeOptions, given: dict[str, Any]) -> PushOptions | None:
    """Explicit options before those of the workspace; outside of one nothing is taken unless it is said where."""
    from islet_cli.errors import InputError
    from islet_cli.registry.push_listener import PushOptions

    listen, htpasswd, tls = given["listen"], given["htpasswd"], given["tls"]
    if ws is not None:
        settings = ws.settings.registry
        listen = listen or settings.push_listen
        if given["listen"] is None and settings.push_htpasswd:
            htpasswd = htpasswd or ws.path(settings.push_htpasswd)
        tls = tls or (settings.push_tls if given["listen"] is None else None)
    if listen in (None, "off"):
        if given["htpasswd"] is not None or given["tls"] is not None:
            raise InputError("no listener takes pushes", code="usage", hint="say where: --push-listen ADDR:PORT")
        return None
    return PushOptions(listen, tls or "none", options.certificate, options.key, htpasswd)


def _serve(ws: Workspace | None, options: ServeOptions, *, debug: bool) -> None:
    import contextlib
    import logging
    import threading

    from islet_cli import services
    from islet_cli.errors import UnavailableError
    from islet_cli.registry.server import running

    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # The server library reports its own start on the backend socket, which means nothing to a user.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    other = services.find(ws, "registry") if ws is not None else None
    if other is not None:
        raise UnavailableError(
            f"the workspace's registry runs already (process {other.pid})",
            code="already-running",
            hint="stop it: islet registry down",
        )
    with running(options, ws.run_dir if ws is not None else None) as server:
        info = server.info()
        with services.announce(ws, "registry", info) if ws is not None else contextlib.nullcontext():
            note(_summary(info))
            # Being told to stop is how a service ends well.
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()


def _summary(info: dict[str, Any]) -> str:
    warning = f" ({info['warning']})" if "warning" in info else ""
    push = f", pushes at {info['push']}" if "push" in info else ""
    return f"registry at {info['address']}, tls {info['tls']}{push}{warning}"


@app.command()
def up(workspace: WorkspaceOption = None, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Start the workspace's registry in the background."""
    from islet_cli import services

    ws = workspace_of(workspace)
    arguments = ["registry", "serve", "--workspace", str(ws.root), *(["--debug"] if debug else [])]
    running = services.start(ws, "registry", arguments)
    show({"running": True, "pid": running.pid, **running.info}, _summary(running.info), as_json=as_json)


@app.command()
def down(workspace: WorkspaceOption = None, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Stop the workspace's registry."""
    from islet_cli import services

    stopped = services.stop(workspace_of(workspace), "registry")
    show({"stopped": stopped}, "registry stopped" if stopped else "the registry was not running", as_json=as_json)


@app.command()
def status(workspace: WorkspaceOption = None, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Whether the registry runs, where, and what it admits."""
    from islet_cli import services
    from islet_cli.errors import UnavailableError

    running = services.find(workspace_of(workspace), "registry")
    if running is None:
        if not as_json:
            raise UnavailableError("the registry is not running", code="not-running", hint="run: islet registry up")
        show({"running": False}, "", as_json=True)
        raise typer.Exit(3)
    show({"running": True, "pid": running.pid, **running.info}, _summary(running.info), as_json=as_json)


@app.command()
def log(
    last: Annotated[int | None, typer.Option("--last", "-n", min=1, help="Only so many events at the end.")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Who was admitted, who was refused, and why."""
    from islet_cli.registry import log as access_log

    ws = workspace_of(workspace)
    events = access_log.read(ws.log_dir / "registry-access.jsonl", last=last)
    text = "\n".join(access_log.render(event) for event in events)
    show(events, text or "nobody has asked yet", as_json=as_json)


@app.command()
def add(
    layout: Annotated[Path, typer.Argument(metavar="LAYOUT", help="An OCI image layout directory.")],
    name: Annotated[str | None, typer.Option(help="Repository name (default: the image's signed label).")] = None,
    tag: Annotated[str | None, typer.Option(help="Only this tag of LAYOUT (default: all).")] = None,
    root: RootOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Check an image and put it into the store."""
    from islet_cli.progress import bar
    from islet_cli.registry import store

    with bar("adding", enabled=not as_json) as report:
        added = store.add(_root(root, workspace), layout, name, tag=tag, report=report)
    text = "\n".join(f"{added.name}:{one}  {digest}" for one, digest in added.tags.items())
    show(added.to_json(), text, as_json=as_json)


@app.command("list")
def list_(
    root: RootOption = None, workspace: WorkspaceOption = None, as_json: JsonOption = False, debug: DebugOption = False
) -> None:
    """List the store's applications and their tags."""
    from islet_cli.registry import store

    found = store.list_applications(_root(root, workspace))
    lines = [f"{item['name']}:{tag}  {digest}" for item in found for tag, digest in item["tags"].items()]
    lines += [f"{item['name']}  does not load: {item['error']['message']}" for item in found if "error" in item]
    show(found, "\n".join(lines) or "the store is empty", as_json=as_json)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="The application.")],
    tag: Annotated[str | None, typer.Option(help="Only this tag.")] = None,
    root: RootOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Remove an application, or one of its tags."""
    from islet_cli.registry import store

    store.remove(_root(root, workspace), name, tag=tag)
    show({"removed": name, "tag": tag}, f"removed {name}" + (f":{tag}" if tag else ""), as_json=as_json)


@app.command()
def check(
    root: RootOption = None, workspace: WorkspaceOption = None, as_json: JsonOption = False, debug: DebugOption = False
) -> None:
    """Check every application of the store: documents, references, the digest of every blob."""
    from islet_cli.registry import store

    found = store.check(_root(root, workspace))
    data = [
        {"name": name, "ok": error is None, "error": error.to_json() if error else None, "warnings": warnings}
        for name, error, warnings in found
    ]
    lines = [f"{name}: {f'{error.code}: {error.message}' if error else 'ok'}" for name, error, _ in found]
    lines += [f"{name}: warning: {warning}" for name, _, warnings in found for warning in warnings]
    show(data, "\n".join(lines) or "the store is empty", as_json=as_json)
    if any(error for _, error, _ in found):
        raise typer.Exit(1)


@app.command()
def gc(
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, metavar="HOURS", help="Leave younger blobs to pushes under way.")
    ] = 24.0,
    untagged: Annotated[
        bool, typer.Option("--untagged", help="Also give up manifests that no tag, index or subject holds.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    root: RootOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Remove blobs that nothing refers to; safe while the registry serves and takes pushes."""
    from islet_cli.registry.gc import collect

    collected = collect(_root(root, workspace), older_than_s=older_than * 3600, untagged=untagged, dry_run=dry_run)
    lines = [f"{item.name}: {item.problem or f'{len(item.removed)} blobs, {item.bytes} bytes'}" for item in collected]
    verb = "would be removed" if dry_run else "removed"
    lines.append(f"{sum(item.bytes for item in collected)} bytes {verb}")
    show([item.to_json() for item in collected], "\n".join(lines), as_json=as_json)
    if any(item.problem for item in collected):
        raise typer.Exit(1)


def _root(explicit: Path | None, workspace: Path | None) -> Path:
    if explicit is not None:
        return explicit
    root = workspace_of(workspace).registry_root
    root.mkdir(parents=True, exist_ok=True)
    return root
