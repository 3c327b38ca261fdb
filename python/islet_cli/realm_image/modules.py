"""The kernel modules of a realm: which, what they depend on, and an order in which they load.

Source: Linux, Documentation/kbuild (`depends` in `.modinfo`); modules.builtin(5).
"""

from __future__ import annotations

import lzma
from collections.abc import Mapping
from dataclasses import dataclass, field

from islet_cli.errors import InputError, UnavailableError
from islet_cli.realm_image import elf
from islet_cli.realm_image.arch import Arch
from islet_cli.realm_image.packages import data_lines

_SIGNATURE_MARK = b"~Module signature appended~\n"
_SIGNATURE_FACTS = 12  # struct module_signature; its last four bytes are the signature's length


@dataclass(frozen=True)
class ModuleSet:
    """Modules by file name, in load order: `early`, then `vsock` where it is the control channel, then `late`."""

    files: dict[str, bytes] = field(default_factory=dict)
    early: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    vsock: list[str] = field(default_factory=list)


def canonical(name: str) -> str:
    """A module's name as the kernel compares it: `dm-mod` and `dm_mod` are the same."""
    return name.replace("-", "_")


def builtin_names(text: str) -> set[str]:
    """The names in a kernel's `modules.builtin`."""
    return {canonical(line.rpartition("/")[2].removesuffix(".ko")) for line in text.split()}


def unpacked(path: str, data: bytes) -> bytes:
    """The module's ELF file, decompressed when it is `.ko.xz`.

    Raises:
        InputError: Damaged, or compressed in another way (`bad-module`).
    """
    if path.endswith(".ko"):
        return data
    if path.endswith(".ko.xz"):
        try:
            return lzma.decompress(data)
        except lzma.LZMAError as error:
            raise InputError(f"{path}: {error}", code="bad-module") from error
    raise InputError(f"{path}: this compression is not supported", code="bad-module", hint="give plain .ko files")


def unsigned(data: bytes) -> bytes:
    """The module without its appended signature.

    The initramfs is measured as a whole, so a signature inside adds nothing, and checking it costs a noticeable
    part of a realm's start under emulation. Source: Linux, Documentation/admin-guide/module-signing.rst.
    """
    if not data.endswith(_SIGNATURE_MARK):
        return data
    length = int.from_bytes(data[-len(_SIGNATURE_MARK) - 4 : -len(_SIGNATURE_MARK)], "big")
    end = len(data) - len(_SIGNATURE_MARK) - _SIGNATURE_FACTS - length
    return data[:end] if end > 0 else data


def select(available: Mapping[str, bytes], *, builtin: set[str] | None, arch: Arch) -> ModuleSet:
    """Choose the modules that a realm needs and order them.

    Args:
        available: Module files (`.ko`, `.ko.xz`) by path; only the file names count.
        builtin: Canonical names of what the kernel has built in; None when that is not known, and then a
            module that is not available is taken to be built in.
        arch: For the modules that only this architecture has.

    Raises:
        UnavailableError: A needed module is neither available nor built in (`no-module`).
        InputError: A file is not a module (`bad-elf`, `bad-module`).
    """
    paths = {canonical(path.rpartition("/")[2].partition(".ko")[0]): path for path in sorted(available)}
    out = ModuleSet()
    wanted = [line.split() for line in data_lines("modules.txt")]
    wanted += [[name, "late", "optional"] for name in arch.accelerated]
    for stage in ("early", "late", "vsock"):
        for name, its_stage, *flags in wanted:
            if its_stage == stage:
                _need(canonical(name), stage, "optional" in flags, paths, available, builtin, out)
    return out


def _need(
    name: str,
    stage: str,
    optional: bool,
    paths: Mapping[str, str],
    available: Mapping[str, bytes],
    builtin: set[str] | None,
    out: ModuleSet,
) -> None:
    """Append `name` and before it what it depends on, unless an earlier stage has loaded it."""
    file_name = f"{name}.ko"
    loaded = set(out.early) | (set() if stage == "early" else set(getattr(out, stage)))
    if file_name in loaded:
        return
    if name not in paths:
        if optional or builtin is None or name in builtin:
            return
        raise UnavailableError(
            f"the kernel has no module {name}", code="no-module", hint="give another kernel with --kernel and --modules"
        )
    data = unpacked(paths[name], available[paths[name]])
    for value in elf.module_info(data, what=paths[name]).get("depends", []):
        for dependency in filter(None, value.split(",")):
            _need(canonical(dependency), stage, False, paths, available, builtin, out)
    out.files[file_name] = data
    getattr(out, stage).append(file_name)
