"""Measure a launch: from a kvmtool command line or from a launch plan."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from islet_cli import _native
from islet_cli.errors import InputError
from islet_cli.rim.command_line import machine_of
from islet_cli.rim.machine import Machine

if TYPE_CHECKING:
    from islet_cli.launch.plan import LaunchPlan
    from islet_cli.rim.request import Request

DTB_AREA_SIZE = 65536

# The mends of what the measurement itself finds; the command line's own errors carry theirs.
_HINTS = {
    "layout": "give the realm more memory, or a smaller kernel or initrd; all must fit into its first 256 MiB",
    "device-tree": "use fewer vCPUs or devices, or a shorter kernel command line",
    "file-too-short": "check that the file is complete",
    "file-changed": "measure again when nothing writes to the file",
    "not-a-file": "name a regular file",
}


@dataclasses.dataclass(frozen=True)
class Region:
    """A page-aligned piece of realm memory that went into the RIM, in the order of measurement.

    `kind` is `kernel`, `firmware`, `bss`, `initrd` or `dtb`; of a `bss` only the addresses are
    measured (`measured` is false).
    """

    kind: str
    start: int
    size: int
    measured: bool


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The RIM of a launch and what went into it.

    Attributes:
        rim: 32 or 64 bytes.
        hash_algo: `sha256` or `sha512`.
        vmm: `kvmtool`.
        profile: `tf-rmm` or `islet`.
        dtb: The 65536 bytes of the device-tree area, as they are in the realm's memory.
        regions: What was measured, in order.
        bootargs: The kernel command line in the device tree, outer blanks included; empty for none.
        dump_dtb: Where the command line asked for the device tree (`--dump-dtb`).
        dialect: The order of steps: `measurer`, or `realm-measurements`, whose profile is the named host.
        warnings: What the user should know about this RIM.
    """

    rim: bytes
    hash_algo: str
    vmm: str
    profile: str
    dtb: bytes
    regions: tuple[Region, ...]
    bootargs: str
    dump_dtb: Path | None = None
    dialect: str = "measurer"
    warnings: tuple[str, ...] = ()

    @property
    def dtb_sha256(self) -> str:
        """SHA-256 of the device-tree area, lower-case hex."""
        return hashlib.sha256(self.dtb).hexdigest()

    @property
    def dtb_totalsize(self) -> int:
        """Bytes of the device tree itself within its area (Devicetree Specification v0.4, 5.2)."""
        return int.from_bytes(self.dtb[4:8], "big")

    def to_json(self) -> dict[str, object]:
        """The members of `islet rim compute --json`; `dialect` and `warnings` only where they say more."""
        value: dict[str, object] = {
            "rim": self.rim.hex(),
            "hash_algo": self.hash_algo,
            "vmm": self.vmm,
            "profile": self.profile,
            "dtb_sha256": self.dtb_sha256,
            "regions": [dataclasses.asdict(region) for region in self.regions],
        }
        if self.dialect != "measurer":
            value["dialect"] = self.dialect
        if self.warnings:
            value["warnings"] = list(self.warnings)
        return value

    @property
    def text(self) -> str:
        """What `islet rim compute` prints."""
        monitor = f"profile {self.profile}" if self.dialect == "measurer" else f"host {self.profile}"
        lines = [f"{self.vmm}, {monitor}, {self.hash_algo}"]
        for region in self.regions:
            remark = "" if region.measured else "  (addresses only)"
            lines.append(f"{region.kind:<9} {region.start:#012x} {region.size:>11} bytes{remark}")
        lines.append(f"device tree SHA-256: {self.dtb_sha256}")
        lines.append(f"RIM: {self.rim.hex()}")
        return "\n".join(lines)


def measure_arguments(
    arguments: Sequence[str], *, cwd: Path | None = None, profile: str | None = None, threads: int | None = None
) -> Measurement:
    """Measure the launch that `lkvm run ARGUMENTS` would make.

    Args:
        arguments: The arguments after `lkvm run`.
        cwd: Where relative file names start; the working directory when None.
        profile: `tf-rmm` or `islet`; None follows `--islet` among the arguments.
        threads: How many hash, 1 or more; None for one per processor.

    Raises:
        InputError: kvmtool would refuse it, its RIM would depend on the host, or a file is missing.
    """
    return measure_machine(machine_of(arguments, cwd=cwd or Path(), profile=profile), threads=threads)


@contextmanager
def hinted() -> Iterator[None]:
    """Give the errors of native code their mends."""
    try:
        yield
    except InputError as error:
        error.hint = error.hint or _HINTS.get(error.code)
        raise


def measure_machine(machine: Machine, *, threads: int | None = None) -> Measurement:
    """Measure a kvmtool launch that is understood already.

    Raises:
        InputError: A file is missing or unreadable, or something does not fit.
    """
    with hinted():
        rim, dtb, regions = _native.rim.measure(machine, threads=threads)
    return Measurement(
        rim=rim,
        hash_algo=machine.hash_algo,
        vmm="kvmtool",
        profile=machine.profile,
        dtb=dtb,
        regions=tuple(Region(*region) for region in regions),
        bootargs=os.fsdecode(machine.bootargs or b""),
        dump_dtb=machine.dump_dtb,
    )


def measure_request(request: Request, *, threads: int | None = None) -> Measurement:
    """Measure whatever `request` asks for, with `threads` threads (None: one per processor).

    Raises:
        InputError: The launch would be refused, what it does to the RIM is not known, or a file is missing.
    """
    from islet_cli.rim.request import understand

    subject = understand(request)
    if isinstance(subject, Machine):
        return dataclasses.replace(measure_machine(subject, threads=threads), warnings=request.notes)
    with hinted():
        rim, regions, _, _ = _native.rim.measure_sequence(subject, threads=threads)
    return Measurement(
        rim=rim,
        hash_algo=subject.hash_algo,
        vmm=subject.vmm,
        profile=request.host_name or "as given",
        dialect=request.dialect,
        dtb=subject.device_tree.content,
        regions=tuple(Region(*region) for region in regions),
        bootargs="",
        warnings=(*request.notes, *subject.notes),
    )


def measure_plan(
    plan: LaunchPlan, *, kernel: Path | None = None, initramfs: Path | None = None, threads: int | None = None
) -> Measurement:
    """Measure a launch plan: the same as its command line, with the files where they are now.

    Args:
        plan: The launch. Its digests are not checked here.
        kernel: Read the kernel from here (for example /proc/self/fd/N) instead of `plan.kernel`.
        initramfs: Likewise for the initramfs.
        threads: How many hash, 1 or more; None for one per processor.

    Raises:
        InputError: A file is missing or does not fit.
    """
    from islet_cli.launch.plan import lkvm_arguments

    # The personalization is not measured, and not every one can stand on a command line.
    plan = dataclasses.replace(
        plan,
        kernel=os.fspath(kernel or plan.kernel),
        initramfs=os.fspath(initramfs or plan.initramfs),
        personalization="0" * 128,
    )
    return measure_arguments(lkvm_arguments(plan), threads=threads)
