"""Downloading a blob to a file: streaming, bounded, resumable.

Source: RFC 9110 13.1.5 (If-Range), 14 (ranges).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from islet_cli.errors import OperationError, VerificationError
from islet_cli.fsutil import os_error
from islet_cli.oci.descriptor import Descriptor
from islet_cli.progress import Report
from islet_cli.registry.client.http import RetryableError, Transport

if TYPE_CHECKING:
    from hashlib import _Hash
    from http.client import HTTPResponse

CHUNK = 64 << 10
_ACCEPTED = frozenset((200, 206, 416))
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")


def download(transport: Transport, path: str, descriptor: Descriptor, directory: Path, report: Report) -> Path:
    """Fetch `path` into `directory/HEX`; see `RegistryClient.fetch_blob`."""
    final = directory / descriptor.digest.hex
    if _is_complete(final, descriptor):
        report(descriptor.size, descriptor.size)
        return final
    part = directory / f"{descriptor.digest.hex}.part"
    try:
        with _opened(part) as file:
            _Download(transport, path, descriptor, file, report).run()
        part.replace(final)
    except VerificationError:
        part.unlink(missing_ok=True)
        raise
    except OSError as error:
        raise os_error(error, part) from error
    return final


@contextlib.contextmanager
def _opened(part: Path) -> Iterator[BinaryIO]:
    """Open the partial file for reading and writing, never through a symbolic link."""
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        yield file


def _is_complete(path: Path, descriptor: Descriptor) -> bool:
    """Whether an earlier call has left the whole blob."""
    try:
        if path.is_symlink() or path.stat().st_size != descriptor.size:
            return False
        with path.open("rb") as file:
            return _hash(file, descriptor).hexdigest() == descriptor.digest.hex
    except FileNotFoundError:
        return False
    except OSError as error:
        raise os_error(error, path) from error


def _hash(file: BinaryIO, descriptor: Descriptor) -> _Hash:
    hasher = descriptor.digest.hasher()
    while piece := file.read(1 << 20):
        hasher.update(piece)
    return hasher


@dataclass
class _Download:
    """One transfer over as many requests as it takes."""

    transport: Transport
    path: str
    descriptor: Descriptor
    file: BinaryIO
    report: Report
    have: int = 0
    inherited: bool = False
    etag: str = ""
    restarted: bool = False
    hasher: _Hash = field(init=False)

    def run(self) -> None:
        self._inherit()
        self._transfer()
        if self.inherited and not self._matches():
            # What an earlier run left was wrong; the registry has not had its chance yet.
            self._restart()
            self._transfer()
        if not self._matches():
            raise VerificationError(
                f"{self.transport.address}{self.path}: what came has another digest", code="digest_mismatch"
            )

    def _matches(self) -> bool:
        return self.hasher.hexdigest() == self.descriptor.digest.hex

    def _inherit(self) -> None:
        """Take over what an earlier run left, unless it cannot be a beginning of this blob."""
        self.have = os.fstat(self.file.fileno()).st_size
        if self.have > self.descriptor.size:
            self._restart()
        else:
            self.file.seek(0)
            self.hasher = _hash(self.file, self.descriptor)
        self.inherited = self.have > 0

    def _restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.have, self.inherited = 0, False
        self.hasher = self.descriptor.digest.hasher()

    def _transfer(self) -> None:
        if self.have < self.descriptor.size or self.descriptor.size == 0:
            self.transport.attempt(self._once, progress=lambda: self.have)
        self.report(self.have, self.descriptor.size)

    def _once(self) -> None:
        headers = {}
        if self.have:
            headers["Range"] = f"bytes={self.have}-"
            if self.etag:
                headers["If-Range"] = self.etag
        with self.transport.get(self.path, headers, accept=_ACCEPTED) as response:
            self._place(response)
            etag = response.headers.get("ETag", "")
            # A weak validator must not be used with ranges (RFC 9110 13.1.5).
            self.etag = etag if etag.startswith('"') and etag.isascii() and etag.isprintable() else ""
            self._receive(response)
        if self.have < self.descriptor.size:
            if response.length == 0:
                self._wrong_size(self.have)
            raise RetryableError("the transfer broke off")

    def _place(self, response: HTTPResponse) -> None:
        """Make the file's position that of the first byte of the response."""
        if response.status == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != self.have or match[3] != str(self.descriptor.size):
                raise OperationError(
                    f"{self.transport.address}{self.path}: the answer's Content-Range is not the one asked for",
                    code="http_status",
                    status=206,
                )
        elif response.status == 416:
            if self.restarted or not self.have:
                raise OperationError(
                    f"{self.transport.address}{self.path}: the registry answers 416", code="http_status", status=416
                )
            self.restarted = True
            self._restart()
            raise RetryableError("the range was refused", wait_s=0.0)
        elif self.have:
            self._restart()
        if response.length is not None and self.have + response.length > self.descriptor.size:
            self._wrong_size(self.have + response.length)

    def _receive(self, response: HTTPResponse) -> None:
        while piece := response.read1(CHUNK):
            if self.have + len(piece) > self.descriptor.size:
                self._wrong_size(self.have + len(piece))
            self.hasher.update(piece)
            view = memoryview(piece)
            try:
                while view:
                    view = view[self.file.write(view) :]
            except OSError as error:
                # Not the network's fault: another try would not help.
                raise os_error(error, self.path) from error
            self.have += len(piece)
            self.report(self.have, self.descriptor.size)

    def _wrong_size(self, seen: int) -> None:
        raise VerificationError(
            f"{self.transport.address}{self.path}: {seen} bytes or more came, not {self.descriptor.size}"
            if seen > self.descriptor.size
            else f"{self.transport.address}{self.path}: only {seen} bytes of {self.descriptor.size} are there",
            code="size_mismatch",
        )
