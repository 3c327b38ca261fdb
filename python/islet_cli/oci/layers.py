"""Streams of layers: decompressing with bounds, hashing what comes out.

Unpacking happens elsewhere (`oci.unpack`); this is for looking at layers on the host.

Source: OCI image-spec 1.1, layer.md; RFC 1952; RFC 8878.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from islet_cli.errors import InputError
from islet_cli.oci import blobs
from islet_cli.oci.descriptor import MEDIA_LAYER, MEDIA_LAYER_GZIP, MEDIA_LAYER_ZSTD, Descriptor
from islet_cli.oci.digest import Digest

MAX_LAYER_BYTES = 8 << 30
"""Largest decompressed layer, in bytes."""
MAX_WINDOW = 128 << 20
_CHUNK = 1 << 20
_GZIP = 31  # a window of 2^15 bytes, with gzip's header and checksum


def decompress_error(what: str, problem: str) -> InputError:
    """The error for a stream that is not what its media type says."""
    return InputError(f"{what}: {problem}", code="decompress_error")


def gunzip(pieces: Iterator[bytes], *, what: str) -> Iterator[bytes]:
    """Decompress every member of a gzip stream; nothing else may follow.

    Raises:
        InputError: `decompress_error`.
    """
    complete = False
    decoder = zlib.decompressobj(wbits=_GZIP)
    try:
        for piece in pieces:
            while piece:
                if decoder.eof:
                    decoder = zlib.decompressobj(wbits=_GZIP)
                yield from _drain(decoder, piece)
                complete, piece = decoder.eof, decoder.unused_data
    except zlib.error as error:
        raise decompress_error(what, f"damaged gzip data: {error}") from error
    if not complete:
        raise decompress_error(what, "the gzip data end early")


def _drain(decoder: zlib._Decompress, piece: bytes) -> Iterator[bytes]:
    """Yield all that `piece` decompresses to within one member, at most a chunk at a time."""
    while True:
        out = decoder.decompress(piece, _CHUNK)
        if out:
            yield out
        piece = decoder.unconsumed_tail
        # A full chunk may leave output inside the decoder although the input is used up.
        if decoder.eof or (not piece and len(out) < _CHUNK):
            return


def unzstd(pieces: Iterator[bytes], *, what: str) -> Iterator[bytes]:
    """Decompress every frame of a zstd stream.

    Raises:
        InputError: `decompress_error`.
    """
    import zstandard

    source = cast("IO[bytes]", _Source(pieces))  # it reads and does nothing else
    decoder = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    try:
        with decoder.stream_reader(source, read_across_frames=True, read_size=_CHUNK) as reader:
            while out := reader.read(_CHUNK):
                yield out
    except zstandard.ZstdError as error:
        raise decompress_error(what, f"damaged zstd data: {error}") from error


class _Source:
    """The little of a file object that zstandard asks for."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        if not self._rest:
            self._rest = next(self._pieces, b"")
        out, self._rest = (self._rest, b"") if size < 0 else (self._rest[:size], self._rest[size:])
        return out


def decompressed(root: Path, descriptor: Descriptor, *, limit: int = MAX_LAYER_BYTES) -> Iterator[bytes]:
    """Yield the uncompressed bytes of a layer in pieces of about 1 MiB.

    A zstd stream cut short ends quietly; whoever compares the diff_id or reads the tar notices.

    Raises:
        InputError: `media_type_unsupported`, `decompress_error`, `limit_exceeded`.
        VerificationError: `blob_missing`, `size_mismatch`.
    """
    what = f"{root}: layer {descriptor.digest}"
    with blobs.open_blob(root, descriptor) as file:
        pieces = blobs.chunks(file, descriptor.size)
        if descriptor.media_type == MEDIA_LAYER_GZIP:
            pieces = gunzip(pieces, what=what)
        elif descriptor.media_type == MEDIA_LAYER_ZSTD:
            pieces = unzstd(pieces, what=what)
        elif descriptor.media_type != MEDIA_LAYER:
            raise InputError(
                f"{what}: media type {descriptor.media_type!r} cannot be unpacked", code="media_type_unsupported"
            )
        total = 0
        for piece in pieces:
            total += len(piece)
            if total > limit:
                raise InputError(f"{what}: more than {limit} bytes when decompressed", code="limit_exceeded")
            yield piece


def diff_id(root: Path, descriptor: Descriptor, algorithm: str = "sha256") -> Digest:
    """The digest of a layer's uncompressed bytes."""
    hasher = hashlib.new(algorithm)
    for piece in decompressed(root, descriptor):
        hasher.update(piece)
    return Digest(f"{algorithm}:{hasher.hexdigest()}")
