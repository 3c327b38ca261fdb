"""What a program, a directory or a root file system becomes inside an image.

* A program or script NAME becomes /app/NAME, together with its loader and shared libraries at the
  paths where this machine has them.
* A directory that looks like a root file system (it has bin, usr or etc) becomes the root itself.
* Any other directory becomes /app.
"""

from __future__ import annotations

import os
import platform
import posixpath
import stat
from dataclasses import dataclass, field
from pathlib import Path

from islet_cli.errors import InputError
from islet_cli.oci import elf, libraries
from islet_cli.oci.libraries import Placed
from islet_cli.oci.tree import Tree, collect

APPLICATION = "/app"
_ROOT_MARKS = ("bin", "usr", "etc")
_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
# Interpreters that are nothing without files of their own, which no header names.
_RUNTIMES = ("python", "perl", "ruby", "node", "php", "lua", "java", "tclsh", "guile")
_MAX_LINKS = 40


@dataclass
class Source:
    """The content of an image before it is written.

    Attributes:
        tree: Its only layer.
        entrypoint: What it starts; may be empty for a root file system.
        workdir: Its working directory unless another one is given.
        environment: Variables that the content itself needs.
        architecture: `amd64` or `arm64`.
    """

    tree: Tree
    entrypoint: list[str]
    workdir: str
    architecture: str
    environment: list[str] = field(default_factory=list)


def architecture_name(text: str) -> str:
    """OCI's name of an architecture.

    Raises:
        InputError: Realms have no such processor (`architecture_unknown`).
    """
    name = _ARCHITECTURES.get(text.lower())
    if name is None:
        raise InputError(
            f"architecture {text!r} is unknown", code="architecture_unknown", hint="amd64 (x86_64) or arm64 (aarch64)"
        )
    return name


def read_source(path: Path, *, entrypoint: list[str] | None = None, arch: str | None = None) -> Source:
    """Find out what `path` is and collect what belongs to it.

    Args:
        path: A program, a script, a directory or a root file system.
        entrypoint: What to start instead of the program itself.
        arch: Require (or, where nothing tells, state) this architecture.

    Raises:
        InputError: `no-such-file`, `not-executable`, `no-entrypoint`, `library-missing`,
            `architecture-mismatch`, `elf_invalid`.
    """
    if path.is_dir():
        is_root = any((path / mark).is_dir() for mark in _ROOT_MARKS)
        source = _root_file_system(path, entrypoint) if is_root else _directory(path, entrypoint)
    elif path.is_file():
        source = _program(path.resolve(), path.name, entrypoint)
    else:
        kind = "is neither a file nor a directory" if path.exists() else "does not exist"
        raise InputError(f"{path}: {kind}", code="no-such-file")
    if not source.architecture:
        source.architecture = architecture_name(arch or platform.machine())
    elif arch is not None and architecture_name(arch) != source.architecture:
        raise InputError(
            f"{path}: made for {source.architecture}, not {architecture_name(arch)}", code="architecture-mismatch"
        )
    return source


def _program(host: Path, name: str, entrypoint: list[str] | None) -> Source:
    image = posixpath.join(APPLICATION, name)
    tree = Tree()
    programs = [Placed(image, host)]
    if elf.read(host) is None:
        programs += _interpreter(host, tree)
        if len(programs) == 1:
            raise InputError(
                f"{host}: neither an ELF program nor a script",
                code="not-executable",
                hint="a script starts with #! and the path of its interpreter",
            )
    for placed in programs:
        tree.add_file(placed.image, placed.host.resolve())
    source = Source(tree, entrypoint or [image], "/", "")
    _complete(source, programs, required={placed.image for placed in programs})
    return source


def _directory(host: Path, entrypoint: list[str] | None) -> Source:
    tree = Tree()
    tree.add_directory(APPLICATION.strip("/"))
    collect(host, tree, prefix=APPLICATION.strip("/"), plain=True)
    entrypoint = _inside(host, entrypoint) if entrypoint else [_only_executable(host, tree)]
    programs = [
        Placed("/" + entry.path, entry.host)
        for entry in tree.ordered()
        if entry.host is not None and ("/" + entry.path == entrypoint[0] or _is_program(entry.host))
    ]
    required = {entrypoint[0]}
    main = host / posixpath.relpath(entrypoint[0], APPLICATION)
    if main.is_file() and _starts_with(main, b"#!"):
        extra = _interpreter(main, tree)
        for placed in extra:
            tree.add_file(placed.image, placed.host.resolve())
        programs += extra
        required |= {placed.image for placed in extra}
    source = Source(tree, entrypoint, APPLICATION, "")
    _complete(source, programs, required=required)
    return source


