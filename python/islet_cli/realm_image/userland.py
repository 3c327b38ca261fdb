"""The part of the image that is the same for every realm of one lock: programs, libraries, Python, kernel modules."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from importlib import resources

from islet_cli.errors import InternalError
from islet_cli.realm_image import cpio, elf
from islet_cli.realm_image.arch import Arch
from islet_cli.realm_image.debfile import Packed
from islet_cli.realm_image.imports import closure, imported_names, is_denied, module_name
from islet_cli.realm_image.interpreter import Interpreter
from islet_cli.realm_image.modules import ModuleSet
from islet_cli.realm_image.packages import data_lines

PYTHON = "3.11"
_ROOT = f"usr/lib/python{PYTHON}"
_PROGRAMS = {
    f"usr/bin/python{PYTHON}": f"usr/bin/python{PYTHON}",
    "bin/busybox": "usr/bin/busybox",
    "sbin/mke2fs": "usr/sbin/mke2fs",
    "sbin/e2fsck": "usr/sbin/e2fsck",
    "sbin/resize2fs": "usr/sbin/resize2fs",
}
_LINKS = {
    "bin": "usr/bin",
    "sbin": "usr/sbin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
    "usr/bin/python3": f"python{PYTHON}",
    "usr/sbin/mkfs.ext2": "mke2fs",
    "usr/sbin/mkfs.ext4": "mke2fs",
    "usr/sbin/fsck.ext4": "e2fsck",
    "etc/mtab": "../proc/self/mounts",
}
# What the init, the DHCP client and the manager call. A shell is needed by the init; none is offered on the console.
_APPLETS = ("sh", "mount", "umount", "ip", "udhcpc", "insmod", "chroot", "poweroff", "cat", "sleep", "mkdir")
_TEXTS = {
    "etc/passwd": "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hostname": "realm\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 realm\n",
    "etc/resolv.conf": "",
}
_DIRECTORIES = ("apps", "dev", "proc", "root", "run", "sys", "tmp", "var")


class Packages:
    """All files of the unpacked packages by path, with links resolved on demand."""

    def __init__(self, files: Mapping[str, Packed]) -> None:
        self.files = files

    def read(self, path: str) -> bytes:
        """The content at `path`, through at most eight links.

        Raises:
            InternalError: No package has it.
        """
        for _ in range(8):
            member = self.files.get(path)
            if member is None:
                break
            if member.target is None:
                return member.data
            path = posixpath.normpath(posixpath.join(posixpath.dirname(path), member.target)).lstrip("/")
        raise InternalError(f"no package of the realm image has {path}")

    def library(self, name: str, arch: Arch) -> bytes:
        """The shared library with this SONAME."""
        for directory in (f"lib/{arch.triplet}", f"usr/lib/{arch.triplet}"):
            if f"{directory}/{name}" in self.files:
                return self.read(f"{directory}/{name}")
        raise InternalError(f"no package of the realm image has the library {name}")


def fill(
    tree: cpio.Tree,
    packages: Packages,
    site: Mapping[str, bytes],
    modules: ModuleSet,
    interpreter: Interpreter,
    arch: Arch,
) -> None:
    """Put everything but the realm's own configuration into `tree`."""
    for directory in _DIRECTORIES:
        tree.add(directory, cpio.directory(0o1777 if directory == "tmp" else 0o755))
    for path, target in _LINKS.items():
        tree.add(path, cpio.link(target))
    for applet in _APPLETS:
        tree.add(f"usr/bin/{applet}", cpio.link("busybox"))
    for path, text in _TEXTS.items():
        tree.add(path, cpio.file(text.encode()))
    data = resources.files(__package__) / "data"
    # The kernel opens /dev/console for the first process before anything is mounted.
    tree.add("dev/console", cpio.character_device(5, 1))
    tree.add("init", cpio.file((data / "init").read_bytes(), executable=True))
    tree.add("etc/mke2fs.conf", cpio.file((data / "mke2fs.conf").read_bytes()))
    tree.add("usr/libexec/islet/realm-init", cpio.file((data / "realm-init").read_bytes(), executable=True))
    tree.add("usr/libexec/islet/dhcp", cpio.file((data / "dhcp").read_bytes(), executable=True))
    for stage in ("early", "late", "vsock"):
        names = "".join(f"{name}\n" for name in getattr(modules, stage))
        tree.add(f"etc/islet/modules.{stage}", cpio.file(names.encode()))
    for name, content in modules.files.items():
        tree.add(f"usr/lib/modules/{name}", cpio.file(content))
    native = {path: packages.read(path) for path in _PROGRAMS}
    native.update(_python(tree, packages, site, interpreter, arch))
    for path, target in _PROGRAMS.items():
        tree.add(target, cpio.file(elf.trimmed(native[path], what=path), executable=True))
    _libraries(tree, packages, native, arch)


