"""Explaining a RIM: measuring again, with an eye on every step."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from islet_cli import __version__, _native
from islet_cli.rim.explanation import DeviceTree, Explanation, File, Group, Vcpu
from islet_cli.rim.influence import arguments_of
from islet_cli.rim.machine import Machine
from islet_cli.rim.measure import hinted
from islet_cli.rim.request import Request, understand
from islet_cli.rim.sequence import Sequence, align_up

if TYPE_CHECKING:
    from islet_cli._native.rim import _Group

# Measured fields of RmiRealmParams: name, offset, bytes as the measurer writes them.
_PARAMETERS = (
    ("flags", 0x00, 8),
    ("s2sz", 0x08, 4),
    ("sve_vl", 0x10, 4),
    ("num_bps", 0x18, 4),
    ("num_wps", 0x20, 4),
    ("pmu_num_ctrs", 0x28, 4),
    ("hash_algo", 0x30, 1),
)


@dataclass(frozen=True)
class _Measured:
    """What both dialects give."""

    rim: bytes
    page: bytes
    groups: list[_Group]
    start: tuple[int, int]
    dtb: bytes
    dtb_start: int
    files: list[File]
    given: str | None
    notes: tuple[str, ...]


def explain(request: Request, *, trace: Path | None = None) -> Explanation:
    """Measure `request` and tell what went into its RIM.

    Args:
        request: What to measure.
        trace: A file that gets every extension step as a line of JSON.

    Raises:
        InputError: The launch would be refused, a file is missing, the trace cannot be written.
    """
    subject = understand(request)
    with hinted():
        measured = _of_machine(subject, trace) if isinstance(subject, Machine) else _of_sequence(subject, trace)
    total = int.from_bytes(measured.dtb[4:8], "big")
    return Explanation(
        tool=f"islet {__version__}",
        rim=measured.rim.hex(),
        hash_algo=subject.hash_algo,
        vmm=request.vmm,
        dialect=request.dialect,
        profile=subject.profile if isinstance(subject, Machine) else request.host_name or "as given",
        source=request.source,
        parameters=_parameters(measured.page),
        groups=list(_groups(measured.groups)),
        vcpus=_vcpus(measured),
        files=measured.files,
        device_tree=DeviceTree(
            start=measured.dtb_start,
            area_size=len(measured.dtb),
            area_sha256=hashlib.sha256(measured.dtb).hexdigest(),
            blob=base64.b64encode(measured.dtb[:total]).decode(),
            given=measured.given,
        ),
        arguments=arguments_of(request),
        notes=[*request.notes, *measured.notes],
    )


def _of_machine(machine: Machine, trace: Path | None) -> _Measured:
    rim, dtb, entry, regions, page, groups = _native.rim.explain(machine, trace=None if trace is None else str(trace))
    dtb_start = next(start for kind, start, _, _ in regions if kind == "dtb")
    main = "kernel" if machine.kernel is not None else "firmware"
    files = [_file(main, machine.kernel or machine.firmware or "", entry)]
    if machine.initrd is not None:
        size = Path(machine.initrd).stat().st_size
        files.append(File(what="initrd", path=machine.initrd, size=size, start=align_up(dtb_start - size - 4, 4)))
    return _Measured(rim, page, groups, (entry, dtb_start), dtb, dtb_start, files, None, ())


def _of_sequence(sequence: Sequence, trace: Path | None) -> _Measured:
    rim, _, page, groups = _native.rim.measure_sequence(sequence, trace=None if trace is None else str(trace))
    starts = {part.kind: part.start for part in sequence.parts}
    files = [_file(what, path, starts[what]) for what, path in sequence.files]
    tree = sequence.device_tree
    return _Measured(
        rim, page, groups, sequence.start, tree.content, tree.start, files, sequence.dtb_given, sequence.notes
    )


def _file(what: str, path: str, start: int) -> File:
    return File(what=what, path=path, size=Path(path).stat().st_size, start=start)


def _parameters(page: bytes) -> dict[str, int]:
    return {name: int.from_bytes(page[at : at + size], "little") for name, at, size in _PARAMETERS}


def _groups(rows: list[_Group]) -> Iterator[Group]:
    first = 0
    for kind, region, start, top, steps, measured, digest, rim, granules in rows:
        what = region or ("parameters" if kind == "create" else f"vCPU {start}")
        yield Group(
            kind=kind,
            what=what,
            start=start if region else 0,
            top=top if region else 0,
            first_step=first,
            steps=steps,
            measured=measured,
            digest=digest.hex(),
            rim=rim.hex(),
            granules=base64.b64encode(granules).decode(),
        )
        first += steps


def _vcpus(measured: _Measured) -> list[Vcpu]:
    count = sum(1 for group in measured.groups if group[0] == "rec")
    pc, x0 = measured.start
    out = [Vcpu(first=0, last=0, runnable=True, pc=pc, x0=x0)] if count else []
    if count > 1:
        out.append(Vcpu(first=1, last=count - 1, runnable=False, pc=0, x0=0))
    return out