def _inside(host: Path, entrypoint: list[str]) -> list[str]:
    """Let a relative program name of a directory mean the file in it."""
    first = entrypoint[0]
    if not first.startswith("/") and (host / first).is_file():
        first = posixpath.normpath(posixpath.join(APPLICATION, first))
    return [first, *entrypoint[1:]]


def _only_executable(host: Path, tree: Tree) -> str:
    found = [
        "/" + entry.path
        for entry in tree.ordered()
        if stat.S_ISREG(entry.mode) and entry.mode & 0o111 and ".so" not in posixpath.basename(entry.path)
    ]
    if len(found) == 1:
        return found[0]
    problem = "several executable files: " + ", ".join(found[:5]) if found else "no executable file"
    raise InputError(f"{host}: {problem}", code="no-entrypoint", hint="say what to start with --entrypoint")


def _root_file_system(host: Path, entrypoint: list[str] | None) -> Source:
    tree = Tree()
    collect(host, tree)
    candidates = [*(entrypoint or [])[:1], "bin/sh", "bin/busybox", "usr/bin/env", "sbin/init"]
    for candidate in candidates:
        found = resolve_inside(host, candidate)
        if found is not None and _starts_with(found, b"\x7fELF"):
            facts = elf.read(found)
            return Source(tree, entrypoint or [], "/", facts.architecture if facts is not None else "")
    return Source(tree, entrypoint or [], "/", "")


def resolve_inside(root: Path, path: str) -> Path | None:
    """Follow `path` as a process whose root is `root` would; None unless it ends at a regular file."""
    pending = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    at: list[str] = []
    links = 0
    while pending:
        part = pending.pop()
        if part == "..":
            at = at[:-1]
            continue
        here = root.joinpath(*at, part)
        if not here.is_symlink():
            at.append(part)
            continue
        links += 1
        if links > _MAX_LINKS:
            return None
        target = os.readlink(here)  # noqa: PTH115 (keeps a leading "./" and undecodable bytes)
        at = [] if target.startswith("/") else at
        pending.extend(item for item in reversed(target.split("/")) if item not in ("", "."))
    found = root.joinpath(*at)
    return found if found.is_file() else None


def _is_program(path: Path) -> bool:
    """Whether a file of a directory is a program or library of ours; firmware for other machines is data."""
    try:
        return elf.read(path) is not None
    except InputError:
        return False


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


def _interpreter(script: Path, tree: Tree) -> list[Placed]:
    """The programs that the first line of a script names; empty when it is no script.

    Raises:
        InputError: One of them is not on this machine (`library-missing`).
    """
    with script.open("rb") as file:
        line = file.readline(4096)
    if not line.startswith(b"#!"):
        return []
    words = os.fsdecode(line[2:]).split()
    if not words or not words[0].startswith("/"):
        raise InputError(f"{script}: its first line names no interpreter", code="not-executable")
    found = [Path(words[0])]
    if posixpath.basename(words[0]) == "env":
        name = next((word for word in words[1:] if not word.startswith("-") and "=" not in word), "")
        program = libraries.executable_on_path(name) if name else None
        if program is None:
            raise InputError(f"{script}: its interpreter {name!r} is not on this machine", code="library-missing")
        found.append(program)
    for item in found:
        if not item.is_file():
            raise InputError(f"{script}: its interpreter {item} is not on this machine", code="library-missing")
    last = found[-1].name
    if last.startswith(_RUNTIMES):
        tree.warnings.append(f"{script.name}: {last} needs files that are not found by itself; use a root file system")
    else:
        tree.warnings.append(f"{script.name}: only its interpreter {last} is packed, no other program that it calls")
    return [Placed(str(item), item) for item in found]


def _complete(source: Source, programs: list[Placed], *, required: set[str]) -> None:
    """Add loader, libraries and the usual empty directories; settle the architecture."""
    # Those to be started come first: they decide.
    for placed in sorted(programs, key=lambda item: item.image not in required):
        facts = elf.read(placed.host)
        if facts is not None:
            source.architecture = facts.architecture
            break
    for name, asker in libraries.find([placed for placed in programs if placed.image in required]).missing:
        raise InputError(
            f"{asker}: {name} was not found on this machine",
            code="library-missing",
            hint="install it, link the program statically, or give a root file system",
        )
    # A plug-in somewhere in a directory may want what nobody has; what is to be started must not.
    needs = libraries.find(programs)
    source.tree.warnings += [f"{asker}: {name} was not found" for name, asker in needs.missing]
    for image, host in needs.files.items():
        if image.lstrip("/") not in source.tree.entries:
            source.tree.add_file(image, host)
    if needs.search:
        source.environment.append("LD_LIBRARY_PATH=" + ":".join(needs.search))
    for name in ("dev", "etc", "proc", "run", "sys"):
        source.tree.add_directory(name)
    source.tree.add_directory("tmp", 0o1777)
