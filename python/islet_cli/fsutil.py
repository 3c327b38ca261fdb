"""Durable, atomic files and private directories.

Every state file is written aside, flushed, renamed into place and its directory flushed, so that a
kill at any instant leaves the old content or the new, never a mixture.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from islet_cli.errors import InputError, OperationError, UnavailableError


def fsync_directory(directory: Path) -> None:
    """Flush a directory, so that renames and creations in it survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, overwrite: bool = True) -> None:
    """Write `data` to `path` atomically and durably.

    Args:
        path: Destination; its directory must exist.
        data: The complete content.
        mode: Permission bits of the new file, whatever the umask.
        overwrite: When false, an existing file is left alone and `InputError` (`exists`) is raised.

    Raises:
        OperationError: The file system refused (`disk-full`, `io`).
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            os.fchmod(descriptor, mode)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if overwrite:
            temporary.replace(path)
        else:
            os.link(temporary, path)
            temporary.unlink()
        fsync_directory(path.parent)
    except FileExistsError:
        _remove(temporary)
        raise InputError(f"{path}: already exists", code="exists", hint="choose another name or pass --force") from None
    except OSError as error:
        _remove(temporary)
        raise os_error(error, path) from error
    except BaseException:
        _remove(temporary)
        raise


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def os_error(error: OSError, path: Path | str) -> OperationError | InputError | UnavailableError:
    """Translate an `OSError` about `path` into the error that a user should see."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OperationError(f"{path}: {reason}", code="disk-full", hint="free some space and try again")
    if error.errno in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR):
        return InputError(f"{path}: {reason}", code="no-such-file")
    if error.errno in (errno.EACCES, errno.EPERM):
        return InputError(f"{path}: {reason}", code="permission", hint=f"check the owner and mode of {path}")
    return OperationError(f"{path}: {reason}", code="io")


def read_file(path: Path, *, limit: int = 64 << 20) -> bytes:
    """Read a whole regular file of at most `limit` bytes.

    Raises:
        InputError: Missing, unreadable, or larger than `limit`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise os_error(error, path) from error
    if len(data) > limit:
        raise InputError(f"{path}: larger than {limit} bytes", code="too-large")
    return data


def make_private_directory(path: Path) -> Path:
    """Create `path` with mode 0700, or require that it is ours and closed to others.

    Raises:
        InputError: It belongs to another user, or others may write to it (`not-private`).
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise os_error(error, path) from error
    require_private(path)
    return path


def require_private(path: Path) -> None:
    """Require that `path` is owned by this user and not writable by group or others."""
    try:
        status = path.stat(follow_symlinks=False)
    except OSError as error:
        raise os_error(error, path) from error
    if status.st_uid != os.geteuid():
        raise InputError(
            f"{path}: belongs to user {status.st_uid}, not to you",
            code="not-private",
            hint="use a directory of your own",
        )
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise InputError(f"{path}: writable by other users", code="not-private", hint=f"run: chmod go-w {path}")


@contextlib.contextmanager
def exclusive_lock(path: Path, *, blocking: bool = True, busy_message: str | None = None) -> Iterator[int]:
    """Hold an exclusive advisory lock on `path` (created 0600) for the block.

    The holder's pid is written into the file so that a refusal can name it.

    Raises:
        UnavailableError: `blocking` is false and another process holds it (`locked`).
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "another process"
            raise UnavailableError(
                f"{busy_message or path}: in use by process {holder}", code="locked", holder=holder
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)
