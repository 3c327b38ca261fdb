"""A launch as the measurement sees it: what a command line or a plan comes down to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_RAM_BASE = 0x8000_0000


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The input of `_native.rim.measure`, attribute by attribute.

    `cpus` is the count as given: 16 vCPUs at most exist, but the interrupt controller is sized for
    all. `virtio` holds the transport (`pci` or `mmio`) of each device in creation order.
    `dump_dtb` is where `--dump-dtb` asked for the device tree; it is not part of the measurement.
    """

    hash_algo: str
    profile: str
    sve_vl_bits: int
    pmu_counters: int
    kernel: str | None
    initrd: str | None
    firmware: str | None
    firmware_address: int
    ram_base: int
    ram_size: int
    cpus: int
    mpidrs: list[int] | None
    irqchip: str
    pmu: bool
    flash_size: int | None
    virtio: list[str]
    kaslr_seed: int
    bootargs: bytes | None
    clock_frequency: int
    dump_dtb: Path | None = None
