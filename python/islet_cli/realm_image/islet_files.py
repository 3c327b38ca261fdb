"""The installed files that enter a realm image from this Python environment: islet's realm side and two libraries.

Their digest stands in the lock file: an image is the same for the same lock, and another installation is noticed.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from islet_cli.errors import InternalError, UnavailableError
from islet_cli.fsutil import read_file
from islet_cli.realm_image import elf
from islet_cli.realm_image.arch import Arch
from islet_cli.realm_image.imports import closure, module_name
from islet_cli.realm_image.lock import Distribution, IsletFiles
from islet_cli.realm_image.packages import data_lines

_FILE_LIMIT = 256 << 20
# Distribution name -> import name. PyYAML's optional C part is left out, the realm uses the Python one.
_LIBRARIES = {"cryptography": "cryptography", "PyYAML": "yaml"}
_LEFT_OUT = {"yaml/cyaml.py"}
_NATIVE = "islet_cli/_native.abi3.so"


@dataclass(frozen=True)
class SiteFiles:
    """Files by path relative to the realm's import root: sources and native modules, and what decides their use.

    Attributes:
        files: What enters the image.
        recipe: The builder's own files; they decide what the image looks like but do not enter it.
        versions: Name and version of each distribution.
    """

    files: dict[str, bytes]
    recipe: dict[str, bytes]
    distributions: tuple[Distribution, ...]
    version: str

    @property
    def locked(self) -> IsletFiles:
        """What the lock file records."""
        digest = hashlib.sha256()
        for part in (self.files, self.recipe):
            for path, data in sorted(part.items()):
                digest.update(f"{path}\0{len(data)}\0".encode() + hashlib.sha256(data).digest())
        return IsletFiles(version=self.version, files=digest.hexdigest())


def collect() -> SiteFiles:
    """Read the installed files.

    Raises:
        UnavailableError: The native module or a library is not installed (`not-installed`).
    """
    from islet_cli import __version__

    package = Path(__file__).parent.parent
    files = {f"islet_cli/{path}": read_file(package / path, limit=_FILE_LIMIT) for path in _islet_paths(package)}
    files[_NATIVE] = _native(package)
    distributions = []
    for name, module in _LIBRARIES.items():
        files.update(_library(module))
        distributions.append(Distribution(name=name, version=metadata.version(name)))
    recipe_root = Path(__file__).parent
    recipe = {
        path.relative_to(recipe_root).as_posix(): read_file(path)
        for path in sorted(recipe_root.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }
    return SiteFiles(files, recipe, tuple(distributions), __version__)


def _islet_paths(package: Path) -> list[str]:
    """The listed modules, and what they import when they are imported themselves."""
    listed: list[str] = []
    for line in data_lines("islet_modules.txt"):
        path = package / line
        found = sorted(path.rglob("*.py")) if line.endswith("/") else [path]
        if not found or not all(item.is_file() for item in found):
            raise InternalError(f"{path}: belongs to the realm image and is missing")
        listed += [item.relative_to(package).as_posix() for item in found]
    sources = {
        f"{package.name}/{path.relative_to(package).as_posix()}": read_file(path) for path in package.rglob("*.py")
    }
    roots = [module_name(f"{package.name}/{path}")[0] for path in listed]
    return sorted(path.partition("/")[2] for path in closure(sources, roots, lazy=False))


def _native(package: Path) -> bytes:
    path = package / "_native.abi3.so"
    if not path.is_file():
        raise UnavailableError(
            f"{path}: the native module is missing", code="not-installed", hint="install the islet-cli wheel"
        )
    return read_file(path, limit=_FILE_LIMIT)


def _library(module: str) -> dict[str, bytes]:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UnavailableError(
            f"the Python package {module} is not installed", code="not-installed", hint=f"run: pip install {module}"
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    out = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root.parent).as_posix()
        kept = path.suffix == ".py" or path.name.endswith(".abi3.so")
        if kept and name not in _LEFT_OUT and "/tests/" not in name:
            out[name] = read_file(path, limit=_FILE_LIMIT)
    return out


def require_loadable(files: dict[str, bytes], *, arch: Arch, glibc: tuple[int, ...]) -> None:
    """Require that the native modules run in the realm.

    Args:
        files: As `SiteFiles.files`.
        arch: The realm's.
        glibc: Version of the realm's C library.

    Raises:
        UnavailableError: One is for another processor, or needs a newer C library (`libc-too-new`).
    """
    for path, data in files.items():
        if not elf.is_elf(data):
            continue
        facts = elf.facts(data, what=path)
        if facts.machine != arch.elf_machine:
            raise UnavailableError(f"{path} is not for {arch.name}", code="foreign-arch")
        for version in facts.versions:
            if version.startswith("GLIBC_") and _numbers(version[6:]) > glibc:
                raise UnavailableError(
                    f"{path} needs glibc {version[6:]}, the realm has {'.'.join(map(str, glibc))}",
                    code="libc-too-new",
                    hint="install a manylinux wheel, or build islet on Debian 12",
                )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def glibc_version(package_version: str) -> tuple[int, ...]:
    """`2.36-9+deb12u14` -> (2, 36)."""
    return _numbers(package_version.partition(":")[2].partition("-")[0] or package_version.partition("-")[0])
