"""Blobs of a layout directory: `blobs/ALGORITHM/HEX`, regular files reached through no symbolic link."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from islet_cli.errors import InputError, VerificationError
from islet_cli.fsutil import fsync_directory, os_error, write_atomic
from islet_cli.oci.descriptor import MAX_DOCUMENT, Descriptor
from islet_cli.oci.digest import Digest

CHUNK = 1 << 20
Progress = Callable[[int], None]
"""Called with the number of further bytes done."""


def blob_path(root: Path, digest: Digest) -> Path:
    """Where the blob with `digest` belongs."""
    return root / "blobs" / digest.algorithm / digest.hex


@contextlib.contextmanager
def open_blob(root: Path, descriptor: Descriptor) -> Iterator[int]:
    """Open a blob for reading after checking that it is a regular file of the right size.

    Raises:
        VerificationError: `blob_missing` or `size_mismatch`.
    """
    file = _open(root, descriptor.digest)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise missing(root, descriptor.digest)
        if status.st_size != descriptor.size:
            raise VerificationError(
                f"{root}: blob {descriptor.digest} has {status.st_size} bytes, not {descriptor.size}",
                code="size_mismatch",
                digest=descriptor.digest,
            )
        yield file
    finally:
        os.close(file)


def _open(root: Path, digest: Digest) -> int:
    """Open component by component, so that no symbolic link below `root` is followed."""
    directory_flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    opened: list[int] = []
    try:
        opened.append(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        for name in ("blobs", digest.algorithm):
            opened.append(os.open(name, directory_flags, dir_fd=opened[-1]))
        # O_NONBLOCK: opening a FIFO put there by somebody else must not wait.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(digest.hex, flags, dir_fd=opened[-1])
    except OSError as error:
        if isinstance(error, PermissionError):
            raise os_error(error, blob_path(root, digest)) from error
        raise missing(root, digest) from None
    finally:
        for descriptor in opened:
            os.close(descriptor)


def missing(root: Path, digest: Digest) -> VerificationError:
    """The error for a blob that is not there as a regular file."""
    return VerificationError(f"{root}: blob {digest} is missing", code="blob_missing", digest=digest)


def _mismatch(root: Path, digest: Digest) -> VerificationError:
    return VerificationError(
        f"{root}: the content of blob {digest} has another digest", code="digest_mismatch", digest=digest
    )


def chunks(file: int, size: int) -> Iterator[bytes]:
    """Read `size` bytes from `file` in pieces; fewer come when it is truncated meanwhile."""
    left = size
    while left:
        piece = os.read(file, min(CHUNK, left))
        if not piece:
            return
        left -= len(piece)
        yield piece


def check_blob(root: Path, descriptor: Descriptor, progress: Progress | None = None) -> None:
    """Hash a whole blob, streaming.

    Raises:
        VerificationError: `blob_missing`, `size_mismatch` or `digest_mismatch`.
    """
    hasher = descriptor.digest.hasher()
    with open_blob(root, descriptor) as file:
        for piece in chunks(file, descriptor.size):
            hasher.update(piece)
            if progress is not None:
                progress(len(piece))
    if hasher.hexdigest() != descriptor.digest.hex:
        raise _mismatch(root, descriptor.digest)


def read_blob(root: Path, descriptor: Descriptor, limit: int = MAX_DOCUMENT) -> bytes:
    """Read a blob of at most `limit` bytes whose size and digest are right.

    Raises:
        VerificationError: `blob_missing`, `size_mismatch` or `digest_mismatch`.
        InputError: `limit_exceeded`.
    """
    if descriptor.size > limit:
        raise InputError(
            f"{root}: blob {descriptor.digest} has {descriptor.size} bytes, more than {limit}", code="limit_exceeded"
        )
    with open_blob(root, descriptor) as file:
        data = b"".join(chunks(file, descriptor.size))
    if not descriptor.digest.matches(data):
        raise _mismatch(root, descriptor.digest)
    return data


def write_blob(root: Path, digest: Digest, data: bytes) -> None:
    """Write a blob durably under its digest; directories are made as needed."""
    path = blob_path(root, digest)
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        fsync_directory(path.parent.parent)
        fsync_directory(root)
    write_atomic(path, data, mode=0o644)
