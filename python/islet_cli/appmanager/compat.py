"""Installing an image in upstream's directory form: `img/` and `metadata.json` in the image partition.

    P/img            the unpacked image
    P/metadata.json  what it is
    P/unpack         the image being unpacked; after the exchange, the old one
    P/temp           blobs being fetched
    P/journal        the switch under way: both configuration hashes and both directories' inode numbers
    P/img.old        the old image, where names cannot be exchanged

A kill at any instant leaves, after `recover`, the old image with the old metadata or the new with the new.
The exchange leaves the same names in place, so the inode numbers tell which side of it the kill came.

Source: the app-manager of the Islet project (names `img`, `unpack`, `temp`, `metadata.json`); renameat2(2).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from islet_cli import _native, strictjson
from islet_cli.appmanager.compat_metadata import MAX_SIZE, Metadata, decode, encode
from islet_cli.errors import InputError
from islet_cli.fsutil import fsync_directory, read_file, write_atomic

Step = Callable[[str], None]
"""Called with the name of each step once it is done: what the tests interrupt."""

STEPS = ("cleared", "unpacked", "flushed", "new_metadata", "journal", "switched", "metadata", "journal_removed", "done")


def _no_step(_name: str) -> None:
    pass


@dataclass(frozen=True)
class _Journal:
    """Configuration hashes and inode numbers of the old image (None when there was none) and the new one."""

    old_hash: str | None
    old_inode: int | None
    new_hash: str
    new_inode: int

    def encode(self) -> bytes:
        old = None if self.old_hash is None else {"config_hash": self.old_hash, "inode": self.old_inode}
        return strictjson.dumps({"old": old, "new": {"config_hash": self.new_hash, "inode": self.new_inode}})

    @classmethod
    def decode(cls, data: bytes) -> _Journal:
        value: Any = strictjson.loads(data, what="journal", code="journal_invalid")
        try:
            old, new = value["old"] or {"config_hash": None, "inode": None}, value["new"]
            return cls(old["config_hash"], old["inode"], new["config_hash"], new["inode"])
        except (KeyError, TypeError) as error:
            raise InputError("journal: malformed", code="journal_invalid") from error


class ImagePartition:
    """The mounted image partition of one application."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.image = directory / "img"
        self.temp = directory / "temp"
        self._unpack = directory / "unpack"
        self._old = directory / "img.old"
        self._metadata = directory / "metadata.json"
        self._new_metadata = directory / "metadata.json.new"
        self._journal = directory / "journal"

    def recover(self) -> Metadata | None:
        """Finish or undo an interrupted installation; what is installed afterwards.

        Comes before everything else on start. An image without metadata, or the other way round, is removed.

        Raises:
            OperationError: The file system refused.
        """
        if self._journal.exists():
            self._recover_switch()
            fsync_directory(self.directory)
            self._journal.unlink()
        aside = self.directory.glob(".*.tmp")
        for leftover in (self.temp, self._unpack, self._old, self._new_metadata, *aside):
            _remove(leftover)
        metadata = _read(self._metadata)
        if metadata is None or not _is_directory(self.image):
            _remove(self._metadata)
            _remove(self.image)
            metadata = None
        fsync_directory(self.directory)
        return metadata

    def install(self, metadata: Metadata, fill: Callable[[Path, Path], None], *, step: Step = _no_step) -> None:
        """Replace what is installed.

        Args:
            metadata: What will be installed.
            fill: `fill(temp, unpack)` fetches into the first directory and unpacks into the second.
            step: Called after each of `STEPS`.

        Raises:
            IsletError: What `fill` raised, or the file system; the image installed before is still there.
        """
        previous = self.recover()
        try:
            self._install(previous, metadata, fill, step)
        except Exception:
            self.recover()
            raise

    def _install(
        self, previous: Metadata | None, metadata: Metadata, fill: Callable[[Path, Path], None], step: Step
    ) -> None:
        for directory in (self.temp, self._unpack):
            directory.mkdir(mode=0o700)
        step("cleared")
        fill(self.temp, self._unpack)
        step("unpacked")
        _native.layers.flush_file_system(self.directory)
        step("flushed")
        write_atomic(self._new_metadata, encode(metadata))
        step("new_metadata")
        write_atomic(self._journal, self._journal_of(previous, metadata).encode())
        step("journal")
        self._switch(previous is not None)
        step("switched")
        self._new_metadata.replace(self._metadata)
        fsync_directory(self.directory)
        step("metadata")
        self._journal.unlink()
        fsync_directory(self.directory)
        step("journal_removed")
        for leftover in (self._unpack, self._old, self.temp):
            _remove(leftover)
        step("done")

    def _journal_of(self, previous: Metadata | None, metadata: Metadata) -> _Journal:
        return _Journal(
            None if previous is None else previous.config_hash.hex(),
            None if previous is None else self.image.stat().st_ino,
            metadata.config_hash.hex(),
            self._unpack.stat().st_ino,
        )

    def _switch(self, replacing: bool) -> None:
        if replacing and _native.layers.exchange(self._unpack, self.image):
            return
        if replacing:
            self.image.rename(self._old)
        self._unpack.rename(self.image)

    def _recover_switch(self) -> None:
        """Make image and metadata belong together, going forward if that is possible, else back."""
        try:
            journal = _Journal.decode(read_file(self._journal))
        except InputError:
            # It is written whole before anything is switched: noise means a damaged file system.
            self._discard()
            return
        if not (self._finish(journal) or self._undo(journal)):
            self._discard()

    def _finish(self, journal: _Journal) -> bool:
        """Complete the switch if the new image is in place."""
        if _inode(self.image) != journal.new_inode:
            return False
        if _hash(self._new_metadata) == journal.new_hash:
            self._new_metadata.replace(self._metadata)
        return _hash(self._metadata) == journal.new_hash

    def _undo(self, journal: _Journal) -> bool:
        """Put the old image back, or leave nothing where there was nothing."""
        if _hash(self._metadata) != journal.old_hash:
            return False
        if journal.old_hash is None:
            _remove(self.image)
            return True
        for place in (self.image, self._unpack, self._old):
            if _inode(place) == journal.old_inode:
                if place != self.image:
                    _remove(self.image)
                    place.rename(self.image)
                return True
        return False

    def _discard(self) -> None:
        """Nothing fits together: remove the image, so that it counts as not installed."""
        _remove(self._metadata)
        _remove(self.image)


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _inode(path: Path) -> int | None:
    return path.stat(follow_symlinks=False).st_ino if _is_directory(path) else None


def _read(path: Path) -> Metadata | None:
    """Metadata that parses; anything else counts as not there, as it does upstream."""
    try:
        return decode(read_file(path, limit=MAX_SIZE))
    except InputError:
        return None


def _hash(path: Path) -> str | None:
    metadata = _read(path)
    return None if metadata is None else metadata.config_hash.hex()


def _remove(path: Path) -> None:
    """Remove a file or a tree, never through a link."""
    if _is_directory(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
