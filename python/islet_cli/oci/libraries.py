"""Finding the loader and the shared libraries that a dynamic program needs, without running it.

The search follows the loader's own order: DT_RPATH, DT_RUNPATH, the directories of /etc/ld.so.conf,
the default ones. LD_LIBRARY_PATH is left out, since the same command must give the same image.

Source: ld.so(8).
"""

from __future__ import annotations

import glob
import os
import posixpath
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from islet_cli.errors import InputError
from islet_cli.oci import elf
from islet_cli.oci.elf import Elf

_TRIPLETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
_MAX_INCLUDES = 64


@dataclass(frozen=True)
class Placed:
    """A file of this machine and where it stands in the image (absolute)."""

    image: str
    host: Path


@dataclass
class Needs:
    """What has to be in the image besides the programs themselves.

    Attributes:
        files: Host file by absolute path in the image.
        search: Directories that the loader finds only through LD_LIBRARY_PATH, since an image has no
            loader cache.
        missing: (library, who asks for it) that could not be found.
    """

    files: dict[str, Path] = field(default_factory=dict)
    search: list[str] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)


def default_directories(architecture: str) -> list[str]:
    """Where every loader looks by itself."""
    triplet = _TRIPLETS[architecture]
    return [f"/lib/{triplet}", f"/usr/lib/{triplet}", "/lib", "/usr/lib", "/lib64", "/usr/lib64"]


def configured_directories(conf: Path = Path("/etc/ld.so.conf")) -> list[str]:
    """The directories of ld.so.conf and of the files it includes."""
    found: list[str] = []
    pending, seen = deque([conf]), 0
    while pending and seen < _MAX_INCLUDES:
        seen += 1
        try:
            lines = pending.popleft().read_text(errors="surrogateescape").splitlines()
        except OSError:
            continue
        for line in lines:
            words = line.partition("#")[0].split()
            if len(words) >= 2 and words[0] == "include":
                for pattern in words[1:]:
                    # Patterns are relative to the file's own directory.
                    pending.extend(Path(name) for name in sorted(glob.glob(str(conf.parent / pattern))))  # noqa: PTH207
            elif words and words[0].startswith("/"):
                found.append(words[0].rstrip("/"))
    return found


def find(programs: list[Placed]) -> Needs:
    """Find everything that `programs` need, directly or through libraries.

    Files that are not ELF are passed over.

    Raises:
        InputError: A file is a damaged ELF file (`elf_invalid`).
    """
    needs = Needs()
    search = _Search(needs)
    for program in programs:
        facts = elf.read(program.host)
        if facts is not None:
            search.add(program, facts, ())
    search.run()
    return needs


class _Search:
    def __init__(self, needs: Needs) -> None:
        self._needs = needs
        self._configured = configured_directories()
        self._seen: set[str] = set()
        self._queue: deque[tuple[Placed, Elf, tuple[tuple[Placed, Elf], ...]]] = deque()

    def add(self, placed: Placed, facts: Elf, chain: tuple[tuple[Placed, Elf], ...]) -> None:
        """Queue an object; `chain` holds those that led to it, nearest first."""
        if placed.image not in self._seen:
            self._seen.add(placed.image)
            self._queue.append((placed, facts, chain))

    def run(self) -> None:
        while self._queue:
            placed, facts, chain = self._queue.popleft()
            if facts.interpreter is not None:
                self._interpreter(facts.interpreter, placed)
            for name in facts.needed:
                self._library(name, placed, facts, chain)

    def _interpreter(self, path: str, asker: Placed) -> None:
        host = Path(path)
        if not host.is_file():
            self._needs.missing.append((path, asker.image))
            return
        self._needs.files[path] = host.resolve()
        self._seen.add(path)

    def _library(self, name: str, placed: Placed, facts: Elf, chain: tuple[tuple[Placed, Elf], ...]) -> None:
        # musl's loader is its own C library under several names.
        if name.startswith("libc.musl-") or (
            name == "libc.so" and any("ld-musl" in path for path in self._needs.files)
        ):
            return
        # A library that the loader already has by name serves every later asker.
        if any(posixpath.basename(image) == name for image in self._seen):
            return
        for image, host, implicit in self._candidates(name, placed, facts, chain):
            candidate = self._fitting(host, facts.architecture)
            if candidate is None:
                continue
            found = Placed(image, host)
            self._needs.files[image] = host.resolve()
            directory = posixpath.dirname(image)
            if implicit and directory not in (*default_directories(facts.architecture), *self._needs.search):
                self._needs.search.append(directory)
            self.add(found, candidate, ((placed, facts), *chain))
            return
        self._needs.missing.append((name, placed.image))

    @staticmethod
    def _fitting(host: Path, architecture: str) -> Elf | None:
        if not host.is_file():
            return None
        try:
            facts = elf.read(host)
        except InputError:
            return None
        return facts if facts is not None and facts.architecture == architecture else None

    def _candidates(
        self, name: str, placed: Placed, facts: Elf, chain: tuple[tuple[Placed, Elf], ...]
    ) -> list[tuple[str, Path, bool]]:
        """(path in the image, path here, found without the object's own help) in search order."""
        if "/" in name:
            return [(name, Path(name), False)] if name.startswith("/") else []
        out: list[tuple[str, Path, bool]] = []
        # DT_RPATH counts only without DT_RUNPATH, and then those of the askers as well.
        holders = [(placed, facts), *chain] if not facts.runpath else []
        pairs = [(holder, item) for holder, own in holders if not own.runpath for item in own.rpath]
        pairs += [(placed, item) for item in facts.runpath]
        for holder, item in pairs:
            image = _expand(item, posixpath.dirname(holder.image), facts.architecture)
            host = _expand(item, str(holder.host.resolve().parent), facts.architecture)
            out.append((posixpath.join(image, name), Path(host) / name, False))
        for directory in (*self._configured, *default_directories(facts.architecture)):
            out.append((f"{directory}/{name}", Path(directory) / name, True))
        return out


def _expand(item: str, origin: str, architecture: str) -> str:
    """Replace the loader's variables and make the directory plain."""
    library = "lib/" + _TRIPLETS[architecture]
    platform = {"amd64": "x86_64", "arm64": "aarch64"}[architecture]
    for name, value in (("ORIGIN", origin), ("LIB", library), ("PLATFORM", platform)):
        item = item.replace(f"${{{name}}}", value).replace(f"${name}", value)
    return posixpath.normpath(posixpath.join(origin, item))


def executable_on_path(name: str) -> Path | None:
    """Where this machine has the program `name`; the caller's PATH is left out, as are user directories."""
    for directory in ("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"):
        candidate = Path(directory) / name
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    return None
