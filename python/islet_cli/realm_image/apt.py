"""Asking the machine's own package sources, without root and without touching the machine's package state.

apt checks the signature of every index and the digest of every package; a private state and cache directory
keep it from needing root and from seeing what is installed here.

Source: apt.conf(5), apt-get(8), apt-cache(8).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from islet_cli.errors import UnavailableError
from islet_cli.fsutil import exclusive_lock, make_private_directory, read_file
from islet_cli.realm_image.lock import Package

PACKAGE_LIMIT = 1 << 30
_HINT = (
    "build where a Debian 12 archive is configured, or give --package-cache, or --kernel and --modules for the kernel"
)


@dataclass(frozen=True)
class Record:
    """A package as the signed index describes it, and what it depends on."""

    package: Package
    depends: str


class Apt:
    """apt with a state directory of our own."""

    def __init__(self, directory: Path, architecture: str) -> None:
        self._directory = make_private_directory(directory)
        self._architecture = architecture
        for name in ("state/lists/partial", "cache/archives/partial"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        (directory / "state/status").touch()

    def update(self) -> None:
        """Fetch the indexes. A source that fails is left out: what matters is whether the packages are found."""
        with exclusive_lock(self._directory / "lock"):
            self._run("apt-get", "--error-on=any", "update", check=False)

    def find(self, names: Sequence[str]) -> dict[str, Record]:
        """Return the candidate version of each package.

        Raises:
            UnavailableError: apt is missing, or the sources lack a package (`no-package`).
        """
        text = self._run("apt-cache", "show", "--no-all-versions", *names, check=False)
        found: dict[str, Record] = {}
        for paragraph in text.split("\n\n"):
            fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", paragraph, re.MULTILINE))
            if {"Package", "Version", "Filename", "Size", "SHA256"} <= fields.keys():
                found.setdefault(fields["Package"], _record(fields))
        missing = [name for name in names if name not in found]
        if missing:
            raise UnavailableError(
                f"the machine's package sources lack {', '.join(missing)}", code="no-package", hint=_HINT
            )
        return found

    def download(self, package: Package) -> bytes:
        """Fetch exactly this version of a package; the caller checks its digest.

        Raises:
            UnavailableError: The sources have it no more, or cannot be reached (`no-package`).
        """
        wanted = f"{package.name}={package.version}"
        with tempfile.TemporaryDirectory(dir=self._directory) as scratch:
            self._run("apt-get", "download", wanted, cwd=Path(scratch), check=True)
            files = list(Path(scratch).glob("*.deb"))
            if len(files) != 1:
                raise UnavailableError(f"apt did not fetch {wanted}", code="no-package", hint=_HINT)
            return read_file(files[0], limit=PACKAGE_LIMIT)

    def _run(self, program: str, *arguments: str, cwd: Path | None = None, check: bool) -> str:
        if shutil.which(program) is None:
            raise UnavailableError(f"{program} is not installed", code="no-apt", hint=_HINT)
        options = {
            "Dir::State": self._directory / "state",
            "Dir::State::status": self._directory / "state/status",
            "Dir::Cache": self._directory / "cache",
            "APT::Architecture": self._architecture,
            "APT::Architectures": self._architecture,
            "APT::Sandbox::User": "root",  # the private directory is closed to apt's own user
            "APT::Get::AllowUnauthenticated": "false",
            "Acquire::Languages": "none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
            "Acquire::Retries": "3",
            "Debug::NoLocking": "true",
        }
        command = [program, *(part for key, value in options.items() for part in ("-o", f"{key}={value}")), *arguments]
        environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if check and done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("E:")] or [f"code {done.returncode}"]
            raise UnavailableError(f"{program} {' '.join(arguments)}: {lines[0]}", code="no-package", hint=_HINT)
        return done.stdout


def _record(fields: dict[str, str]) -> Record:
    package = Package(
        name=fields["Package"],
        version=fields["Version"],
        architecture=fields.get("Architecture", "all"),
        size=int(fields["Size"]),
        sha256=fields["SHA256"],
        path=fields["Filename"],
    )
    return Record(package, fields.get("Depends", ""))
