"""QEMU's `virt` machine: where a realm's files stand, and what its arguments change.

The device tree is QEMU's own and must be given (`-machine dumpdtb=FILE`, or the `-dtb FILE` that the
VM is started with).

Source: Realm Virtual Machine specification 0.3, "QEMU virt v9.1".
"""

from __future__ import annotations

import os
from collections.abc import Sequence as Arguments
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from islet_cli.errors import InputError
from islet_cli.rim.boot_files import KernelImage, file_size, open_kernel
from islet_cli.rim.capabilities import Capabilities
from islet_cli.rim.sequence import LOG_SIZE, MIB, PAGE, Blob, Sequence, align_up, checked, given_device_tree
from islet_cli.rim.vmm_arguments import error, number, properties, size, split, switch

RAM_BASE = 0x4000_0000
_MAX_RAM = 255 << 30
_IPA_BITS = 41
_LOG_DISTANCE = MIB
_READ = ("m", "smp", "object", "append", "machine", "M", "cpu", "device", "kernel", "initrd", "bios", "dtb")
# These change neither the device tree nor the realm parameters.
_IGNORED = ("drive", "fsdev", "chardev", "netdev", "mon", "serial", "display", "monitor", "accel", "name", "pidfile")
_VALUED = frozenset(_READ + _IGNORED)
_FLAGS = frozenset(["enable-kvm", "nographic", "nodefaults", "no-reboot", "no-user-config", "daemonize"])
# Devices that QEMU's device tree does not show, and hence the RIM does not either.
_DEVICES = (
    *("virtconsole", "virtserialport", "virtio-blk-pci", "virtio-serial-pci", "virtio-net-pci", "virtio-9p-pci"),
    *("virtio-rng-pci", "vhost-vsock-pci"),
)


@dataclass
class _Settings:
    """What the arguments say."""

    memory: int = 128 * MIB
    limits: dict[str, int | bool] = field(default_factory=dict)
    hash_algo: str = "sha512"
    log: bool = False
    files: dict[str, str] = field(default_factory=dict)

    def take(self, name: str, value: str) -> None:
        if name == "m":
            pairs = dict(properties("-m", value, first="size"))
            if set(pairs) != {"size"}:
                raise error(f"-m {value}", "only a size is supported")
            self.memory = size("-m", pairs["size"], unit="M")
        elif name == "object":
            self._object(value)
        elif name in ("machine", "M"):
            self._machine(value)
        elif name == "cpu":
            self._cpu(value)
        elif name == "device" and value.partition(",")[0] not in _DEVICES:
            raise error(f"-device {value}", "unknown device; whether it changes the device tree is not known")
        elif name == "smp":
            number("-smp", dict(properties("-smp", value, first="cpus")).get("cpus", "1"))
        elif name in ("kernel", "initrd", "bios", "dtb"):
            self.files[name] = value

    def _object(self, value: str) -> None:
        kind, *_ = value.split(",")
        if kind != "rme-guest":
            return
        for name, text in properties("-object", value, first="type")[1:]:
            if name == "measurement-algorithm":
                if text not in ("sha256", "sha512"):
                    raise error(f"-object {value}", f"unknown algorithm {text}", "use sha256 or sha512")
                self.hash_algo = text
            elif name == "measurement-log":
                self.log = switch("measurement-log", text)
            elif name not in ("id", "personalization-value"):
                raise error(f"-object {value}", f"unknown property {name}")

    def _machine(self, value: str) -> None:
        for name, text in properties("-machine", value, first="type"):
            if name == "type" and text == "virt":
                continue
            if name == "gic-version" and text in ("3", "host", "max"):
                continue
            if name not in ("its", "acpi", "confidential-guest-support", "accel", "usb", "dumpdtb"):
                raise error(f"-machine {value}", f"unsupported: {name}={text}", "realms are made on virt with a GICv3")

    def _cpu(self, value: str) -> None:
        for name, text in properties("-cpu", value, first="model"):
            if name == "model" and text == "host":
                continue
            if name in _CPU_NUMBERS:
                self.limits[_CPU_NUMBERS[name]] = number(f"-cpu {name}", text) if text != "0" else 0
            elif name == "pmu":
                self.limits["pmu"] = switch("-cpu pmu", text)
            elif name == "sve" or (name.startswith("sve") and name[3:].isdecimal()):
                self._sve(name, switch(f"-cpu {name}", text))
            else:
                raise error(f"-cpu {value}", f"unsupported: {name}={text}", "realms run on -cpu host")

    def _sve(self, name: str, on: bool) -> None:
        if name == "sve":
            if not on:
                self.limits["sve_vl"] = 0
            return
        length = int(name[3:])
        # Vector lengths are powers of two; without one, the next lower is left.
        limit = length if on else length // 2
        self.limits["sve_vl"] = min(limit, int(self.limits.get("sve_vl", limit)))


