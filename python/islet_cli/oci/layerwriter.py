"""Writing a layer: a reproducible tar stream, compressed and hashed on its way to the disk.

pax format, entries sorted by path, times clamped, no user or group names. The default compression is
zstd at level 3 with a content checksum: unpacking it in a realm costs a fraction of gzip's time; gzip
(level 6, no name, no time) is there for tools that know nothing else.

Source: OCI image-spec 1.1, layer.md.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol, cast

from islet_cli.errors import InternalError
from islet_cli.fsutil import fsync_directory, os_error
from islet_cli.oci.descriptor import MEDIA_LAYER_GZIP, MEDIA_LAYER_ZSTD, Descriptor
from islet_cli.oci.digest import Digest
from islet_cli.oci.tree import Entry, Tree, footprint, require_unchanged
from islet_cli.progress import Report, silent

Compression = Literal["zstd", "gzip"]
ZSTD_LEVEL = 3
GZIP_LEVEL = 6
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Layer:
    """A layer that was written.

    Attributes:
        unpacked_bytes: What it takes on a file system.
    """

    descriptor: Descriptor
    diff_id: Digest
    unpacked_bytes: int


class _Encoder(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def _encoder(compression: Compression) -> _Encoder:
    if compression == "gzip":
        # wbits 31 writes a gzip header with no name and a zero time.
        return zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
    import zstandard

    return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True, write_content_size=False).compressobj()


class _Sink:
    """Takes the tar stream: hashes it, compresses it, hashes and writes what comes out."""

    def __init__(self, file: IO[bytes], compression: Compression) -> None:
        self._file = file
        self._encoder = _encoder(compression)
        self._plain = hashlib.sha256()
        self._packed = hashlib.sha256()
        self._position = 0
        self.size = 0

    def tell(self) -> int:
        return self._position

    def write(self, data: bytes) -> int:
        self._plain.update(data)
        self._position += len(data)
        self._emit(self._encoder.compress(data))
        return len(data)

    def _emit(self, data: bytes) -> None:
        self._packed.update(data)
        self._file.write(data)
        self.size += len(data)

    def finish(self) -> tuple[Digest, Digest]:
        """Flush; return diff_id and digest."""
        self._emit(self._encoder.flush())
        self._file.flush()
        os.fsync(self._file.fileno())
        return Digest(f"sha256:{self._plain.hexdigest()}"), Digest(f"sha256:{self._packed.hexdigest()}")


def write_layer(
    tree: Tree, stage: Path, *, epoch: int, compression: Compression = "zstd", report: Report = silent
) -> Layer:
    """Write `tree` as a layer blob into the layout that is being made in `stage`.

    Args:
        tree: What goes in.
        stage: The layout directory.
        epoch: Later modification times are set to this one, in seconds since 1970.
        compression: `zstd` or `gzip`.
        report: Progress in bytes of file content.

    Raises:
        InputError: A file vanished, cannot be read, or changed meanwhile.
        OperationError: The disk is full, for instance.
    """
    directory = stage / "blobs" / "sha256"
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / ".layer.tmp"
    try:
        with temporary.open("wb") as file:
            sink = _Sink(file, compression)
            unpacked = _write_tar(tree, sink, epoch, report)
            diff_id, digest = sink.finish()
        temporary.rename(directory / digest.hex)
        fsync_directory(directory)
    except OSError as error:
        raise os_error(error, error.filename or temporary) from error
    media_type = MEDIA_LAYER_ZSTD if compression == "zstd" else MEDIA_LAYER_GZIP
    return Layer(Descriptor(media_type, digest, sink.size), diff_id, unpacked)


def _write_tar(tree: Tree, sink: _Sink, epoch: int, report: Report) -> int:
    """Write all entries; return the footprint of the tree."""
    total, done, unpacked = tree.content_bytes, 0, 0
    first_names: dict[tuple[int, int], str] = {}
    with tarfile.TarFile(
        fileobj=cast("IO[bytes]", sink), mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", copybufsize=_CHUNK
    ) as archive:
        for entry in tree.ordered():
            info = _header(entry, epoch)
            first = first_names.get(entry.identity) if entry.identity is not None else None
            if first is not None:
                info.type, info.linkname = tarfile.LNKTYPE, first
                archive.addfile(info)
                unpacked += footprint(0)
            elif stat.S_ISREG(entry.mode):
                _add_content(archive, info, entry, _Part(report, done, total))
                if entry.identity is not None:
                    first_names[entry.identity] = entry.path
                unpacked += footprint(entry.size)
            else:
                archive.addfile(info)
                unpacked += footprint(0, directory=stat.S_ISDIR(entry.mode))
            done += entry.size
    report(total, total)
    return unpacked


def _header(entry: Entry, epoch: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(entry.path)
    info.mode = stat.S_IMODE(entry.mode)
    info.uid, info.gid = entry.uid, entry.gid
    info.mtime = max(0, min(entry.mtime, epoch))
    if stat.S_ISDIR(entry.mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(entry.mode):
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.target, 0o777
    elif stat.S_ISFIFO(entry.mode):
        info.type = tarfile.FIFOTYPE
    if entry.capability is not None:
        value = entry.capability.decode("utf-8", "surrogateescape")
        info.pax_headers = {"SCHILY.xattr.security.capability": value}
    return info


def _add_content(archive: tarfile.TarFile, info: tarfile.TarInfo, entry: Entry, progress: _Part) -> None:
    if entry.host is None:
        raise InternalError(f"{entry.path}: a file without content")
    # Never through a link, and never waiting on a FIFO that took the file's place.
    file = os.open(entry.host, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with _Content(file, progress) as content:
        status = os.fstat(file)
        require_unchanged(entry, status.st_size if stat.S_ISREG(status.st_mode) else -1)
        info.size = entry.size
        archive.addfile(info, content)


@dataclass(frozen=True)
class _Part:
    """Reports the progress within one file as that of the whole."""

    report: Report
    before: int
    total: int

    def __call__(self, count: int) -> None:
        self.report(self.before + count, self.total)


class _Content(io.FileIO):
    """A file that tells how far it was read."""

    def __init__(self, file: int, progress: _Part) -> None:
        super().__init__(file)
        self._progress = progress
        self._done = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size) or b""
        self._done += len(data)
        self._progress(self._done)
        return data
