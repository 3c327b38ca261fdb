"""`islet run`, and the short forms for what it started: `ps`, `logs`, `stop`, `rm`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from islet_cli.cli.common import DebugOption, JsonOption, WorkspaceOption, note, show, workspace_of
from islet_cli.errors import InputError, IsletError


def _port_pair(text: str) -> tuple[int, int]:
    host, colon, guest = text.partition(":")
    if colon and host.isdecimal() and guest.isdecimal() and int(host) <= 65535 and 0 < int(guest) <= 65535:
        return int(host), int(guest)
    raise InputError(f"-p {text}: not of the form HOST:GUEST", code="bad-port", hint="for example: -p 8080:80")


def run(
    path: Annotated[str, typer.Argument(help="A program, a directory, an OCI layout or archive, or docker://REF.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGS…]", help="Arguments of the program.")
    ] = None,
    realm: Annotated[str | None, typer.Option("--realm", metavar="NAME", help="Use this halted realm.")] = None,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Return as soon as it runs.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="Name of the application (default: from PATH).")] = None,
    memory: Annotated[
        int | None, typer.Option("-m", "--memory", metavar="MIB", min=128, help="Memory of the realm.")
    ] = None,
    publish: Annotated[
        list[str] | None, typer.Option("-p", "--publish", metavar="HOST:GUEST", help="Publish a port.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="K=V", help="Environment, part of the signed image.")
    ] = None,
    entrypoint: Annotated[
        str | None, typer.Option("--entrypoint", help="What to start in it: shell words, or a JSON list.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the realm running at the end.")] = False,
    workspace: WorkspaceOption = None,
    debug: DebugOption = False,
) -> None:
    """Run an application in a realm: build, sign, publish, provision, start, stream its output, return its code."""
    from islet_cli.developer import run as library
    from islet_cli.oci.words import split_words
    from islet_cli.progress import bar

    options = library.Options(
        path=path,
        name=name,
        entrypoint=() if entrypoint is None else split_words(entrypoint, what="--entrypoint"),
        arguments=arguments or (),
        env=env or (),
        publish=[_port_pair(item) for item in publish or ()],
        memory_mib=memory,
        realm=realm,
        detach=detach,
        keep=keep,
    )
    try:
        code = library.run(library.default_workspace(workspace, note), options, library.Screen(note, _output, bar))
    except IsletError as error:
        if debug:
            raise
        _tell(error)
        raise typer.Exit(library.exit_code_of(error)) from error
    raise typer.Exit(code)


def _output(chunk: bytes) -> None:
    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def _tell(error: IsletError) -> None:
    note(f"error: {error.message}")
    if error.hint:
        note(f"hint: {error.hint}")


def ps(workspace: WorkspaceOption = None, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List realms, their applications and published ports."""
    from islet_cli.developer.running import listing

    rows = listing(workspace_of(workspace))
    lines = [f"{'NAME':<24} {'STATE':<13} {'APPLICATIONS':<32} PORTS"]
    lines += [f"{row['name']:<24} {row['state']:<13} {_applications(row):<32} {_ports(row)}" for row in rows]
    show(rows, "\n".join(lines), as_json=as_json)


def _applications(row: dict[str, Any]) -> str:
    return ", ".join(f"{app['name']} ({app['status'].lower()})" for app in row["applications"]) or "none"


def _ports(row: dict[str, Any]) -> str:
    return ", ".join(f"{port['address']}:{port['host_port']}->{port['guest_port']}" for port in row["publish"])


def logs(
    name: Annotated[str, typer.Argument(help="The application.")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as output appears.")] = False,
    workspace: WorkspaceOption = None,
    debug: DebugOption = False,
) -> None:
    """Show the output of an application that `islet run` started."""
    from islet_cli.developer.running import output

    for chunk in output(workspace_of(workspace), name, follow=follow):
        _output(chunk)


def stop(
    name: Annotated[str, typer.Argument(help="The application.")],
    workspace: WorkspaceOption = None,
    debug: DebugOption = False,
) -> None:
    """Stop an application that `islet run` started, with its realm; its data stays."""
    from islet_cli.developer.running import stop as library

    library(workspace_of(workspace), name)


def rm(
    name: Annotated[str, typer.Argument(help="The application.")],
    workspace: WorkspaceOption = None,
    debug: DebugOption = False,
) -> None:
    """Remove an application that `islet run` started: its realm with all its data."""
    from islet_cli.developer.running import forget

    forget(workspace_of(workspace), name)