def _libraries(tree: cpio.Tree, packages: Packages, native: Mapping[str, bytes], arch: Arch) -> None:
    """Add the loader and every shared library that the programs and native modules need."""
    loader = posixpath.basename(arch.loader)
    tree.add(f"usr/{arch.loader}", cpio.file(packages.read(arch.loader), executable=True))
    pending = [(path, data) for path, data in native.items() if elf.is_elf(data)]
    done = {loader}
    while pending:
        path, data = pending.pop()
        for name in elf.facts(data, what=path).needed:
            if name not in done:
                done.add(name)
                library = packages.library(name, arch)
                tree.add(f"usr/lib/{arch.triplet}/{name}", cpio.file(elf.trimmed(library, what=name)))
                pending.append((name, library))


def _python(
    tree: cpio.Tree, packages: Packages, site: Mapping[str, bytes], interpreter: Interpreter, arch: Arch
) -> dict[str, bytes]:
    """Add the Python modules, compiled; return the native ones (by their path in the realm)."""
    prefix = f"{_ROOT}/"
    standard = {
        path.removeprefix(prefix): member.data
        for path, member in packages.files.items()
        if path.startswith(prefix) and path.endswith(".py") and member.target is None
    }
    own = {path: data for path, data in site.items() if path.endswith(".py")}
    used, extensions = _used(standard, own)
    sources = {f"/{prefix}{path}": data for path, data in {**{p: standard[p] for p in used}, **own}.items()}
    for path, code in interpreter.compile(sources, keep_docstrings=[f"/{prefix}islet_cli/"]).items():
        tree.add(path.lstrip("/").removesuffix(".py") + ".pyc", cpio.file(code))
    native = {f"{prefix}{path}": data for path, data in site.items() if elf.is_elf(data)}
    native[f"{prefix}{_CFFI}"] = packages.read(f"usr/lib/python3/dist-packages/{_cffi_name(arch)}")
    for name in extensions:
        path = f"{prefix}lib-dynload/{name}.cpython-{PYTHON.replace('.', '')}-{arch.triplet}.so"
        if path in packages.files:
            native[path] = packages.read(path)
    for path, data in native.items():
        tree.add(path, cpio.file(elf.trimmed(data, what=path)))
    return native


_CFFI = "_cffi_backend.so"


def _cffi_name(arch: Arch) -> str:
    return f"_cffi_backend.cpython-{PYTHON.replace('.', '')}-{arch.triplet}.so"


def _used(standard: Mapping[str, bytes], own: Mapping[str, bytes]) -> tuple[set[str], list[str]]:
    """Which standard library sources are needed, and the top-level names among their imports (extension modules)."""
    denied = frozenset(data_lines("stdlib_denied.txt"))
    roots = set(data_lines("stdlib.txt"))
    for path, data in own.items():
        module, is_package = module_name(path)
        names = imported_names(data, module, is_package=is_package)
        roots |= names if path.startswith("islet_cli/") else {name for name in names if not is_denied(name, denied)}
    used = closure(standard, roots, denied=denied)
    mentioned = set(roots)
    for path in used:
        module, is_package = module_name(path)
        found = imported_names(standard[path], module, is_package=is_package)
        mentioned |= {name for name in found if not is_denied(name, denied)}
    return used, sorted(name for name in mentioned if "." not in name)