_CPU_NUMBERS = {"num-breakpoints": "num_bps", "num-watchpoints": "num_wps", "num-pmu-counters": "pmu_num_ctrs"}


def occurrences(arguments: Arguments[str]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Name, value and words of each option."""
    return split(arguments, _VALUED, _FLAGS)


def sequence_of(arguments: Arguments[str], *, cwd: Path, host: Capabilities, dtb: Path | None) -> Sequence:
    """The launch that QEMU makes with these arguments.

    Raises:
        InputError: An option that is unknown or unsupported, no device tree, files that do not fit.
    """
    settings = _Settings()
    for name, value, _ in occurrences(arguments):
        settings.take(name, value)
    if settings.memory > _MAX_RAM:
        raise error("-m", "more than 255 GiB; their memory map is not specified")
    loaded = _kernel(settings, cwd) if "kernel" in settings.files else _firmware(settings, cwd)
    dtb = dtb or (cwd / settings.files["dtb"] if "dtb" in settings.files else None)
    if dtb is None:
        raise InputError(
            "QEMU: its device tree is needed",
            code="device-tree-needed",
            hint="dump it with -machine dumpdtb=FILE and pass --dtb FILE",
        )
    tree = given_device_tree(dtb, loaded.device_tree)
    limits = _limits(settings)
    if (host.ipa_bits or _IPA_BITS) < _IPA_BITS:
        raise InputError(f"QEMU's memory map needs {_IPA_BITS} IPA bits; the host has {host.ipa_bits}", code="layout")
    return checked(
        Sequence(
            vmm="qemu",
            capabilities=host.lowered(limits),
            hash_algo=settings.hash_algo,
            ram_base=RAM_BASE,
            ram_size=settings.memory,
            parts=(*loaded.parts, tree),
            start=loaded.start,
            log=(loaded.device_tree + _LOG_DISTANCE, LOG_SIZE) if settings.log else None,
            dtb_given=os.fspath(dtb),
            files=loaded.files,
            keep=(loaded.image,),
        )
    )


def _limits(settings: _Settings) -> Capabilities:
    try:
        return msgspec.convert({"ipa_bits": _IPA_BITS, **settings.limits}, Capabilities)
    except msgspec.ValidationError as problem:
        raise error("-cpu", str(problem)) from problem


@dataclass(frozen=True)
class _Loaded:
    parts: list[Blob]
    device_tree: int
    start: tuple[int, int]
    files: tuple[tuple[str, str], ...]
    image: KernelImage | None = None


def _kernel(settings: _Settings, cwd: Path) -> _Loaded:
    if "bios" in settings.files:
        raise error("-kernel", "with -bios the firmware loads it, and the RIM does not cover it", "drop one of the two")
    image = open_kernel(cwd / settings.files["kernel"])
    start = RAM_BASE + image.text_offset
    parts = [Blob("kernel", start, image.size, image.path)]
    files = [("kernel", os.fspath(cwd / settings.files["kernel"]))]
    behind = max(RAM_BASE + min(settings.memory // 2, 128 * MIB), start + (image.image_size or image.size))
    end = behind = align_up(behind, PAGE)
    if "initrd" in settings.files:
        path = cwd / settings.files["initrd"]
        parts.append(Blob("initrd", behind, file_size(path, "initrd"), path))
        files.append(("initrd", os.fspath(path)))
        end += parts[-1].size
    device_tree = align_up(end, 2 * MIB)
    return _Loaded(parts, device_tree, (RAM_BASE, device_tree), tuple(files), image)


def _firmware(settings: _Settings, cwd: Path) -> _Loaded:
    if "bios" not in settings.files:
        raise error("command line", "neither -kernel nor -bios is given")
    path = cwd / settings.files["bios"]
    return _Loaded(
        [Blob("firmware", 0, file_size(path, "firmware"), path)], RAM_BASE, (0, 0), (("firmware", os.fspath(path)),)
    )
