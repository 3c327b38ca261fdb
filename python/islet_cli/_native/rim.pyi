"""Realm measurement (crates islet-rim and islet-dtb)."""

from collections.abc import Sequence
from typing import Protocol

class Launch(Protocol):
    """The attributes that `measure` reads; see `islet_cli.rim.machine.Machine`."""

    @property
    def hash_algo(self) -> str: ...
    @property
    def profile(self) -> str: ...
    @property
    def sve_vl_bits(self) -> int: ...
    @property
    def pmu_counters(self) -> int: ...
    @property
    def kernel(self) -> str | None: ...
    @property
    def initrd(self) -> str | None: ...
    @property
    def firmware(self) -> str | None: ...
    @property
    def firmware_address(self) -> int: ...
    @property
    def ram_base(self) -> int: ...
    @property
    def ram_size(self) -> int: ...
    @property
    def cpus(self) -> int: ...
    @property
    def mpidrs(self) -> Sequence[int] | None: ...
    @property
    def irqchip(self) -> str: ...
    @property
    def pmu(self) -> bool: ...
    @property
    def flash_size(self) -> int | None: ...
    @property
    def virtio(self) -> Sequence[str]: ...
    @property
    def kaslr_seed(self) -> int: ...
    @property
    def bootargs(self) -> bytes | None: ...
    @property
    def clock_frequency(self) -> int: ...

def measure(launch: Launch, *, threads: int | None = None) -> tuple[bytes, bytes, list[tuple[str, int, int, bool]]]:
    """Return the RIM, the 65536 bytes of the device-tree area, and the regions (kind, start, size, measured).

    `threads` threads hash, 1 or more; None for one per processor.

    Raises:
        InputError: A file is missing or unreadable, or something does not fit.
    """

# One group of steps: kind, what, start, top, steps, measured, digest, rim, granules.
_Group = tuple[str, str | None, int, int, int, bool, bytes, bytes, bytes]
_Region = tuple[str, int, int, bool]

def explain(
    launch: Launch, *, threads: int | None = None, trace: str | None = None
) -> tuple[bytes, bytes, int, list[_Region], bytes, list[_Group]]:
    """Return RIM, device-tree area, entry point, regions, page of realm parameters and groups of steps.

    `trace` names a file that gets every step as a line of JSON.

    Raises:
        InputError: Like `measure`, and when the trace cannot be written.
    """

class SequenceLaunch(Protocol):
    """The attributes that `measure_sequence` reads; see `islet_cli.rim.sequence.Sequence`."""

    @property
    def hash_algo(self) -> str: ...
    @property
    def ipa_bits(self) -> int: ...
    @property
    def lpa2(self) -> bool: ...
    @property
    def sve_vl_bits(self) -> int: ...
    @property
    def num_bps(self) -> int: ...
    @property
    def num_wps(self) -> int: ...
    @property
    def pmu_counters(self) -> int | None: ...
    @property
    def ram(self) -> list[tuple[int, int]]: ...
    @property
    def blobs(self) -> list[tuple[str, int, str | None, bytes]]: ...
    @property
    def start(self) -> tuple[int, int] | None: ...
    @property
    def log(self) -> tuple[int, int] | None: ...

def measure_sequence(
    launch: SequenceLaunch, *, threads: int | None = None, trace: str | None = None
) -> tuple[bytes, list[_Region], bytes, list[_Group]]:
    """Return RIM, regions, page of realm parameters and groups of steps of a launch of the second dialect.

    Raises:
        InputError: A file is missing or unreadable, two files share a granule, the trace cannot be written.
    """

class Probe:
    """Variants of one launch: the same files and hash algorithm, anything else may differ."""

    def __init__(self, base: Launch) -> None: ...
    def rim(self, variant: Launch) -> bytes | None:
        """The RIM of a variant; None when it would be refused at launch."""

def build_device_tree(launch: Launch, initrd: tuple[int, int] | None) -> bytes:
    """The 65536 bytes of the device-tree area of a launch whose initrd lies at `initrd` (first address, end).

    Raises:
        InputError: The machine cannot be described (`device-tree`).
    """

def read_device_tree(
    area: bytes,
) -> tuple[int, list[tuple[int, int]], list[tuple[int, str, list[tuple[str, bytes]]]]]:
    """Return bytes of the blob, memory reservations, and depth, name and properties of each node in order.

    Raises:
        InputError: No device tree, or a damaged one (`device-tree`).
    """
