"""A launch of the second dialect: what is measured, in the order of the Realm Virtual Machine specification.

Where things stand and what the vCPU starts with is the VMM's choice: `vmm_kvmtool`, `vmm_qemu` and
`vmm_cloud_hypervisor` make a `Sequence` each.

Source: Realm Virtual Machine specification 0.3 (veraison/cca-realm-measurements, docs/realm-vm.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from islet_cli.errors import InputError
from islet_cli.fsutil import read_file
from islet_cli.rim.capabilities import Capabilities

PAGE = 4096
MIB = 1 << 20
LOG_SIZE = 64 << 10
DTB_LIMIT = 2 * MIB
# What the realm parameters cannot do without.
_NEEDED = ("ipa_bits", "num_bps", "num_wps")


@dataclass(frozen=True)
class Blob:
    """A file in RAM at `start`, or `content` where there is no file."""

    kind: str
    start: int
    size: int
    path: Path | None = None
    content: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """One launch. `start` is program counter and X0 of the only measured vCPU.

    `dtb_given` names the file that the device tree came from; None when it was built. `files` are
    the launch's files under their own names, for reports; `keep` holds open what `blobs` name.
    """

    vmm: str
    capabilities: Capabilities
    hash_algo: str
    ram_base: int
    ram_size: int
    parts: tuple[Blob, ...]
    start: tuple[int, int]
    log: tuple[int, int] | None = None
    dtb_given: str | None = None
    files: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    keep: tuple[object, ...] = field(default=(), compare=False, repr=False)

    # What native code reads besides `hash_algo`, `start` and `log`.

    @property
    def ipa_bits(self) -> int:
        return self.capabilities.ipa_bits or 0

    @property
    def lpa2(self) -> bool:
        return bool(self.capabilities.lpa2)

    @property
    def sve_vl_bits(self) -> int:
        return self.capabilities.sve_vl or 0

    @property
    def num_bps(self) -> int:
        return self.capabilities.num_bps or 0

    @property
    def num_wps(self) -> int:
        return self.capabilities.num_wps or 0

    @property
    def pmu_counters(self) -> int | None:
        return self.capabilities.pmu_num_ctrs if self.capabilities.pmu else None

    @property
    def ram(self) -> list[tuple[int, int]]:
        return [(self.ram_base, self.ram_size)]

    @property
    def blobs(self) -> list[tuple[str, int, str | None, bytes]]:
        return [
            (part.kind, part.start, None if part.path is None else str(part.path), part.content) for part in self.parts
        ]

    @property
    def device_tree(self) -> Blob:
        """The device tree among the parts."""
        return next(part for part in self.parts if part.kind == "dtb")


def checked(sequence: Sequence) -> Sequence:
    """Refuse what no monitor would launch, or what nothing is known about.

    Raises:
        InputError: Unknown host capabilities (`capabilities`), or something outside RAM (`layout`).
    """
    capabilities = sequence.capabilities
    missing = [name for name in _NEEDED if getattr(capabilities, name) is None]
    if capabilities.pmu and capabilities.pmu_num_ctrs is None:
        missing.append("pmu_num_ctrs")
    if missing:
        raise InputError(
            f"host capabilities: {', '.join(missing)} unknown",
            code="capabilities",
            hint="name the host, for example --host fvp --host rmm-1.0-eac5, or --set KEY=VALUE",
        )
    end = sequence.ram_base + sequence.ram_size
    if end > 1 << sequence.ipa_bits:
        raise InputError(f"RAM up to {end:#x} does not fit into {sequence.ipa_bits} IPA bits", code="layout")
    for part in sequence.parts:
        inside = part.kind == "firmware" or (sequence.ram_base <= part.start and part.start + part.size <= end)
        if not inside:
            raise InputError(f"the {part.kind} ({part.size} bytes at {part.start:#x}) lies outside RAM", code="layout")
    return sequence


def given_device_tree(path: Path, start: int, *, padded: int = 0) -> Blob:
    """The device tree that the VMM dumped, zero padded to `padded` bytes.

    Raises:
        InputError: Missing, longer than 2 MiB or than `padded`, or no device tree.
    """
    from islet_cli.rim import devicetree

    content = read_file(path, limit=DTB_LIMIT)
    devicetree.parse(content)
    if padded and len(content) > padded:
        raise InputError(f"device tree {path}: longer than {padded} bytes", code="device-tree")
    content = content.ljust(padded, b"\0")
    return Blob("dtb", start, len(content), content=content)


def align_up(value: int, size: int) -> int:
    """The next multiple of `size`."""
    return -(-value // size) * size
