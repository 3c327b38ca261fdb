"""The endpoints that change a store: uploads, mounts, manifests, deletion.

They exist behind the push listener only. Bodies go to disk as they come; no request holds more than
`_PIECE` bytes of a blob in memory.

Source: OCI distribution-spec 1.1 "Push", "Content Management".
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from islet_cli.errors import IsletError, UnavailableError
from islet_cli.oci.descriptor import MAX_DOCUMENT
from islet_cli.oci.digest import Digest
from islet_cli.oci.names import is_repository, is_tag
from islet_cli.registry.answers import READ, Refused, Target, not_allowed, require_digest
from islet_cli.registry.pushed import read_pushed
from islet_cli.registry.uploads import Superseded, Upload, Uploads
from islet_cli.registry.writer import Writer

if TYPE_CHECKING:
    from islet_cli.oci.descriptor import Descriptor

logger = logging.getLogger(__name__)

MAX_TAGS = 32
"""Tags that one manifest may be given in one request."""
_PIECE = 1 << 20
_MAX_DRAINED = 8 << 20
_METHODS = {"manifests": (*READ, "PUT", "DELETE"), "blobs": (*READ, "DELETE"), "tags": READ, "referrers": READ}
_CONTENT_RANGE = re.compile(r"(?:bytes )?([0-9]{1,19})-([0-9]{1,19})(?:/(?:[0-9]{1,19}|\*))?", re.ASCII)


class PushEndpoints:
    """Implements `app.Writing`.

    Args:
        writer: Changes repositories.
        uploads: What is on its way in.
    """

    def __init__(self, writer: Writer, uploads: Uploads) -> None:
        self._writer = writer
        self._uploads = uploads

    def unlisted(self, name: str, digest: Digest) -> Descriptor | None:
        """See `Writer.unlisted`."""
        return self._writer.unlisted(name, digest)

    async def answer(self, request: Request, target: Target) -> Response | None:
        """See `app.Writing.answer`."""
        allowed = _methods(target)
        if request.method not in allowed:
            raise not_allowed(allowed, "this endpoint has no such method")
        if target.kind != "uploads" and request.method in READ:
            return None
        try:
            return await self._write(request, target)
        except Refused:
            # Closing with the body unread would reset the connection, and the answer would be lost with it.
            await _drain(request)
            raise
        except Superseded:
            raise Refused(404, "BLOB_UPLOAD_UNKNOWN", "another request has taken this upload over") from None
        except UnavailableError as error:
            raise Refused(429, "TOOMANYREQUESTS", error.message, {"Retry-After": "10"}) from error
        except IsletError as error:
            logger.error("%s %s: %s (%s)", request.method, request.url.path, error.message, error.code)
            if error.code == "disk-full":
                raise Refused(507, "DENIED", "the registry has no space left") from error
            raise Refused(500, "DENIED", "the registry cannot store this; its log says why") from error

    async def _write(self, request: Request, target: Target) -> Response:
        if target.kind == "uploads":
            return await self._upload(request, target)
        if target.kind == "manifests" and request.method == "PUT":
            return await self._put_manifest(request, target)
        return await run_in_threadpool(self._delete, target)

    # Manifests and deletion

    async def _put_manifest(self, request: Request, target: Target) -> Response:
        digest = require_digest(target.reference) if ":" in target.reference else None
        tags = request.query_params.getlist("tag") if digest is not None else [target.reference]
        if not all(is_tag(tag) for tag in tags):
            raise Refused(400, "MANIFEST_INVALID", "this is not a tag")
        if len(tags) > MAX_TAGS:
            raise Refused(414, "UNSUPPORTED", f"more than {MAX_TAGS} tags at once")
        data = await _document(request)
        content_type = request.headers.get("Content-Type", "")
        pushed = await run_in_threadpool(read_pushed, data, content_type, digest)
        await run_in_threadpool(self._writer.put_manifest, target.name, pushed, tags)
        own = str(pushed.descriptor.digest)
        headers = {"Location": f"/v2/{target.name}/manifests/{own}", "Docker-Content-Digest": own}
        if pushed.subject is not None:
            headers["OCI-Subject"] = str(pushed.subject)
        if digest is not None and tags:
            headers["OCI-Tag"] = ", ".join(tags)
        return Response(status_code=201, headers=headers)

    def _delete(self, target: Target) -> Response:
        if target.kind == "blobs":
            self._writer.delete_blob(target.name, require_digest(target.reference))
        elif ":" in target.reference:
            self._writer.delete_manifest(target.name, require_digest(target.reference))
        else:
            self._writer.delete_tag(target.name, target.reference)
        return Response(status_code=202)

    # Uploads

    async def _upload(self, request: Request, target: Target) -> Response:
        if request.method == "POST":
            return await self._begin(request, target.name)
        upload = await run_in_threadpool(self._uploads.find, target.name, target.reference)
        if upload is None:
            raise Refused(404, "BLOB_UPLOAD_UNKNOWN", "there is no such upload")
        if request.method == "DELETE":
            await run_in_threadpool(self._uploads.discard, upload)
            return Response(status_code=204)
        if request.method == "PATCH":
            await self._receive(request, upload, upload.claim())
            return Response(status_code=202, headers=_progress(upload))
        if request.method == "PUT":
            return await self._finish(request, upload, request.query_params.get("digest"))
        return Response(status_code=204, headers=_progress(upload))

    async def _begin(self, request: Request, name: str) -> Response:
        query = request.query_params
        if query.get("digest-algorithm", "sha256") not in ("sha256", "sha512"):
            raise Refused(400, "DIGEST_INVALID", "the algorithms are sha256 and sha512")
        mount, whole = query.get("mount"), query.get("digest")
        if mount is not None:
            mounted = require_digest(mount)
            source = query.get("from")
            usable = source is None or is_repository(source)
            if usable and await run_in_threadpool(self._writer.mount, name, mounted, source):
                return _created(name, mounted)
        elif whole is not None:
            require_digest(whole)
        upload = await run_in_threadpool(self._uploads.create, name)
        if mount is None and whole is not None:
            try:
                return await self._finish(request, upload, whole)
            except (Refused, ClientDisconnect):
                # Nobody knows this upload's location.
                await run_in_threadpool(self._uploads.discard, upload)
                raise
        return Response(status_code=202, headers=_progress(upload))

    async def _finish(self, request: Request, upload: Upload, digest: str | None) -> Response:
        wanted = require_digest(digest or "")
        claim = upload.claim()
        await self._receive(request, upload, claim)
        own = await run_in_threadpool(upload.seal, claim, wanted.algorithm)
        if own != wanted:
            await run_in_threadpool(self._uploads.discard, upload)
            raise Refused(400, "DIGEST_INVALID", f"what came has the digest {own}")
        await run_in_threadpool(self._writer.land, upload, claim, wanted)
        await run_in_threadpool(self._uploads.discard, upload)
        return _created(upload.name, wanted)

    async def _receive(self, request: Request, upload: Upload, claim: object) -> None:
        """Append a request's body, which must be where its Content-Range says."""
        start = upload.size
        length = _expected(request, upload)
        held = bytearray()
        try:
            async for piece in request.stream():
                held += piece
                if len(held) >= _PIECE:
                    data, held = bytes(held), bytearray()
                    await run_in_threadpool(upload.append, claim, data)
        finally:
            # Also what came before a connection broke: the client goes on from there.
            if held:
                await run_in_threadpool(upload.append, claim, bytes(held))
        if length is not None and upload.size - start != length:
            await run_in_threadpool(upload.cut, claim, start)
            raise Refused(400, "SIZE_INVALID", "the body is not as long as its range", _progress(upload))


