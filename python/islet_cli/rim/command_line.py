"""The meaning of kvmtool's command line: from `lkvm run` arguments to a `Machine`.

Source: kvmtool `builtin-run.c`, branch `kvmtool-rim-measurer/eac5` of islet-project/3rd-kvmtool.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from islet_cli.errors import InputError
from islet_cli.rim import numbers
from islet_cli.rim.devices import Disks, Nics, check_9p, require_accessible
from islet_cli.rim.machine import DEFAULT_RAM_BASE, Machine
from islet_cli.rim.options import MEASURER, Grammar, Kind, Occurrence, error, parse

HASH_ALGOS = ("sha256", "sha512")
PROFILES = ("tf-rmm", "islet")
IRQCHIPS = ("gicv2", "gicv2m", "gicv3", "gicv3-its")
_TRANSPORTS = {"pci": "pci", "pci-legacy": "pci", "mmio": "mmio", "mmio-legacy": "mmio"}
_LOG_LEVELS = ("error", "warning", "info", "debug")
_REALM_ONLY = ("measurement-algo", "realm-pv", "sve-vl", "pmu-counters", "metadata")
_HOST_DEPENDENT = ("hugetlbfs", "sandbox")

_COMMAND_LINE_SIZE = 2048  # with its NUL
_METADATA_SIZE = 4096
_RPV_SIZE = 64
_MAX_CPU_ID = 4095
_DEFAULT_MEMORY_STEP = 64 << 20


@dataclass
class Settings:
    """The state that options change one after the other; the last one wins."""

    cwd: Path
    values: dict[str, str] = field(default_factory=dict)
    switches: dict[str, bool] = field(default_factory=dict)
    memory: tuple[int, int | None] | None = None
    disks: Disks = field(default_factory=Disks)
    nics: Nics = field(default_factory=Nics)
    shares: int = 0
    irqchip: str = "gicv3-its"
    transport: str = "pci"

    def take(self, occurrence: Occurrence) -> None:
        """Apply one option or positional argument."""
        option, value = occurrence.option, occurrence.value
        if option is None:
            self._positional(value or "")
        elif option.kind is Kind.BOOLEAN:
            self.switches[option.name] = not occurrence.unset
        elif option.kind is Kind.FLAG:
            self._flag(option.name)
        elif occurrence.unset:
            self.values.pop(option.name, None)
        elif option.kind is Kind.CUSTOM:
            _CUSTOM[option.name](self, value or "")
        else:
            self.values[option.name] = value or ""

    def _positional(self, value: str) -> None:
        if "kernel" in self.values:
            raise error(value, "one argument too many", "the kernel is already given")
        self.values["kernel"] = value

    def _flag(self, name: str) -> None:
        if name in ("virtio-legacy", "force-pci"):
            self.transport = "pci"

    def on(self, name: str) -> bool:
        return self.switches.get(name, False)

    def unsigned32(self, name: str) -> int:
        return numbers.low32(numbers.strtol(self.values.get(name, "")))

    def unsigned64(self, name: str) -> int:
        return numbers.strtoull(self.values.get(name, ""))

    def file(self, name: str) -> str | None:
        """The file that a string option names, resolved against the working directory."""
        value = self.values.get(name)
        if value is None:
            return None
        if not value:
            raise error(f"--{name}", "the file name is empty")
        return os.fspath(self.cwd / value)

    # Options with a syntax of their own.

    def take_memory(self, value: str) -> None:
        self.memory = numbers.memory(value)

    def take_disk(self, value: str) -> None:
        self.disks.add(value, self.cwd)

    def take_nic(self, value: str) -> None:
        self.nics.add(value)

    def take_share(self, value: str) -> None:
        check_9p(value)
        self.shares += 1

    def take_irqchip(self, value: str) -> None:
        self.irqchip = _one_of("--irqchip", value, IRQCHIPS)

    def take_transport(self, value: str) -> None:
        self.transport = _TRANSPORTS[_one_of("--virtio-transport", value, tuple(_TRANSPORTS))]

    def take_log_level(self, value: str) -> None:
        _one_of("--loglevel", value, _LOG_LEVELS)

    def take_tty(self, _value: str) -> None:
        """Where a serial port is connected on the host is not measured."""

    def take_vfio(self, _value: str) -> None:
        raise error("--vfio-pci", "the RIM would depend on a device of the host")

    def take_affinity(self, value: str) -> None:
        for item in value.split(","):
            match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", item, re.ASCII)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if first > last or last > _MAX_CPU_ID:
                raise error(f"--vcpu-affinity {value}", "not a list of CPUs", "write something like 0-2,4")


_CUSTOM: dict[str, Callable[[Settings, str], None]] = {
    "mem": Settings.take_memory,
    "disk": Settings.take_disk,
    "network": Settings.take_nic,
    "9p": Settings.take_share,
    "irqchip": Settings.take_irqchip,
    "virtio-transport": Settings.take_transport,
    "loglevel": Settings.take_log_level,
    "tty": Settings.take_tty,
    "vfio-pci": Settings.take_vfio,
    "vcpu-affinity": Settings.take_affinity,
}


def machine_of(arguments: Sequence[str], *, cwd: Path, profile: str | None = None) -> Machine:
    """Understand the arguments of `lkvm run`.

    Args:
        arguments: Without the words `lkvm run`.
        cwd: Where relative file names start.
        profile: `tf-rmm` or `islet`; None follows `--islet`.

    Raises:
        InputError: kvmtool would refuse the command line, or its RIM would depend on the host.
    """
    return machine_from(settings_of(arguments, cwd=cwd), profile=profile)


def settings_of(arguments: Sequence[str], *, cwd: Path, grammar: Grammar = MEASURER) -> Settings:
    """Read all options; what is missing or contradictory is left to `machine_from`.

    Raises:
        InputError: An option that kvmtool would refuse.
    """
    settings = Settings(cwd)
    for occurrence in parse(_checked(arguments), grammar):
        settings.take(occurrence)
    return settings


def machine_from(settings: Settings, *, profile: str | None = None) -> Machine:
    """The machine that all options together describe.

    Raises:
        InputError: Something is missing or contradictory.
    """
    _require_realm(settings)
    _require_boot(settings)
    cpus = _cpu_count(settings)
    ram_base, ram_size = _ram(settings, cpus)
    flash = settings.values.get("flash")
    return Machine(
        hash_algo=_one_of("--measurement-algo", settings.values.get("measurement-algo", "sha256"), HASH_ALGOS),
        profile=_profile(settings, profile),
        sve_vl_bits=_sve_vl(settings),
        pmu_counters=settings.unsigned32("pmu-counters"),
        kernel=settings.file("kernel"),
        initrd=settings.file("initrd") if "kernel" in settings.values else None,
        firmware=settings.file("firmware"),
        firmware_address=settings.unsigned64("firmware-address"),
        ram_base=ram_base,
        ram_size=ram_size,
        cpus=cpus,
        mpidrs=_mpidrs(settings),
        irqchip=settings.irqchip,
        pmu=settings.on("pmu"),
        flash_size=None if flash is None else require_accessible("--flash", flash, settings.cwd),
        virtio=_virtio(settings),
        kaslr_seed=settings.unsigned64("kaslr-seed"),
        bootargs=boot_text(settings).bootargs(),
        clock_frequency=settings.unsigned32("override-bad-firmware-cntfrq"),
        dump_dtb=settings.cwd / settings.values["dump-dtb"] if settings.values.get("dump-dtb") else None,
    )


def _checked(arguments: Sequence[str]) -> Sequence[str]:
    """Only what a process could be given: no NUL, nothing that has no bytes."""
    for argument in arguments:
        try:
            usable = "\0" not in argument and os.fsencode(argument) is not None
        except UnicodeEncodeError:
            usable = False
        if not usable:
            raise error(argument, "not an argument that a program can be given")
    return arguments


def _one_of(option: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise error(f"{option} {value}", "unknown value", f"use one of {', '.join(known)}")
    return value


def _require_realm(settings: Settings) -> None:
    """Checks of the realm options and of what the host would decide."""
    if not settings.on("realm"):
        used = next((name for name in _REALM_ONLY if name in settings.values), None)
        raise error(f"--{used}" if used else "command line", "there is no --realm", "add --realm")
    if settings.on("aarch32"):
        raise error("--aarch32", "a realm is always 64-bit", "remove it")
    for name in _HOST_DEPENDENT:
        if name in settings.values:
            raise error(f"--{name}", "the RIM would depend on the host", "remove it")
    screens = [name for name in ("vnc", "gtk", "sdl") if settings.on(name)]
    if len(screens) > 1:
        raise error(f"--{screens[1]}", f"excludes --{screens[0]}")
    if len(os.fsencode(settings.values.get("realm-pv", ""))) > _RPV_SIZE:
        raise error("--realm-pv", f"longer than {_RPV_SIZE} bytes")
    metadata = settings.values.get("metadata")
    if metadata is not None and require_accessible("--metadata", metadata, settings.cwd) > _METADATA_SIZE:
        raise error(f"--metadata {metadata}", f"longer than {_METADATA_SIZE} bytes")


def _require_boot(settings: Settings) -> None:
    """There is exactly one thing to boot, and a root file system for it."""
    given = [name for name in ("kernel", "firmware") if name in settings.values]
    if len(given) != 1:
        problem = "both a kernel and a firmware are given" if given else "neither kernel nor firmware is given"
        raise error("command line", problem, "use -k KERNEL or -f FIRMWARE")
    disks = settings.disks
    rooted = disks.images or disks.scsi or disks.root_directory or "initrd" in settings.values
    if not rooted and not settings.on("nodefaults"):
        raise error("command line", "no root file system", "add -i INITRD, -d DISK or --nodefaults")


def _cpu_count(settings: Settings) -> int:
    """The vCPU count as given, at least 1."""
    if "cpus" not in settings.values:
        raise error("command line", "no vCPU count; kvmtool would take the host's", "add -c N")
    cpus = numbers.signed32(numbers.strtol(settings.values["cpus"]))
    if cpus <= 0:
        raise error(f"-c {settings.values['cpus']}", "not a positive number")
    return cpus


def _ram(settings: Settings, cpus: int) -> tuple[int, int]:
    if settings.memory is None:
        return DEFAULT_RAM_BASE, _DEFAULT_MEMORY_STEP * (cpus + 3)
    size, base = settings.memory
    return DEFAULT_RAM_BASE if base is None else base, size


def _profile(settings: Settings, asked: str | None) -> str:
    if asked is None:
        return "islet" if settings.on("islet") else "tf-rmm"
    _one_of("--profile", asked, PROFILES)
    if settings.on("islet") and asked != "islet":
        raise InputError(
            f"--profile {asked}: the command line says --islet", code="rim-option", hint="drop one of the two"
        )
    return asked


def _sve_vl(settings: Settings) -> int:
    bits = numbers.low32(settings.unsigned64("sve-vl"))
    if bits and settings.on("disable-sve"):
        raise error("--sve-vl", "excludes --disable-sve", "drop one of the two")
    if bits % 128:
        raise error(f"--sve-vl {bits}", "not a multiple of 128")
    return bits


def _mpidrs(settings: Settings) -> list[int] | None:
    value = settings.values.get("mpidrs")
    if value is None:
        return None
    return [numbers.strtoull(item, 16) for item in value.split(",") if item]


def _virtio(settings: Settings) -> list[str]:
    """The transports of the virtio devices in creation order."""
    default = settings.transport
    count = settings.shares + settings.disks.root_directory
    count += settings.unsigned64("vsock") != 0
    count += settings.on("balloon") + settings.on("rng")
    nics = [transport or default for transport in settings.nics.all()]
    behind = _console(settings).startswith("virtio") + settings.disks.scsi + settings.disks.images
    return [default] * count + nics + [default] * behind


def _console(settings: Settings) -> str:
    return settings.values.get("console", "serial")


@dataclass(frozen=True)
class BootText:
    """The parts of the kernel command line in the device tree.

    `console` and `root` begin with a blank; `plain` leaves both out, and the blank before `params`.
    """

    console: bytes
    root: bytes
    params: bytes | None
    plain: bool = False

    def bootargs(self) -> bytes | None:
        """The property's text; None for no property."""
        if self.plain:
            return self.params
        text = self.console + self.root + (b"" if self.params is None else b" " + self.params)
        return text[: _COMMAND_LINE_SIZE - 1]


def boot_text(settings: Settings) -> BootText:
    """What the options make of the kernel command line."""
    params = settings.values.get("params")
    user = None if params is None else os.fsencode(params)
    plain = "firmware" in settings.values or settings.on("nodefaults")
    root = b""
    if settings.disks.root_directory:
        root = b" rw rootflags=trans=virtio,version=9p2000.L,cache=loose rootfstype=9p"
    elif b"root=" not in (user or b""):
        root = b" root=/dev/vda rw "
    return BootText(_console_argument(settings), root, user, plain)


def _console_argument(settings: Settings) -> bytes:
    if any(settings.on(name) for name in ("vnc", "gtk", "sdl")):
        return b" console=tty0"
    console = _console(settings)
    if console.startswith(("virtio", "hv")):
        return b" console=hvc0"
    return b" console=ttyS0" if console.startswith("serial") else b""
