"""kvmtool as the Realm Virtual Machine specification has it: `lkvm run` in the second dialect.

Source: Realm Virtual Machine specification 0.3, "Kvmtool".
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence as Arguments
from pathlib import Path

import msgspec

from islet_cli import _native
from islet_cli.rim.boot_files import file_size, open_kernel
from islet_cli.rim.capabilities import Capabilities
from islet_cli.rim.command_line import Settings, machine_from, settings_of
from islet_cli.rim.machine import DEFAULT_RAM_BASE, Machine
from islet_cli.rim.numbers import low32
from islet_cli.rim.options import LATER, error
from islet_cli.rim.sequence import LOG_SIZE, MIB, Blob, Sequence, align_up, checked, given_device_tree

_LOW_MEMORY = 256 * MIB
_DTB_ROOM = 2 * MIB + (64 << 10)
_DTB_SIZE = 64 << 10
_MAX_IPA_BITS = 52
_BUILT = (
    "the device tree is built as kvmtool of RMM 1.0-EAC5 writes it; a later kvmtool writes another one: "
    "pass what it dumps (lkvm run --dump-dtb) with --dtb"
)


def sequence_of(arguments: Arguments[str], *, cwd: Path, host: Capabilities, dtb: Path | None) -> Sequence:
    """The launch that `lkvm run ARGUMENTS` makes.

    Raises:
        InputError: kvmtool would refuse it, or the specification does not say what it measures.
    """
    settings = settings_of(arguments, cwd=cwd, grammar=LATER)
    machine = machine_from(settings)
    _require_specified(settings, machine)
    end = DEFAULT_RAM_BASE + min(machine.ram_size, _LOW_MEMORY)
    log = (end - LOG_SIZE, LOG_SIZE) if settings.on("measurement-log") else None
    limit = end - LOG_SIZE if log else end
    dtb_address = align_up(limit - _DTB_ROOM, 2 * MIB)
    parts, files, keep = _loaded(machine, dtb_address)
    if dtb is None and settings.values.get("dtb"):
        dtb = cwd / settings.values["dtb"]
    tree = _built(machine, dtb_address, parts) if dtb is None else given_device_tree(dtb, dtb_address, padded=_DTB_SIZE)
    return checked(
        Sequence(
            vmm="kvmtool",
            capabilities=_lowered(host, settings, machine),
            hash_algo=machine.hash_algo,
            ram_base=machine.ram_base,
            ram_size=machine.ram_size,
            parts=(*parts, tree),
            # The text offset is not part of the entry point.
            start=(parts[0].start if machine.firmware else machine.ram_base, dtb_address),
            log=log,
            dtb_given=None if dtb is None else os.fspath(dtb),
            files=files,
            notes=(_BUILT,) if dtb is None else (),
            keep=keep,
        )
    )


def _require_specified(settings: Settings, machine: Machine) -> None:
    if settings.memory is None:
        raise error("command line", "no memory size", "add -m SIZE")
    if machine.ram_base != DEFAULT_RAM_BASE:
        raise error("-m", "this dialect knows RAM at 0x80000000 only", "drop the @BASE")
    if machine.ram_size % (2 * MIB):
        raise error("-m", "not a multiple of 2 MiB", "this dialect places the device tree by it")
    if machine.irqchip not in ("gicv3", "gicv3-its"):
        raise error(f"--irqchip={machine.irqchip}", "realms have a GICv3", "use gicv3 or gicv3-its")


def _lowered(host: Capabilities, settings: Settings, machine: Machine) -> Capabilities:
    """What the arguments leave of the host's capabilities.

    `--pmu` cannot give a PMU that the host lacks, and its absence does not take one away.
    """
    last = machine.ram_base + machine.ram_size - 1
    ipa_bits = max(last.bit_length() - 1, 32) + 1
    if ipa_bits > _MAX_IPA_BITS:
        raise error("-m", "more RAM than a realm can address")
    counters = machine.pmu_counters if "pmu-counters" in settings.values else None
    sve = low32(settings.unsigned64("sve-max-vl")) or machine.sve_vl_bits or None
    limits = Capabilities(ipa_bits=ipa_bits, pmu_num_ctrs=counters, sve_vl=0 if settings.on("disable-sve") else sve)
    return host.lowered(_in_range(limits))


def _in_range(limits: Capabilities) -> Capabilities:
    """Arguments are not checked by the TOML decoder: do it here."""
    try:
        return msgspec.convert(msgspec.to_builtins(limits), Capabilities)
    except msgspec.ValidationError as problem:
        raise error("command line", str(problem)) from problem


def _loaded(machine: Machine, dtb_address: int) -> tuple[list[Blob], tuple[tuple[str, str], ...], tuple[object, ...]]:
    """Kernel and initrd, or the firmware; their names; what must stay open."""
    if machine.firmware is not None:
        path = Path(machine.firmware)
        address = machine.firmware_address or machine.ram_base
        return [Blob("firmware", address, file_size(path, "firmware"), path)], (("firmware", machine.firmware),), ()
    image = open_kernel(Path(machine.kernel or ""))
    parts = [Blob("kernel", machine.ram_base + image.text_offset, image.size, image.path)]
    files = [("kernel", machine.kernel or "")]
    if machine.initrd is not None:
        path = Path(machine.initrd)
        size = file_size(path, "initrd")
        parts.append(Blob("initrd", align_up(dtb_address - size - 4, 4), size, path))
        files.append(("initrd", machine.initrd))
    return parts, tuple(files), (image,)


def _built(machine: Machine, address: int, parts: list[Blob]) -> Blob:
    """The tree of `Machine`, with the initrd where this dialect has it, and without the measurer's stale bytes."""
    initrd = next((part for part in parts if part.kind == "initrd"), None)
    area = _native.rim.build_device_tree(
        dataclasses.replace(machine, initrd=None),
        None if initrd is None else (initrd.start, initrd.start + initrd.size),
    )
    total = int.from_bytes(area[4:8], "big")
    return Blob("dtb", address, _DTB_SIZE, content=area[:total].ljust(_DTB_SIZE, b"\0"))
