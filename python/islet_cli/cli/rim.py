"""`islet rim …`: the realm initial measurement."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from islet_cli.cli.common import DebugOption, JsonOption, WorkspaceOption, show, workspace_of

if TYPE_CHECKING:
    from islet_cli.rim.measure import Measurement

app = typer.Typer(no_args_is_help=True, help="Realm initial measurement.", rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Realm initial measurement."""


@app.command("compute")
def compute(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- run ARGS…", help="An `lkvm run ARGS…` command line, verbatim.", show_default=False),
    ] = None,
    realm: Annotated[
        Path | None,
        typer.Option("--realm", metavar="FILE", help="A realm manifest (default: the workspace's)."),
    ] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", metavar="tf-rmm|islet", help="The monitor whose parameters are assumed.")
    ] = None,
    dtb_out: Annotated[
        Path | None, typer.Option("--dtb-out", metavar="FILE", help="Write the 65536-byte device-tree area here.")
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compute the RIM of an `lkvm run` command line, or of a realm manifest."""
    from islet_cli.errors import InputError
    from islet_cli.fsutil import write_atomic

    if arguments and realm is not None:
        raise InputError(
            "--realm and a command line exclude each other", code="usage", hint="give one of the two to measure"
        )
    if arguments:
        measurement = _of_command_line(arguments, profile)
    else:
        measurement = _of_manifest(_manifest_path(realm, workspace), profile)
    for target in (dtb_out, measurement.dump_dtb):
        if target is not None:
            write_atomic(target, measurement.dtb, mode=0o644)
    show(measurement.to_json(), _text(measurement), as_json=as_json)


def _of_command_line(arguments: list[str], profile: str | None) -> Measurement:
    from islet_cli.rim.measure import measure_arguments

    for prefix in (["lkvm", "run"], ["run"]):
        if arguments[: len(prefix)] == prefix:
            arguments = arguments[len(prefix) :]
            break
    return measure_arguments(arguments, profile=profile)


def _of_manifest(path: Path, profile: str | None) -> Measurement:
    from islet_cli.launch.manifest import load_manifest
    from islet_cli.launch.plan import plan_of, with_profile
    from islet_cli.rim.measure import measure_plan

    plan = plan_of(load_manifest(path))
    return measure_plan(plan if profile is None else with_profile(plan, profile))


def _manifest_path(explicit: Path | None, workspace: Path | None) -> Path:
    if explicit is not None:
        return explicit
    found = workspace_of(workspace)
    return found.manifest_path(found.settings.run.realm)


def _text(measurement: Measurement) -> str:
    lines = [f"{measurement.vmm}, profile {measurement.profile}, {measurement.hash_algo}"]
    for region in measurement.regions:
        note = "" if region.measured else "  (addresses only)"
        lines.append(f"{region.kind:<9} {region.start:#012x} {region.size:>11} bytes{note}")
    lines.append(f"device tree SHA-256: {measurement.dtb_sha256}")
    lines.append(f"RIM: {measurement.rim.hex()}")
    return "\n".join(lines)