def _methods(target: Target) -> tuple[str, ...]:
    if target.kind != "uploads":
        return _METHODS[target.kind]
    return (*READ, "PATCH", "PUT", "DELETE") if target.reference else ("POST",)


def _expected(request: Request, upload: Upload) -> int | None:
    """Bytes that a Content-Range announces; None without one.

    Raises:
        Refused: 416 when they are not the next ones, 400 when the range is none or contradicts Content-Length.
    """
    header = request.headers.get("Content-Range")
    if header is None:
        return None
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None or int(match[2]) < int(match[1]):
        raise Refused(400, "BLOB_UPLOAD_INVALID", "the Content-Range cannot be read")
    first, last = int(match[1]), int(match[2])
    if first != upload.size:
        raise Refused(416, "BLOB_UPLOAD_INVALID", f"the next byte is number {upload.size}", _progress(upload))
    length = request.headers.get("Content-Length")
    if length is not None and length.isdigit() and int(length) != last - first + 1:
        raise Refused(400, "SIZE_INVALID", "the body is not as long as its range", _progress(upload))
    return last - first + 1


def _progress(upload: Upload) -> dict[str, str]:
    # "0-0" for an empty upload is the custom of registries; the other header tells it from one byte.
    return {
        "Location": f"/v2/{upload.name}/blobs/uploads/{upload.identifier}",
        "Range": f"0-{max(upload.size - 1, 0)}",
        "Docker-Upload-UUID": upload.identifier,
        "Islet-Upload-Offset": str(upload.size),
    }


def _created(name: str, digest: Digest) -> Response:
    headers = {"Location": f"/v2/{name}/blobs/{quote(digest, safe=':')}", "Docker-Content-Digest": str(digest)}
    return Response(status_code=201, headers=headers)


async def _document(request: Request) -> bytes:
    """The body of a manifest's push.

    Raises:
        Refused: 413 `SIZE_INVALID`.
    """
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_DOCUMENT:
            raise Refused(413, "SIZE_INVALID", f"a manifest has at most {MAX_DOCUMENT} bytes")
    return bytes(data)


async def _drain(request: Request) -> None:
    """Read what is left of a short body."""
    seen = 0
    try:
        async for piece in request.stream():
            seen += len(piece)
            if seen > _MAX_DRAINED:
                return
    except (ClientDisconnect, RuntimeError):
        # Gone, or read to its end already.
        return
