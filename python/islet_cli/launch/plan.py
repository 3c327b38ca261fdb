"""The launch plan: what a realm is launched with, and the kvmtool command line that it stands for.

The plan travels as JSON (LAUNCH in the management protocol of the platform) from the vendor to the warden and from
the warden to the platform; its RIM is that of `lkvm run` with `lkvm_arguments(plan)`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from islet_cli.errors import InputError
from islet_cli.fsutil import os_error
from islet_cli.launch import types
from islet_cli.launch.manifest import Manifest

# Stand-ins where a device's own address is not measured: any readable file is a disk to the measurement,
# any NIC and any CID give the same device-tree node.
_ANY_DISK = "/dev/null"
_ANY_NIC = "mode=tap"
_ANY_CID = 3
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """One launch, complete: nothing else decides the RIM but the two files.

    `kernel` and `initramfs` are absolute paths; a digest that is None is not checked.
    `personalization` is the RPV as 128 hex digits.
    """

    schema: Literal[1] = 1
    vmm: types.Vmm = "kvmtool"
    profile: types.Profile = "tf-rmm"
    hash_algo: types.HashAlgo = "sha256"
    kernel: types.AbsolutePath
    kernel_sha256: types.Sha256Hex | None
    initramfs: types.AbsolutePath
    initramfs_sha256: types.Sha256Hex | None
    cmdline: types.Cmdline
    vcpus: types.Vcpus
    memory_mib: types.MemoryMib
    console: types.Console = "serial"
    irqchip: types.IrqChip = "gicv3"
    sve_vl: types.SveVl = 0
    pmu: bool = False
    pmu_counters: types.PmuCounters = 0
    disks: types.Disks = 1
    nics: types.Nics = 1
    vsock: bool = True
    personalization: types.RpvHex = "0" * 128

    def to_json(self) -> dict[str, object]:
        """The members in the order of the format."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Any, *, what: str = "launch plan") -> LaunchPlan:
        """Check and convert a decoded JSON object: every member present, none unknown, each in its range.

        Raises:
            InputError: Anything else (`launch`); the message names the member.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(value, dict):
            raise InputError(f"{what}: not an object", code="launch")
        unknown = sorted(str(key) for key in value if key not in names)
        missing = [name for name in names if name not in value]
        if unknown or missing:
            problem = f"unknown member {unknown[0]!r}" if unknown else f"member {missing[0]!r} is missing"
            raise InputError(f"{what}: {problem}", code="launch")
        try:
            return msgspec.convert(value, cls)
        except (msgspec.ValidationError, UnicodeError) as error:
            raise InputError(f"{what}: {error}", code="launch") from error


def plan_of(manifest: Manifest, *, kernel: Path | None = None, initramfs: Path | None = None) -> LaunchPlan:
    """Make the launch plan of a realm manifest, with the digests of its files as they are now.

    Args:
        manifest: The realm.
        kernel: Another kernel file than the manifest's.
        initramfs: Another initramfs than the manifest's.

    Raises:
        InputError: A file is missing or unreadable.
    """
    kernel = (kernel or manifest.kernel_path).absolute()
    initramfs = (initramfs or manifest.initramfs_path).absolute()
    launch, devices = manifest.launch, manifest.devices
    # With a disk per application only the applications that the manifest lists are known before the launch.
    disks = 1 if devices.disk_layout == "shared" else len(manifest.policy.applications)
    return LaunchPlan.from_json(
        {
            "schema": 1,
            "vmm": launch.vmm,
            "profile": launch.profile,
            "hash_algo": launch.hash_algo,
            "kernel": os.fspath(kernel),
            "kernel_sha256": file_sha256(kernel),
            "initramfs": os.fspath(initramfs),
            "initramfs_sha256": file_sha256(initramfs),
            "cmdline": launch.cmdline,
            "vcpus": launch.vcpus,
            "memory_mib": launch.memory_mib,
            "console": launch.console,
            "irqchip": launch.irqchip,
            "sve_vl": launch.sve_vl,
            "pmu": launch.pmu,
            "pmu_counters": launch.pmu_counters,
            "disks": disks,
            "nics": devices.nics,
            "vsock": devices.vsock,
            "personalization": manifest.personalization.hex(),
        },
        what=str(manifest.path),
    )


def with_profile(plan: LaunchPlan, profile: str) -> LaunchPlan:
    """The same launch under another monitor's profile.

    Raises:
        InputError: Unknown profile (`launch`).
    """
    return LaunchPlan.from_json(plan.to_json() | {"profile": profile}, what=f"--profile {profile}")


def lkvm_arguments(
    plan: LaunchPlan,
    *,
    disks: Sequence[str] | None = None,
    nics: Sequence[str] | None = None,
    vsock_cid: int = _ANY_CID,
    metadata: str | None = None,
    measurer: bool = True,
) -> list[str]:
    """The arguments after `lkvm run` that this plan stands for.

    Args:
        plan: The launch.
        disks: One `-d` value per disk of the plan; None: any file (the names are not measured).
        nics: One `-n` value per NIC of the plan; None: any NIC.
        vsock_cid: The context id; any but 0 measures the same.
        metadata: The file of the realm metadata block; None for a realm without one. It is not measured.
        measurer: Include `--islet`, which the measurer knows and the launching kvmtool does not.

    An empty cmdline gives no `-p` at all, as upstream's null parameters do: kvmtool itself would
    add a blank to the boot arguments for an empty one.
    """
    disk_values = [_ANY_DISK] * plan.disks if disks is None else list(disks)
    nic_values = [_ANY_NIC] * plan.nics if nics is None else list(nics)
    if len(disk_values) != plan.disks or len(nic_values) != plan.nics or vsock_cid <= 0:
        raise InputError(
            f"the launch has {plan.disks} disks and {plan.nics} NICs, "
            f"but {len(disk_values)} and {len(nic_values)} were given",
            code="launch",
        )
    arguments = ["-c", str(plan.vcpus), "-k", plan.kernel, "-i", plan.initramfs]
    arguments += ["-p", plan.cmdline] if plan.cmdline else []
    arguments += ["-m", str(plan.memory_mib)]
    for value in nic_values or ["mode=none"]:
        arguments += ["-n", value]
    arguments += ["--vsock", str(vsock_cid)] if plan.vsock else []
    arguments += ["--console", plan.console, f"--irqchip={plan.irqchip}"]
    arguments += ["--sve-vl", str(plan.sve_vl)] if plan.sve_vl else ["--disable-sve"]
    arguments += ["--pmu"] if plan.pmu else []
    arguments += ["--pmu-counters", str(plan.pmu_counters)] if plan.pmu_counters else []
    arguments += ["--metadata", metadata] if metadata else []
    arguments += ["--debug", "--realm", "--restricted_mem", f"--measurement-algo={plan.hash_algo}"]
    arguments += _personalization(plan)
    arguments += ["--islet"] if measurer and plan.profile == "islet" else []
    for value in disk_values:
        arguments += ["-d", value]
    return arguments


def lkvm_command(
    plan: LaunchPlan,
    *,
    program: str = "lkvm",
    disks: Sequence[str],
    nics: Sequence[str],
    vsock_cid: int,
    metadata: str | None,
) -> list[str]:
    """The process that launches a realm on a CCA host: program, `run`, and exactly what is measured.

    Args:
        plan: The launch.
        program: kvmtool's `lkvm`.
        disks: One `-d` value per disk, in the order of creation.
        nics: One `-n` value per NIC.
        vsock_cid: The realm's context id.
        metadata: The file of the realm metadata block, when the realm has one.

    Raises:
        InputError: Disks, NICs or context id do not fit the plan (`launch`).
    """
    arguments = lkvm_arguments(plan, disks=disks, nics=nics, vsock_cid=vsock_cid, metadata=metadata, measurer=False)
    return [program, "run", *arguments]


def _personalization(plan: LaunchPlan) -> list[str]:
    """`--realm-pv`, when the RPV is not zero. It is not measured; the token shows it."""
    text = bytes.fromhex(plan.personalization).rstrip(b"\0")
    if b"\0" in text:
        raise InputError("launch plan: kvmtool cannot pass a personalization with a zero byte inside", code="launch")
    return ["--realm-pv", os.fsdecode(text)] if text else []


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, lower-case hex.

    Raises:
        InputError: Missing or unreadable.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raised = os_error(error, path)
        raised.hint = raised.hint or "run: islet realm build"
        raise raised from error
    return digest.hexdigest()
