"""cloud-hypervisor: where a realm's files stand. Its device tree is its own and must be given.

Source: cloud-hypervisor `arch/src/aarch64/layout.rs` and `fdt.rs`; veraison/cca-realm-measurements
`src/cloud_hypervisor.rs` (48 IPA bits, no SVE, SHA-512). The order of steps is that of the Realm
Virtual Machine specification, all RAM first.
"""

from __future__ import annotations

import os
from collections.abc import Sequence as Arguments
from pathlib import Path

from islet_cli.errors import InputError
from islet_cli.rim.boot_files import file_size, open_kernel
from islet_cli.rim.capabilities import Capabilities
from islet_cli.rim.sequence import MIB, PAGE, Blob, Sequence, align_up, checked, given_device_tree
from islet_cli.rim.vmm_arguments import error, number, properties, size, split

RAM_BASE = 0x4000_0000
_KERNEL = RAM_BASE + 4 * MIB
# RAM beyond it continues above 4 GiB, which no specification of realms describes.
_MAX_RAM = 0xFC00_0000 - RAM_BASE
_LIMITS = Capabilities(ipa_bits=48, sve_vl=0)
_READ = ("cpus", "platform", "memory", "kernel", "initramfs")
# What these change, the given device tree shows.
_IN_TREE = ("cmdline", "disk", "net", "rng", "fs", "pmem", "serial", "console", "device", "vsock", "rate-limit-group")
_IGNORED = ("log-file", "api-socket", "event-monitor", "seccomp")
_VALUED = frozenset(_READ + _IN_TREE + _IGNORED)
_FLAGS = frozenset(["v", "vv", "watchdog"])


def occurrences(arguments: Arguments[str]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Name, value and words of each option."""
    return split(arguments, _VALUED, _FLAGS)


def sequence_of(arguments: Arguments[str], *, cwd: Path, host: Capabilities, dtb: Path | None) -> Sequence:
    """The launch that cloud-hypervisor makes with these arguments.

    Raises:
        InputError: An option that is unknown or unsupported, no device tree, files that do not fit.
    """
    values: dict[str, str] = {}
    for name, value, _ in occurrences(arguments):
        values[name] = value
    memory = _memory(values.get("memory", "size=512M"))
    hash_algo = _platform(values.get("platform"))
    _check_cpus(values.get("cpus"))
    if "kernel" not in values:
        raise error("command line", "no --kernel is given")
    if dtb is None:
        raise InputError(
            "cloud-hypervisor: its device tree is needed", code="device-tree-needed", hint="pass it with --dtb FILE"
        )
    image = open_kernel(cwd / values["kernel"])
    parts = [Blob("kernel", _KERNEL + image.text_offset, image.size, image.path)]
    files = [("kernel", os.fspath(cwd / values["kernel"]))]
    if "initramfs" in values:
        path = cwd / values["initramfs"]
        length = file_size(path, "initrd")
        parts.append(Blob("initrd", RAM_BASE + memory - align_up(length, PAGE), length, path))
        files.append(("initrd", os.fspath(path)))
    return checked(
        Sequence(
            vmm="cloud-hypervisor",
            capabilities=host.lowered(_LIMITS),
            hash_algo=hash_algo,
            ram_base=RAM_BASE,
            ram_size=memory,
            parts=(*parts, given_device_tree(dtb, RAM_BASE)),
            start=(_KERNEL, RAM_BASE),
            dtb_given=os.fspath(dtb),
            files=tuple(files),
            notes=("no published specification covers realms of cloud-hypervisor; its layout is that of its source",),
            keep=(image,),
        )
    )


def _memory(value: str) -> int:
    pairs = dict(properties("--memory", value))
    if set(pairs) != {"size"}:
        raise error(f"--memory {value}", "only size=SIZE is supported")
    memory = size("--memory", pairs["size"], unit="")
    if memory > _MAX_RAM or memory % PAGE:
        raise error(f"--memory {value}", f"at most {_MAX_RAM // MIB} MiB, in pages, are supported")
    return memory


def _platform(value: str | None) -> str:
    algorithm = "sha512"
    for name, text in properties("--platform", value) if value else []:
        if name == "measurement_algo":
            algorithm = text
        elif name not in ("personalization_value", "num_pci_segments", "serial_number", "uuid"):
            raise error(f"--platform {value}", f"unknown property {name}")
    if algorithm not in ("sha256", "sha512"):
        raise error(f"--platform {value}", f"unknown algorithm {algorithm}", "use sha256 or sha512")
    return algorithm


def _check_cpus(value: str | None) -> None:
    pairs = properties("--cpus", value) if value else []
    for name, text in pairs:
        if name not in ("boot", "max"):
            raise error(f"--cpus {value}", f"unsupported: {name}")
        number(f"--cpus {name}", text)
