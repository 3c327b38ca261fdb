"""The packages of an image: resolving them when it is locked, and having their bytes when it is built.

Packages are kept by digest, so a kept one needs no trust in where it is kept.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from islet_cli.errors import UnavailableError, VerificationError
from islet_cli.fsutil import make_private_directory, read_file, write_atomic
from islet_cli.progress import Report, silent
from islet_cli.realm_image.apt import PACKAGE_LIMIT, Apt
from islet_cli.realm_image.arch import Arch
from islet_cli.realm_image.lock import Package


def data_lines(name: str) -> list[str]:
    """The lines of one of this package's lists, less comments and blank lines."""
    text = (resources.files(__package__) / "data" / name).read_text("utf-8")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def user_cache() -> Path:
    """`$XDG_CACHE_HOME/islet` (else `~/.cache/islet`), private to this user: shared by all workspaces."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return make_private_directory(Path(base) / "islet")


class PackageStore:
    """Packages by digest, in several directories of which each may be missing some.

    Args:
        arch: Architecture of the image.
        own: Where this build keeps packages; what is found elsewhere, or fetched, is kept there too.
        shared: Further directories, which may belong to others: the digest is checked at every use.
    """

    def __init__(self, arch: Arch, own: Path, shared: Sequence[Path] = ()) -> None:
        self._arch = arch
        self._directories = [make_private_directory(own), *shared]
        self._apt: Apt | None = None

    def resolve(self, *, kernel: bool) -> list[Package]:
        """Choose the versions that the machine's package sources offer now, sorted by name.

        Args:
            kernel: Whether a kernel is wanted too.

        Raises:
            UnavailableError: No apt, or a package is not to be had.
        """
        apt = self._source()
        apt.update()
        names = data_lines("packages.txt")
        found = apt.find([*names, self._arch.kernel_package] if kernel else names)
        packages = [found[name].package for name in names]
        if kernel:
            packages.append(self._kernel(apt, found[self._arch.kernel_package].depends))
        return sorted(packages, key=lambda package: package.name)

    def _kernel(self, apt: Apt, depends: str) -> Package:
        """The package behind the meta package."""
        match = re.match(r"(linux-image-[a-z0-9.+-]+)(?: \(= ([^)]+)\))?", depends)
        if match is None:
            raise UnavailableError(
                f"{self._arch.kernel_package} does not name a kernel",
                code="no-package",
                hint="give a kernel with --kernel and --modules",
            )
        return apt.find([match[1]])[match[1]].package

    def read(self, packages: Sequence[Package], report: Report = silent) -> dict[str, bytes]:
        """Return the bytes of each package by its name, fetching what is not kept yet.

        Raises:
            UnavailableError: A package is neither kept nor to be fetched (`no-package`).
            VerificationError: What was fetched has another digest (`digest_mismatch`).
        """
        total = sum(package.size for package in packages)
        out: dict[str, bytes] = {}
        for package in packages:
            report(sum(map(len, out.values())), total)
            out[package.name] = self._kept(package) or self._fetch(package)
        report(total, total)
        return out

    def _kept(self, package: Package) -> bytes | None:
        own = self._directories[0] / f"{package.sha256}.deb"
        for directory in self._directories:
            path = directory / own.name
            if not path.is_file():
                continue
            data = read_file(path, limit=PACKAGE_LIMIT)
            if hashlib.sha256(data).hexdigest() != package.sha256:
                continue  # damaged: another copy, or the archive, has it
            if path != own:
                self._share(path, own, data)
            return data
        return None

    def _share(self, source: Path, own: Path, data: bytes) -> None:
        try:
            own.unlink(missing_ok=True)
            os.link(source, own)
        except OSError:  # another file system
            write_atomic(own, data, mode=0o644)

    def _fetch(self, package: Package) -> bytes:
        try:
            data = self._download(package)
        except UnavailableError as error:
            error.hint = "give --package-cache, or choose the versions of today with --update-lock"
            raise
        if hashlib.sha256(data).hexdigest() != package.sha256:
            raise VerificationError(
                f"package {package.name} {package.version}: the archive's file has another digest than the lock",
                code="digest_mismatch",
                hint="renew the lock with --update-lock",
            )
        own = self._directories[0] / f"{package.sha256}.deb"
        write_atomic(own, data, mode=0o644)
        for directory in self._directories[1:]:
            if os.access(directory, os.W_OK) and not (directory / own.name).exists():
                self._share(own, directory / own.name, data)
        return data

    def _download(self, package: Package) -> bytes:
        apt = self._source()
        try:
            return apt.download(package)
        except UnavailableError as error:
            if error.code == "no-apt":
                raise
        apt.update()  # the index may be missing or old
        return apt.download(package)

    def _source(self) -> Apt:
        if self._apt is None:
            self._apt = Apt(user_cache() / f"apt-{self._arch.debian}", self._arch.debian)
        return self._apt
