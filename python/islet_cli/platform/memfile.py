"""Sealed copies of launch files: what was measured is what boots.

A file on disk can change between measurement and boot. A memory file that is sealed against every change
cannot, and its descriptor names the very bytes.

Source: memfd_create(2), fcntl(2) "File sealing".
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from pathlib import Path

from islet_cli.errors import IsletError
from islet_cli.fsutil import os_error
from islet_cli.platform.errors import PlatformError

MAX_FILE = 2 << 30
_CHUNK = 1 << 20
# The numbers of <linux/fcntl.h>: Python names them from 3.11 on only.
_F_ADD_SEALS = 1033
_SEALS = 0x0001 | 0x0002 | 0x0004 | 0x0008  # seal, shrink, grow, write


class SealedFile:
    """An immutable file in memory. Close it, or use it as a context manager."""

    def __init__(self, descriptor: int, sha256: str, size: int) -> None:
        self.descriptor = descriptor
        self.sha256 = sha256
        self.size = size

    @property
    def path(self) -> Path:
        """A path that this process can open."""
        return Path(f"/proc/self/fd/{self.descriptor}")

    def close(self) -> None:
        """Release the descriptor; the bytes live on while someone else holds one."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> SealedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def copy_sealed(source: Path, expected_sha256: str | None) -> SealedFile:
    """Copy a regular file into a sealed memory file.

    Args:
        source: Absolute path, at most 2 GiB.
        expected_sha256: Lower-case hex, or None.

    Raises:
        PlatformError: `file`: missing, unreadable, not a regular file, too large, or of another digest.
    """
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _file_error(os_error(error, source)) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PlatformError(f"{source}: not a regular file", code="file")
        sealed = _copy(descriptor, source)
    except OSError as error:
        raise _file_error(os_error(error, source)) from error
    finally:
        os.close(descriptor)
    if expected_sha256 is not None and sealed.sha256 != expected_sha256:
        sealed.close()
        raise PlatformError(
            f"{source}: its SHA-256 is {sealed.sha256}, the launch plan says {expected_sha256}",
            code="file",
            hint="the file changed since the plan was made; make the plan again, or restore the file",
        )
    return sealed


def _file_error(error: IsletError) -> PlatformError:
    return PlatformError(error.message, code="file", hint=error.hint)


def _copy(descriptor: int, source: Path) -> SealedFile:
    digest = hashlib.sha256()
    size = 0
    memory = os.memfd_create(source.name[:200] or "islet", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        while chunk := os.read(descriptor, _CHUNK):
            size += len(chunk)
            if size > MAX_FILE:
                raise PlatformError(f"{source}: larger than {MAX_FILE} bytes", code="file")
            digest.update(chunk)
            view = memoryview(chunk)
            while view:
                view = view[os.write(memory, view) :]
        fcntl.fcntl(memory, _F_ADD_SEALS, _SEALS)
        # A descriptor opened for reading, at offset zero, is what others get.
        reader = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(memory)
    return SealedFile(reader, digest.hexdigest(), size)
