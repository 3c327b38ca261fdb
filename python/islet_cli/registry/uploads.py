"""Blobs on their way in: one file an upload, kept below the store until its digest is known.

    ROOT/.uploads/REPOSITORY/IDENTIFIER     '/' of the repository name written as '+'

The bytes received so far are the whole state, so that an upload goes on after a broken connection and after
a restart. One that is silent for an hour is removed.

Source: OCI distribution-spec 1.1, "Pushing blobs".
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from islet_cli.errors import OperationError, UnavailableError
from islet_cli.fsutil import os_error
from islet_cli.oci.digest import Digest

if TYPE_CHECKING:
    from hashlib import _Hash

DIRECTORY = ".uploads"
SILENCE_S = 3600.0
"""Seconds without a byte after which an upload is given up."""
MAX_OPEN = 256
"""Uploads at a time, those of an earlier run included."""

_IDENTIFIER = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_READ = 1 << 20


class Superseded(Exception):  # noqa: N818 (an outcome, not a fault)
    """Another request has taken the upload over, or it is finished."""


class Upload:
    """One upload. Whoever writes claims it first; an earlier claim then writes nothing more.

    A client whose connection broke comes back while the server may still wait for bytes of the broken one:
    claims decide between the two.

    Attributes:
        size: Bytes received, all of them in the file.
    """

    def __init__(self, name: str, identifier: str, path: Path, file: int) -> None:
        self.name = name
        self.identifier = identifier
        self.path = path
        self.size = os.fstat(file).st_size
        self.touched = time.monotonic()
        self._file = file
        self._lock = threading.Lock()
        self._claim: object | None = None
        # Bytes of an earlier run were not seen by this hash; such an upload is hashed at its end.
        self._hash: _Hash | None = hashlib.sha256() if self.size == 0 else None

    def claim(self) -> object:
        """Become the only one who may write."""
        with self._lock:
            self._claim = object()
            return self._claim

    def append(self, claim: object, data: bytes) -> None:
        """Add bytes at the end.

        Raises:
            Superseded: The claim no longer holds.
            OperationError: The disk refused; what was written counts.
        """
        with self._held(claim):
            view = memoryview(data)
            while view:
                try:
                    count = os.pwrite(self._file, view, self.size)
                except OSError as error:
                    raise os_error(error, self.path) from error
                if self._hash is not None:
                    self._hash.update(view[:count])
                self.size += count
                view = view[count:]

    def cut(self, claim: object, size: int) -> None:
        """Take back everything from byte `size` on."""
        with self._held(claim):
            if size < self.size:
                os.ftruncate(self._file, size)
                self.size, self._hash = size, None

    def seal(self, claim: object, algorithm: str) -> Digest:
        """Flush what was received and compute its digest."""
        with self._held(claim):
            try:
                os.fsync(self._file)
                hasher = self._hash if algorithm == "sha256" and self._hash is not None else self._rehash(algorithm)
            except OSError as error:
                raise os_error(error, self.path) from error
            return Digest(f"{algorithm}:{hasher.hexdigest()}")

    def move(self, claim: object, goal: Path) -> None:
        """Give the file its final name. It is visible there from now on, and the upload is over."""
        with self._held(claim):
            os.fchmod(self._file, 0o644)
            # What was pushed just now is not yet old to the garbage collection.
            os.utime(self._file)
            self.path.rename(goal)
            self._claim = None

    def file(self) -> int:
        """The open file; valid until `close`."""
        return self._file

    def close(self) -> None:
        """End every claim and let go of the file."""
        with self._lock:
            self._claim = None
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def _rehash(self, algorithm: str) -> _Hash:
        hasher = hashlib.new(algorithm)
        at = 0
        while piece := os.pread(self._file, min(_READ, self.size - at), at):
            hasher.update(piece)
            at += len(piece)
        return hasher

    @contextlib.contextmanager
    def _held(self, claim: object) -> Iterator[None]:
        with self._lock:
            if claim is not self._claim or self._file < 0:
                raise Superseded
            self.touched = time.monotonic()
            yield


class Uploads:
    """The uploads of one store; safe for several threads. Another process cannot write to one that is open here.

    Args:
        root: The store.
        limit: Uploads at a time.
        silence_s: See `SILENCE_S`.
    """

    def __init__(self, root: Path, *, limit: int = MAX_OPEN, silence_s: float = SILENCE_S) -> None:
        self._directory = root / DIRECTORY
        self._limit = limit
        self._silence_s = silence_s
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], Upload] = {}

    def create(self, name: str) -> Upload:
        """Begin an upload to the repository `name`.

        Raises:
            UnavailableError: `too-many-uploads`.
            OperationError: The disk refused.
        """
        self.expire()
        with self._lock:
            if sum(1 for _ in _files(self._directory)) >= self._limit:
                raise UnavailableError(f"{self._limit} uploads are open already", code="too-many-uploads")
            directory = self._directory / name.replace("/", "+")
            identifier = str(uuid.uuid4())
            path = directory / identifier
            try:
                self._directory.mkdir(mode=0o700, exist_ok=True)
                directory.mkdir(mode=0o700, exist_ok=True)
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise os_error(error, directory) from error
            fcntl.flock(file, fcntl.LOCK_EX)
            upload = Upload(name, identifier, path, file)
            self._open[name, identifier] = upload
            return upload

    def find(self, name: str, identifier: str) -> Upload | None:
        """The upload `identifier` of the repository `name`, also one of an earlier run.

        Raises:
            UnavailableError: `upload-busy`: another process has it open.
        """
        if _IDENTIFIER.fullmatch(identifier) is None:
            return None
        with self._lock:
            known = self._open.get((name, identifier))
            if known is not None:
                return known
            path = self._directory / name.replace("/", "+") / identifier
            try:
                file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                return None
            if not _try_lock(file):
                os.close(file)
                raise UnavailableError(f"upload {identifier}: another process writes it", code="upload-busy")
            upload = Upload(name, identifier, path, file)
            self._open[name, identifier] = upload
            return upload

    def discard(self, upload: Upload) -> None:
        """Remove an upload that was cancelled, refused or moved to its place."""
        with self._lock:
            self._open.pop((upload.name, upload.identifier), None)
            upload.path.unlink(missing_ok=True)
            upload.close()
            with contextlib.suppress(OSError):
                upload.path.parent.rmdir()

    def expire(self) -> int:
        """Remove what was silent for too long; return how many."""
        now = time.monotonic()
        with self._lock:
            silent = [upload for upload in self._open.values() if now - upload.touched > self._silence_s]
        for upload in silent:
            self.discard(upload)
        return len(silent) + sweep(self._directory.parent, self._silence_s)

    def close(self) -> None:
        """Let go of every file; the uploads stay on disk for the next run."""
        with self._lock:
            for upload in self._open.values():
                upload.close()
            self._open.clear()


def sweep(root: Path, silence_s: float = SILENCE_S) -> int:
    """Remove silent uploads that no process has open; return how many.

    Raises:
        OperationError: The disk refused.
    """
    removed = 0
    for path in _files(root / DIRECTORY):
        try:
            if time.time() - path.lstat().st_mtime <= silence_s:
                continue
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise OperationError(f"{path}: {error.strerror}", code="io") from error
        try:
            if _try_lock(file):
                path.unlink(missing_ok=True)
                removed += 1
        finally:
            os.close(file)
        with contextlib.suppress(OSError):
            path.parent.rmdir()
    return removed


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _files(directory: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        for repository in sorted(directory.iterdir()):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                yield from sorted(repository.iterdir())
