"""The first part of an initramfs, which depends on the lock alone, and the kernel that goes with it.

An initramfs is two archives, one after the other, which the kernel unpacks in order: this one, compressed, and a
small one, as it is, with the realm's own configuration. So a changed configuration costs no second build of the
large one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from islet_cli.errors import InputError, IsletError
from islet_cli.fsutil import make_private_directory, read_file, write_atomic
from islet_cli.progress import Report, silent
from islet_cli.realm_image import cpio, userland
from islet_cli.realm_image.arch import Arch
from islet_cli.realm_image.config_yml import BUILD_TIME_PATH
from islet_cli.realm_image.debfile import Packed, members
from islet_cli.realm_image.interpreter import unpacked
from islet_cli.realm_image.islet_files import SiteFiles, glibc_version, require_loadable
from islet_cli.realm_image.lock import RealmLock
from islet_cli.realm_image.modules import ModuleSet, builtin_names, select, unsigned
from islet_cli.realm_image.packages import PackageStore

# Higher levels save a tenth of the size and cost many times the time; the realm unpacks all of them equally fast.
COMPRESSION_LEVEL = 9
_LIMIT = 1 << 30
_PART, _KERNEL, _FACTS = "userland.cpio.zst", "vmlinuz", "facts.json"


@dataclass(frozen=True)
class Base:
    """Kernel and compressed first archive."""

    kernel: bytes
    archive: bytes


@dataclass(frozen=True)
class GivenKernel:
    """A kernel from files: its image, and modules by path."""

    image: bytes
    modules: dict[str, bytes]


def load_or_make(
    cache: Path,
    lock: RealmLock,
    store: PackageStore,
    site: SiteFiles,
    arch: Arch,
    given: GivenKernel | None,
    report: Report = silent,
) -> Base:
    """Return the base of this lock, from `cache` when it is there and undamaged."""
    key = hashlib.sha256(lock.to_toml().encode()).hexdigest()
    directory = cache / key
    kept = _load(directory)
    if kept is not None:
        return kept
    base = _make(lock, store.read(lock.package, report), site, arch, given)
    make_private_directory(directory)
    write_atomic(directory / _PART, base.archive)
    write_atomic(directory / _KERNEL, base.kernel)
    facts = {"archive": _digest(base.archive), "kernel": _digest(base.kernel)}
    write_atomic(directory / _FACTS, json.dumps(facts).encode())
    return base


def _load(directory: Path) -> Base | None:
    """What an earlier build kept; None when it is missing, incomplete or damaged: it is made again then."""
    try:
        facts = json.loads(read_file(directory / _FACTS))
        archive, kernel = read_file(directory / _PART, limit=_LIMIT), read_file(directory / _KERNEL, limit=_LIMIT)
        if (facts["archive"], facts["kernel"]) != (_digest(archive), _digest(kernel)):
            return None
        return Base(kernel, archive)
    except (IsletError, ValueError, KeyError, TypeError):
        return None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _make(
    lock: RealmLock, packages: Mapping[str, bytes], site: SiteFiles, arch: Arch, given: GivenKernel | None
) -> Base:
    files: dict[str, Packed] = {}
    for name, data in packages.items():
        files.update((member.path, member) for member in members(data, what=name))
    libc = next((package.version for package in lock.package if package.name == "libc6"), "0")
    require_loadable(site.files, arch=arch, glibc=glibc_version(libc))
    kernel, modules = _kernel_of(files, arch) if given is None else (given.image, _given_modules(given, arch))
    tree = cpio.Tree()
    tree.add(BUILD_TIME_PATH, cpio.file(b"%d\n" % lock.created))
    with unpacked(files, arch, userland.PYTHON) as interpreter:
        userland.fill(tree, userland.Packages(files), site.files, modules, interpreter, arch)
        archive = interpreter.compress(cpio.archive(tree, mtime=lock.created), COMPRESSION_LEVEL)
    archive += bytes(-len(archive) % 4)  # the next archive starts at a multiple of four
    return Base(kernel, archive)


def _kernel_of(files: Mapping[str, Packed], arch: Arch) -> tuple[bytes, ModuleSet]:
    """The kernel of the packages and its modules."""
    images = [member.data for path, member in sorted(files.items()) if path.startswith("boot/vmlinu")]
    if len(images) != 1:
        raise InputError("the lock's packages hold no kernel", code="no-kernel", hint="renew it with --update-lock")
    available = {path: unsigned(member.data) for path, member in files.items() if _is_module(path)}
    lists = [member.data.decode() for path, member in files.items() if path.endswith("/modules.builtin")]
    return images[0], select(available, builtin=builtin_names("\n".join(lists)), arch=arch)


def _given_modules(given: GivenKernel, arch: Arch) -> ModuleSet:
    return select(given.modules, builtin=None, arch=arch)


def _is_module(path: str) -> bool:
    return path.startswith("lib/modules/") and path.rpartition("/")[2].partition(".ko")[1] == ".ko"
