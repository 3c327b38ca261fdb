"""What is to be measured: a command line or a manifest, the dialect, the host, a given device tree.

A `Request` is what every command of `islet rim` starts from; it is understood (`understand`) before
anything is hashed.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence as Arguments
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from islet_cli.errors import InputError
from islet_cli.rim.capabilities import Capabilities
from islet_cli.rim.machine import Machine
from islet_cli.rim.sequence import Sequence

if TYPE_CHECKING:
    from islet_cli.launch.plan import LaunchPlan

MEASURER = "measurer"
REALM_VM = "realm-measurements"
DIALECTS = (MEASURER, REALM_VM)
VMMS = ("kvmtool", "qemu", "cloud-hypervisor")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One thing to measure.

    Attributes:
        arguments: The VMM's arguments, without its name and without `run`.
        cwd: Where relative file names start.
        vmm: One of `VMMS`.
        dialect: One of `DIALECTS`.
        profile: The measurer's profile; None follows `--islet`.
        host: What the host offers, for the second dialect.
        host_name: How the host was named, for reports.
        dtb: A device tree that the VMM dumped.
        source: How the request was made, for reports.
        manifest: The manifest it came from; None for a command line.
    """

    arguments: tuple[str, ...]
    cwd: Path = field(default_factory=Path)
    vmm: str = "kvmtool"
    dialect: str = MEASURER
    profile: str | None = None
    host: Capabilities = field(default_factory=Capabilities)
    host_name: str = ""
    dtb: Path | None = None
    source: str = "command line"
    manifest: Path | None = None
    notes: tuple[str, ...] = ()


def of_command_line(words: Arguments[str], **options: object) -> Request:
    """A request from a command line as it is typed: the words `lkvm run` or the VMM's name may stand before it."""
    rest = list(words)
    program = Path(rest[0]).name if rest and not rest[0].startswith("-") else ""
    if program in ("lkvm", "vm", "kvmtool") and rest[1:2] == ["run"]:
        rest = rest[2:]
    elif program == "run" or program.startswith("qemu-system-") or program == "cloud-hypervisor":
        rest = rest[1:]
    request = Request(arguments=tuple(rest), source=shlex.join(words))
    return checked(dataclasses.replace(request, **options))  # type: ignore[arg-type]


def of_manifest(path: Path, **options: object) -> Request:
    """A request from a realm manifest.

    Raises:
        InputError: The manifest or a file that it names is missing or malformed.
    """
    from islet_cli.launch.manifest import load_manifest
    from islet_cli.launch.plan import plan_of
    from islet_cli.rim.stability import warnings_of

    manifest = load_manifest(path)
    plan = plan_of(manifest)
    request = of_plan(plan, source=str(path), manifest=manifest.path, notes=tuple(warnings_of(manifest)))
    return checked(dataclasses.replace(request, **options))  # type: ignore[arg-type]


def of_plan(plan: LaunchPlan, *, source: str, manifest: Path | None = None, notes: tuple[str, ...] = ()) -> Request:
    """A request from a launch plan: its command line."""
    from islet_cli.launch.plan import lkvm_arguments

    # The personalization is not measured, and not every one can stand on a command line.
    arguments = lkvm_arguments(dataclasses.replace(plan, personalization="0" * 128))
    return Request(
        arguments=tuple(arguments), profile=plan.profile, vmm=plan.vmm, source=source, manifest=manifest, notes=notes
    )


def checked(request: Request) -> Request:
    """Refuse combinations that mean nothing.

    Raises:
        InputError: `usage`.
    """
    for what, value, known in (("--vmm", request.vmm, VMMS), ("--dialect", request.dialect, DIALECTS)):
        if value not in known:
            raise InputError(f"{what} {value}: unknown", code="usage", hint=f"use one of {', '.join(known)}")
    if request.vmm != "kvmtool":
        if request.manifest is not None:
            raise InputError(
                f"--vmm {request.vmm}: the manifest says kvmtool", code="usage", hint="give a command line"
            )
        request = dataclasses.replace(request, dialect=REALM_VM)
    if request.dialect == REALM_VM:
        if request.profile is not None and request.manifest is None:
            raise InputError("--profile: belongs to the measurer's dialect", code="usage", hint="use --host NAME")
    elif request.dtb is not None or request.host_name:
        option = "--dtb" if request.dtb is not None else "--host"
        raise InputError(
            f"{option}: the measurer's dialect follows from the command line alone",
            code="usage",
            hint=f"add --dialect {REALM_VM}",
        )
    return request


def understand(request: Request) -> Machine | Sequence:
    """Read the arguments: a `Machine` in the measurer's dialect, a `Sequence` in the other.

    Raises:
        InputError: They would be refused, or what they do to the RIM is not known.
    """
    if request.dialect == MEASURER:
        from islet_cli.rim.command_line import machine_of

        return machine_of(request.arguments, cwd=request.cwd, profile=request.profile)
    if request.vmm == "kvmtool":
        from islet_cli.rim.vmm_kvmtool import sequence_of
    elif request.vmm == "qemu":
        from islet_cli.rim.vmm_qemu import sequence_of
    else:
        from islet_cli.rim.vmm_cloud_hypervisor import sequence_of
    return sequence_of(request.arguments, cwd=request.cwd, host=request.host, dtb=request.dtb)
