"""The entries of a file tree that becomes a layer: collected, put in order, made reproducible."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path

from islet_cli.errors import InputError
from islet_cli.fsutil import os_error

BLOCK = 4096
_INODE = 256


def footprint(size: int, *, directory: bool = False) -> int:
    """Bytes that an entry takes in a file system of 4 KiB blocks."""
    return _INODE + (BLOCK if directory else -(-size // BLOCK) * BLOCK)


@dataclass(frozen=True)
class Entry:
    """One entry of a layer.

    Attributes:
        path: In the image, without a leading slash; bytes that are no UTF-8 are surrogate-escaped.
        mode: File type and permission bits, as `st_mode`.
        host: The file that has the content; None for what has none.
        target: Of a symbolic link.
        capability: The value of `security.capability`, or None.
        identity: Device and inode when several names share them, else None.
    """

    path: str
    mode: int
    host: Path | None = None
    size: int = 0
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    target: str = ""
    capability: bytes | None = None
    identity: tuple[int, int] | None = None

    @property
    def sort_key(self) -> bytes:
        return os.fsencode(self.path)


@dataclass
class Tree:
    """Entries by path, with what had to be left out."""

    entries: dict[str, Entry] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """Add an entry and the directories above it that are not there yet."""
        parent = entry.path.rpartition("/")[0]
        if parent and parent not in self.entries:
            self.add(Entry(parent, stat.S_IFDIR | 0o755))
        self.entries[entry.path] = entry

    def add_directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory unless something is there."""
        if path not in self.entries:
            self.add(Entry(path, stat.S_IFDIR | mode))

    def add_file(self, path: str, host: Path, mode: int = 0o755) -> None:
        """Add the content of `host`, owned by root."""
        try:
            status = host.stat()
        except OSError as error:
            raise os_error(error, host) from error
        self.add(Entry(path.lstrip("/"), stat.S_IFREG | mode, host, status.st_size, mtime=int(status.st_mtime)))

    def ordered(self) -> list[Entry]:
        """The entries sorted by the bytes of their paths, so that parents precede children."""
        return sorted(self.entries.values(), key=lambda entry: entry.sort_key)

    @property
    def content_bytes(self) -> int:
        """Of all regular files together."""
        return sum(entry.size for entry in self.entries.values())


def collect(root: Path, tree: Tree, *, prefix: str = "", plain: bool = False) -> None:
    """Add everything below `root` to `tree`.

    Links stay links, setuid bits, FIFOs and file capabilities are kept. Device nodes, sockets and what
    other file systems are mounted over are left out with a warning.

    Args:
        root: A directory.
        tree: Receives the entries.
        prefix: Where they go in the image.
        plain: Owner 0:0 and modes 0755 or 0644, since a working copy's own owner and umask say nothing;
            otherwise owners are kept when this process is privileged, else 0:0.

    Raises:
        InputError: Something cannot be read.
    """
    keep_owner = not plain and os.geteuid() == 0
    try:
        device = root.stat().st_dev
        pending = [(root, prefix)]
        while pending:
            directory, path = pending.pop()
            with os.scandir(directory) as listing:
                for item in listing:
                    status = item.stat(follow_symlinks=False)
                    name = f"{path}/{item.name}" if path else item.name
                    entry = _entry(Path(item.path), name, status, tree)
                    if entry is None:
                        continue
                    if plain:
                        entry = replace(entry, mode=_plain_mode(status.st_mode))
                    owned = replace(entry, uid=status.st_uid, gid=status.st_gid) if keep_owner else entry
                    tree.entries[name] = owned
                    if not stat.S_ISDIR(status.st_mode):
                        continue
                    if status.st_dev == device:
                        pending.append((Path(item.path), name))
                    else:
                        tree.warnings.append(f"{name}: another file system is mounted there; its content is left out")
    except OSError as error:
        raise os_error(error, Path(error.filename) if error.filename else root) from error


def _plain_mode(mode: int) -> int:
    if stat.S_ISLNK(mode) or stat.S_ISFIFO(mode):
        return mode
    executable = stat.S_ISDIR(mode) or mode & 0o111
    return stat.S_IFMT(mode) | (0o755 if executable else 0o644)


def _entry(host: Path, path: str, status: os.stat_result, tree: Tree) -> Entry | None:
    mode, mtime = status.st_mode, int(status.st_mtime)
    if stat.S_ISREG(mode):
        identity = (status.st_dev, status.st_ino) if status.st_nlink > 1 else None
        return Entry(path, mode, host, status.st_size, mtime=mtime, capability=_capability(host), identity=identity)
    if stat.S_ISLNK(mode):
        return Entry(path, mode, mtime=mtime, target=os.readlink(host))  # noqa: PTH115 (keeps undecodable bytes)
    if stat.S_ISDIR(mode) or stat.S_ISFIFO(mode):
        return Entry(path, mode, mtime=mtime)
    kind = "socket" if stat.S_ISSOCK(mode) else "device node"
    tree.warnings.append(f"{path}: a {kind}, left out")
    return None


def _capability(host: Path) -> bytes | None:
    try:
        return os.getxattr(host, "security.capability", follow_symlinks=False)
    except OSError as error:
        # It has none, or its file system knows none.
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return None
        raise


def require_unchanged(entry: Entry, size: int) -> None:
    """Require that a file still has the size it was collected with.

    Raises:
        InputError: `changed`.
    """
    if size != entry.size:
        raise InputError(f"{entry.host}: changed while it was read", code="changed", hint="try again")
