"""Uploading one blob: whole when it is small, in chunks when it is large, going on where a connection broke.

Source: OCI distribution-spec 1.1 "Pushing a blob in chunks"; RFC 9110 for ranges.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path

from islet_cli.errors import InputError, OperationError
from islet_cli.fsutil import os_error
from islet_cli.oci.descriptor import Descriptor
from islet_cli.registry.client.http import RetryableError, Transport

CHUNK_BYTES = 64 << 20
"""Default size of a chunk."""
_PIECE = 256 << 10
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,19})")


def upload(
    transport: Transport,
    location: str,
    begin: Callable[[], str],
    path: Path,
    blob: Descriptor,
    *,
    chunk_bytes: int,
    progress: Callable[[int], None],
) -> None:
    """Send a file to an upload that was begun, and close it with the blob's digest.

    Args:
        transport: The registry.
        location: Path of the upload.
        begin: Begins another one, for when the registry has forgotten this one.
        path: The blob's file, already checked.
        blob: Its digest and size.
        chunk_bytes: Larger blobs are sent in pieces of this size.
        progress: Called with the bytes that the registry has.

    Raises:
        IsletError: The registry refuses, or cannot be reached.
    """
    if chunk_bytes < 1:
        raise InputError("a chunk has at least one byte", code="usage")
    _Upload(transport, location, begin, path, blob, chunk_bytes, progress).run()


@dataclass
class _Upload:
    transport: Transport
    location: str
    begin: Callable[[], str]
    path: Path
    blob: Descriptor
    chunk_bytes: int
    progress: Callable[[int], None]
    offset: int = 0
    lost: bool = False
    resumed: bool = False

    def run(self) -> None:
        self.transport.attempt(self._once, progress=lambda: self.offset)

    def _once(self) -> None:
        """One try: go on where the registry stands, to the end."""
        if self.lost:
            self._find_out()
        self.lost = True
        while self.blob.size - self.offset > self.chunk_bytes:
            self._chunk(self.chunk_bytes)
        self._close()

    def _find_out(self) -> None:
        """Ask the registry how far the upload came; begin anew when it does not know it any more."""
        with self.transport.send("GET", self.location, {}, accept=frozenset((204, 404))) as response:
            response.read()
            if response.status == 404:
                self.location, self.offset, self.resumed = self.begin(), 0, False
                return
            self._follow(response)
            self.offset, self.resumed = self._reached(response), True

    def _reached(self, response: HTTPResponse) -> int:
        """The offset that a status names; "0-0" can mean no byte as well as one, unless the registry says more."""
        told = response.headers.get("Islet-Upload-Offset", "")
        if told.isascii() and told.isdigit():
            reached = int(told)
        else:
            match = _RANGE.fullmatch(response.headers.get("Range", ""))
            reached = int(match[1]) + 1 if match is not None and int(match[1]) > 0 else 0
        if reached > self.blob.size:
            raise OperationError(
                f"{self.transport.address}: has more of {self.blob.digest} than it was sent", code="http_status"
            )
        return reached

    def _follow(self, response: HTTPResponse) -> None:
        location = response.headers.get("Location")
        if location:
            self.location = self.transport.resolve(self.location, location)

    def _chunk(self, length: int) -> None:
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(length),
            "Content-Range": f"{self.offset}-{self.offset + length - 1}",
        }
        self._send("PATCH", self.location, headers, length, frozenset((202, 204, 416)))

    def _close(self) -> None:
        length = self.blob.size - self.offset
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(length)}
        # Bytes of the broken request may still arrive after the registry said where it stands: a range tells it.
        if (self.offset or self.resumed) and length:
            headers["Content-Range"] = f"{self.offset}-{self.blob.size - 1}"
        target = f"{self.location}{'&' if '?' in self.location else '?'}digest={self.blob.digest}"
        self._send("PUT", target, headers, length, frozenset((201, 204, 404, 416)))

    def _send(self, method: str, target: str, headers: dict[str, str], length: int, accept: frozenset[int]) -> None:
        start = self.offset
        with self.transport.send(
            method, target, headers, body=lambda: self._pieces(start, length), accept=accept
        ) as response:
            response.read()
            if response.status in (404, 416):
                # The registry stands elsewhere, or has closed the upload before its answer was lost.
                raise RetryableError(f"it answers {response.status} to a chunk", response.status, wait_s=0.0)
            if method == "PATCH":
                self._follow(response)
            self.offset = start + length
        self.progress(self.offset)

    def _pieces(self, start: int, length: int) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                at = start
                while at < start + length:
                    piece = file.read(min(_PIECE, start + length - at))
                    if not piece:
                        raise InputError(f"{self.path}: became shorter while it was sent", code="size_mismatch")
                    at += len(piece)
                    yield piece
                    self.progress(at)
        except OSError as error:
            raise os_error(error, self.path) from error
