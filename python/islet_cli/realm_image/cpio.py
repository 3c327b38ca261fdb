"""A reproducible writer of the kernel's initramfs format: cpio, "new ASCII" variant.

The same tree gives the same bytes: members sorted by path, inode numbers counted from 1, one time for all,
owner 0:0, no hard links.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from islet_cli.errors import InputError

_TRAILER = "TRAILER!!!"
_FIELD_LIMIT = 1 << 32
_PATH_LIMIT = 4095  # PATH_MAX less the terminating zero; the kernel skips members with longer names


@dataclass(frozen=True)
class Entry:
    """One member: `mode` with its file type bits, the content (of a link: its target), a device's numbers."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def file(data: bytes, *, executable: bool = False) -> Entry:
    """A regular file, 0644 or 0755."""
    return Entry(stat.S_IFREG | (0o755 if executable else 0o644), data)


def directory(mode: int = 0o755) -> Entry:
    """A directory."""
    return Entry(stat.S_IFDIR | mode)


def link(target: str) -> Entry:
    """A symbolic link."""
    return Entry(stat.S_IFLNK | 0o777, target.encode())


def character_device(major: int, minor: int, mode: int = 0o600) -> Entry:
    """A character device node."""
    return Entry(stat.S_IFCHR | mode, device=(major, minor))


class Tree:
    """A file tree in memory. Paths are relative, without `.`, `..` or empty parts; parents appear by themselves."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def add(self, path: str, entry: Entry) -> None:
        """Put `entry` at `path`, replacing what stood there.

        Raises:
            InputError: A malformed path, or one below something that is not a directory.
        """
        parts = path.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\0" in path or path == _TRAILER:
            raise InputError(f"initramfs path {path!r}: not a plain relative path", code="bad-path")
        if len(path.encode()) > _PATH_LIMIT:
            raise InputError(f"initramfs path {path[:40]!r}…: longer than {_PATH_LIMIT} bytes", code="bad-path")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if not stat.S_ISDIR(self._entries.setdefault(parent, directory()).mode):
                raise InputError(f"initramfs path {path!r}: {parent} is not a directory", code="bad-path")
        old = self._entries.get(path)
        if old is not None and stat.S_ISDIR(old.mode) != stat.S_ISDIR(entry.mode):
            raise InputError(f"initramfs path {path!r}: already there as another kind", code="bad-path")
        self._entries[path] = entry

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def __getitem__(self, path: str) -> Entry:
        return self._entries[path]

    def __len__(self) -> int:
        return len(self._entries)

    def items(self) -> Iterator[tuple[str, Entry]]:
        """Members in the order in which they are written."""
        yield from sorted(self._entries.items())

    def update(self, files: Mapping[str, Entry]) -> None:
        """Add several members."""
        for path, entry in sorted(files.items()):
            self.add(path, entry)


def archive(tree: Tree, *, mtime: int) -> bytes:
    """Write the tree as one archive.

    Args:
        tree: What to write.
        mtime: Modification time of every member, in seconds since 1970.

    Raises:
        InputError: A time or a size that the format's 32-bit fields cannot hold.
    """
    if not 0 <= mtime < _FIELD_LIMIT:
        raise InputError(f"time {mtime}: outside of what an initramfs can hold", code="bad-time")
    out = bytearray()
    for inode, (path, entry) in enumerate(tree.items(), start=1):
        _write(out, path, entry, inode=inode, mtime=mtime)
    _write(out, _TRAILER, Entry(0), inode=0, mtime=0)
    return bytes(out)


def _write(out: bytearray, path: str, entry: Entry, *, inode: int, mtime: int) -> None:
    if len(entry.data) >= _FIELD_LIMIT:
        raise InputError(f"{path}: too large for an initramfs", code="too-large")
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    fields = (inode, entry.mode, 0, 0, links, mtime, len(entry.data), 0, 0, major, minor, len(name), 0)
    out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
    out += bytes(-len(out) % 4)
    out += entry.data
    out += bytes(-len(out) % 4)
