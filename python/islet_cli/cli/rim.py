"""`islet rim …`: the realm initial measurement: compute, explain, compare, search, check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from islet_cli.cli.common import DebugOption, JsonOption, WorkspaceOption, note, show, workspace_of

if TYPE_CHECKING:
    from islet_cli.rim.request import Request

app = typer.Typer(no_args_is_help=True, help="Realm initial measurement.", rich_markup_mode=None)

ArgumentsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="-- run ARGS…", help="An `lkvm run ARGS…` command line, verbatim.", show_default=False),
]
RealmOption = Annotated[
    Path | None, typer.Option("--realm", metavar="FILE", help="A realm manifest (default: the workspace's).")
]
ProfileOption = Annotated[
    str | None, typer.Option("--profile", metavar="tf-rmm|islet", help="The monitor whose parameters are assumed.")
]
VmmOption = Annotated[
    str, typer.Option("--vmm", metavar="kvmtool|qemu|cloud-hypervisor", help="The VMM that the arguments are for.")
]
DialectOption = Annotated[
    str,
    typer.Option(
        "--dialect", metavar="measurer|realm-measurements", help="The order of steps; other VMMs have the second one."
    ),
]
HostOption = Annotated[
    list[str] | None,
    typer.Option(
        "--host",
        metavar="NAME|FILE",
        help="Host capabilities (second dialect): fvp, qemu-max-8.2, kvm, rmm-1.0-eac5 or a TOML file; repeatable.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace one host capability, such as num_bps=4; repeatable."),
]
DtbOption = Annotated[
    Path | None, typer.Option("--dtb", metavar="FILE", help="The device tree that the VMM dumped (second dialect).")
]


@app.callback()
def _group() -> None:
    """Realm initial measurement."""


@app.command("compute")
def compute(
    arguments: ArgumentsArgument = None,
    realm: RealmOption = None,
    profile: ProfileOption = None,
    vmm: VmmOption = "kvmtool",
    dialect: DialectOption = "measurer",
    host: HostOption = None,
    settings: SetOption = None,
    dtb: DtbOption = None,
    dtb_out: Annotated[
        Path | None, typer.Option("--dtb-out", metavar="FILE", help="Write the device-tree area here.")
    ] = None,
    lock_out: Annotated[
        Path | None, typer.Option("--lock-out", metavar="FILE", help="Write a lock file for `islet rim check` here.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="Threads that hash (default: all processors).")
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compute the RIM of an `lkvm run` command line, or of a realm manifest."""
    from islet_cli.fsutil import write_atomic
    from islet_cli.rim.measure import measure_request

    request = _request(arguments, realm, workspace, _options(profile, vmm, dialect, host, settings, dtb))
    measurement = measure_request(request, threads=threads)
    for target in (dtb_out, measurement.dump_dtb):
        if target is not None:
            write_atomic(target, measurement.dtb, mode=0o644)
    if lock_out is not None:
        from islet_cli.rim import lock

        write_atomic(lock_out, lock.make(request, lock_out.parent), mode=0o644)
    for warning in measurement.warnings:
        note(f"warning: {warning}")
    show(measurement.to_json(), measurement.text, as_json=as_json)


