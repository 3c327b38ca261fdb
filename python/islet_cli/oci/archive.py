"""OCI archives: a tar file with an image layout at its top, plain or compressed with gzip or zstd.

Source: OCI image-spec 1.1, image-layout.md. Such files come from `docker image save`,
`skopeo copy … oci-archive:` and `podman save --format oci-archive`.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from islet_cli.errors import InputError
from islet_cli.fsutil import fsync_directory, os_error
from islet_cli.oci import blobs
from islet_cli.oci.layers import gunzip, unzstd
from islet_cli.oci.tarstream import DIRECTORY, Member, TarStream
from islet_cli.progress import Report, silent

MAX_ENTRIES = 1_000_000
MAX_ARCHIVE_BYTES = 16 << 30
_BLOB = re.compile(rb"blobs/(?:sha256/[0-9a-f]{64}|sha512/[0-9a-f]{128})")
_DIRECTORIES = frozenset((b"blobs", b"blobs/sha256", b"blobs/sha512"))
_FILES = frozenset((b"oci-layout", b"index.json"))


def is_archive(path: Path) -> bool:
    """Whether `path` is a regular file, as an archive is and a layout is not."""
    return path.is_file()


def default_name(path: Path) -> str:
    """The application name that an archive suggests: its file name without the last suffix."""
    return path.stem


def extract(archive: Path, destination: Path, *, report: Report = silent) -> None:
    """Take `oci-layout`, `index.json` and the blobs out of an archive.

    What is written is not yet trusted: load it before use. Other members are passed over, but a name
    that leaves the archive's top refuses the whole archive.

    Args:
        archive: The file.
        destination: An existing, empty, private directory.
        report: Progress in bytes of the archive file.

    Raises:
        InputError: `path_escape`, `name_invalid`, `layout_invalid`, `tar_malformed` and its like,
            `decompress_error`, `limit_exceeded`.
    """
    try:
        _extract(archive, destination, report)
    except InputError as error:
        if not error.code.startswith("tar_"):
            raise
        # The tar reader knows its stream only, not the file that it comes from.
        problem = error.message.removeprefix("archive: ")
        hint = "expected an OCI layout directory, or its tar archive (plain, gzip or zstd)"
        raise InputError(f"{archive}: not a usable archive: {problem}", code=error.code, hint=hint) from error


def _extract(archive: Path, destination: Path, report: Report) -> None:
    entries = total = 0
    written: set[bytes] = set()
    with _pieces(archive, report) as pieces:
        stream = TarStream(pieces)
        for member in stream:
            entries += 1
            total += member.size
            if entries > MAX_ENTRIES or total > MAX_ARCHIVE_BYTES:
                raise InputError(f"{archive}: too many entries or too much data", code="limit_exceeded")
            name = _clean(archive, member.name)
            if not _wanted(archive, name, member):
                continue
            if name in written:
                raise InputError(f"{archive}: holds {os.fsdecode(name)!r} twice", code="layout_invalid")
            written.add(name)
            _write(destination / os.fsdecode(name), stream)


def _clean(archive: Path, name: bytes) -> bytes:
    """The member's name without leading slashes, empty and `.` components."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b"\0" in name:
        raise InputError(f"{archive}: a member's name holds a NUL", code="name_invalid")
    if b".." in parts:
        raise InputError(f"{archive}: member {os.fsdecode(name)[:200]!r} leaves the archive", code="path_escape")
    return b"/".join(parts)


def _wanted(archive: Path, name: bytes, member: Member) -> bool:
    """Whether the member's data belong to the layout; directories are made as files need them."""
    if name in _FILES or _BLOB.fullmatch(name):
        if not member.is_regular:
            raise _not_plain(archive, name)
        return True
    if name in _DIRECTORIES and member.kind != DIRECTORY:
        raise _not_plain(archive, name)
    return False


def _not_plain(archive: Path, name: bytes) -> InputError:
    return InputError(
        f"{archive}: {os.fsdecode(name)} is neither a regular file nor a directory as it should be",
        code="layout_invalid",
    )


def _write(path: Path, stream: TarStream) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            while piece := stream.read():
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise os_error(error, path) from error


@contextmanager
def _pieces(archive: Path, report: Report) -> Iterator[Iterator[bytes]]:
    """Open an archive and decompress it according to its first bytes."""
    try:
        # Unbuffered, because the pieces are read from the descriptor itself.
        file = archive.open("rb", buffering=0)
    except OSError as error:
        raise os_error(error, archive) from error
    with file:
        size = os.fstat(file.fileno()).st_size
        magic = file.read(4)
        file.seek(0)
        raw = _reported(file.fileno(), size, report)
        if magic[:2] == b"\x1f\x8b":
            yield gunzip(raw, what=str(archive))
        elif magic == b"\x28\xb5\x2f\xfd":
            yield unzstd(raw, what=str(archive))
        else:
            yield raw


def _reported(file: int, size: int, report: Report) -> Iterator[bytes]:
    done = 0
    for piece in blobs.chunks(file, size):
        done += len(piece)
        report(done, size)
        yield piece


@contextmanager
def staged(destination: Path, *, replace: bool = False) -> Iterator[Path]:
    """A private directory beside `destination` that takes its place when the block ends without error.

    Args:
        destination: What is to appear; its parent must exist.
        replace: Put an existing layout directory away; otherwise it is refused.

    Raises:
        InputError: `exists`, or `destination` is something else than an image layout.
    """
    require_free(destination, replace=replace)
    token = secrets.token_hex(6)
    stage = destination.with_name(f".{destination.name}.{token}.new")
    old = destination.with_name(f".{destination.name}.{token}.old")
    try:
        stage.mkdir(mode=0o755, parents=False)
    except OSError as error:
        raise os_error(error, destination.parent) from error
    try:
        yield stage
        fsync_directory(stage)
        if destination.exists():
            destination.rename(old)
        stage.rename(destination)
        fsync_directory(destination.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def require_free(destination: Path, *, replace: bool = False) -> None:
    """Require that `destination` does not exist, or with `replace` that it is an image layout.

    Raises:
        InputError: `exists`.
    """
    if not os.path.lexists(destination):
        return
    is_layout = destination.is_dir() and not destination.is_symlink() and (destination / "oci-layout").is_file()
    if replace and is_layout:
        return
    hint = "choose another name" if not is_layout else "choose another name or pass --force"
    raise InputError(f"{destination}: already exists", code="exists", hint=hint)