@app.command("explain")
def explain(
    arguments: ArgumentsArgument = None,
    realm: RealmOption = None,
    profile: ProfileOption = None,
    vmm: VmmOption = "kvmtool",
    dialect: DialectOption = "measurer",
    host: HostOption = None,
    settings: SetOption = None,
    dtb: DtbOption = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE", help="Write every step as a line of JSON.")
    ] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Draw the memory map and the order of measurement.")
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Tell what went into a RIM: arguments, regions, parameters, device tree. `--json` saves it for `diff`."""
    from islet_cli.fsutil import write_atomic
    from islet_cli.rim.explain import explain as explain_request
    from islet_cli.rim.report import explanation_text

    request = _request(arguments, realm, workspace, _options(profile, vmm, dialect, host, settings, dtb))
    explanation = explain_request(request, trace=trace)
    if svg is not None:
        from islet_cli.rim.svg import draw

        write_atomic(svg, draw(explanation).encode(), mode=0o644)
    show(explanation.to_json(), "" if as_json else explanation_text(explanation), as_json=as_json)


@app.command("diff")
def diff(
    old: Annotated[
        str,
        typer.Argument(metavar="A", help="A manifest, saved explanation, command line in quotes, lock file or RIM."),
    ],
    new: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    search: Annotated[
        bool, typer.Option("--search", help="One side is a RIM: look for the combination of options that gives it.")
    ] = False,
    changes: Annotated[int, typer.Option("--changes", min=0, max=4, help="With --search: most changes at once.")] = 3,
    profile: ProfileOption = None,
    vmm: VmmOption = "kvmtool",
    dialect: DialectOption = "measurer",
    host: HostOption = None,
    settings: SetOption = None,
    dtb: DtbOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Tell why two RIMs differ: the first step that does, and all causes. Exit code 1 when they differ."""
    from islet_cli.rim.compare import compare_or_search

    options = _options(profile, vmm, dialect, host, settings, dtb)
    outcome = compare_or_search(old, new, options, changes=changes if search else None)
    show(outcome.to_json(), outcome.text, as_json=as_json)
    raise typer.Exit(0 if outcome.settled else 1)


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE.lock", help="A lock file of `islet realm publish`.")],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure again what a lock file names, and explain any drift. Exit code 1 when the RIM is another."""
    from islet_cli.rim.lock import check as check_lock
    from islet_cli.rim.report import check_text

    result = check_lock(file)
    show(result.to_json(), check_text(result), as_json=as_json)
    raise typer.Exit(0 if result.equal else 1)


@app.command("rem")
def rem(
    values: Annotated[
        list[str] | None, typer.Argument(metavar="[HEX]…", help="Measurements to extend with, 1 to 64 bytes each.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="HEX", help="The REM before (default: all zero).")
    ] = None,
    algorithm: Annotated[
        str, typer.Option("--measurement-algo", metavar="sha256|sha512", help="The realm's hash algorithm.")
    ] = "sha256",
    apps: Annotated[
        list[str] | None,
        typer.Option("--app", metavar="LAYOUT[:TAG]", help="Extend as the app manager does for this signed image."),
    ] = None,
    ca_pub: Annotated[
        Path | None, typer.Option("--ca-pub", metavar="FILE", help="The root CA (default: the workspace's).")
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Predict a realm extensible measurement: given values, then signed images in the order of installation."""
    from islet_cli.rim.rem import Image, predict

    images = [Image.parse(text) for text in apps or []]
    authority = ca_pub
    if images and authority is None:
        space = workspace_of(workspace)
        authority = space.path(space.settings.keys.ca).with_suffix(".pub")
    prediction = predict(values or [], images, start=start, algorithm=algorithm, ca_pub=authority)
    show(prediction.to_json(), prediction.text, as_json=as_json)


def _options(
    profile: str | None,
    vmm: str,
    dialect: str,
    host: list[str] | None,
    settings: list[str] | None,
    dtb: Path | None,
) -> dict[str, object]:
    """The members of a request that the options decide."""
    options: dict[str, object] = {"vmm": vmm, "dialect": dialect, "dtb": dtb}
    if profile is not None:
        options["profile"] = profile
    if host or settings:
        from islet_cli.rim.capabilities import combine, options_of

        options["host"] = combine(host or [], options_of(settings or []))
        options["host_name"] = " + ".join([*(host or []), *(settings or [])])
    return options


def _request(
    arguments: list[str] | None, realm: Path | None, workspace: Path | None, options: dict[str, object]
) -> Request:
    from islet_cli.errors import InputError
    from islet_cli.rim.request import of_command_line, of_manifest

    if arguments and realm is not None:
        raise InputError(
            "--realm and a command line exclude each other", code="usage", hint="give one of the two to measure"
        )
    if arguments:
        return of_command_line(arguments, **options)
    return of_manifest(_manifest_path(realm, workspace), **options)


def _manifest_path(explicit: Path | None, workspace: Path | None) -> Path:
    if explicit is not None:
        return explicit
    found = workspace_of(workspace)
    return found.manifest_path(found.settings.run.realm)
