"""The registry behind a listener: the OCI distribution API as an ASGI application.

The pull listener's instance serves what a layout's `index.json` reaches, and nothing can be written through
it. The push listener's instance has a `Writing` beside it: it takes writes, and also serves blobs that were
uploaded but that no manifest names yet. Blobs are answered with the name of a file (`X-Islet-Sendfile`),
which the listener sends; their bytes never pass through here.

Source: OCI distribution-spec 1.1, "API"; RFC 9110.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from islet_cli.errors import IsletError, VerificationError
from islet_cli.oci.descriptor import MEDIA_INDEX, Descriptor
from islet_cli.oci.digest import Digest
from islet_cli.registry.answers import (
    READ,
    Refused,
    Target,
    content_headers,
    not_allowed,
    parse_target,
    require_digest,
)
from islet_cli.registry.catalogue import Application, Catalogue
from islet_cli.registry.ranges import UnsatisfiableError, none_match, parse_range, range_applies

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

logger = logging.getLogger(__name__)

_API_VERSION = {"Docker-Distribution-API-Version": "registry/2.0"}


class Writing(Protocol):
    """What the push listener adds to the reading endpoints."""

    async def answer(self, request: Request, target: Target) -> Response | None:
        """Answer a writing request, or one about an upload; None when it reads content."""

    def unlisted(self, name: str, digest: Digest) -> Descriptor | None:
        """A blob that was uploaded to `name` and that no manifest names yet."""


class Guard(Protocol):
    """Decides who may send requests at all."""

    def require(self, request: Request) -> None:
        """Return, or raise `Refused`."""


class RegistryApp:
    """The ASGI application over one catalogue.

    Args:
        catalogue: What there is.
        writing: The push side; None on the pull listener.
        guard: Asked before anything else; None where everybody who reached the listener may ask.
    """

    def __init__(self, catalogue: Catalogue, *, writing: Writing | None = None, guard: Guard | None = None) -> None:
        self._catalogue = catalogue
        self._writing = writing
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http"
        request = Request(scope, receive)
        try:
            response = await self._respond(request)
        except ClientDisconnect:
            return
        except Refused as error:
            response = error.response()
        except IsletError as error:
            # What is on disk is not what was loaded: say so in the log, not to the client.
            logger.error("%s %s: %s (%s)", request.method, request.url.path, error.message, error.code)
            response = Refused(404, "BLOB_UNKNOWN", "this content is not available").response()
        for key, value in _API_VERSION.items():
            response.headers[key] = value
        await _send_head(response, scope, receive, send) if request.method == "HEAD" else await response(
            scope, receive, send
        )

    async def _respond(self, request: Request) -> Response:
        if self._guard is not None:
            await run_in_threadpool(self._guard.require, request)
        # The raw path, because a decoded %2F would be taken for a separator.
        raw = request.scope.get("raw_path") or request.scope["path"].encode()
        path = raw.decode("ascii", "replace")
        if path == "/v2":
            return Response(status_code=301, headers={"Location": "/v2/"})
        if path == "/v2/":
            self._require_read(request)
            return Response(b"{}", media_type="application/json")
        if path == "/v2/_catalog" and self._writing is not None:
            self._require_read(request)
            return await run_in_threadpool(_repositories, self._catalogue, request)
        target = parse_target(path, writing=request.method not in READ)
        if self._writing is not None:
            written = await self._writing.answer(request, target)
            if written is not None:
                return written
        self._require_read(request)
        return await run_in_threadpool(self._read, request, target)

    def _require_read(self, request: Request) -> None:
        if request.method not in READ:
            serves = "pulls only" if self._writing is None else "no such method here"
            raise not_allowed(READ, f"this registry serves {serves}")

    def _read(self, request: Request, target: Target) -> Response:
        if target.kind == "uploads":
            raise Refused(404, "BLOB_UPLOAD_UNKNOWN", "uploads are not taken here")
        if target.kind == "referrers":
            return self._referrers(target, request)
        application = self._catalogue.find(target.name)
        if application is None:
            if target.kind != "tags" and ":" in target.reference:
                require_digest(target.reference)
            raise Refused(404, "NAME_UNKNOWN", f"there is no repository {target.name}")
        if target.kind == "tags":
            return _tags(application, request)
        if target.kind == "manifests":
            return _manifest(application, target.reference, request)
        return self._blob(application, target.reference, request)

    def _referrers(self, target: Target, request: Request) -> Response:
        digest = require_digest(target.reference)
        application = self._catalogue.find(target.name)
        entries = application.referrers.get(digest, []) if application is not None else []
        headers = {}
        wanted = request.query_params.get("artifactType")
        if wanted is not None:
            entries = [entry for entry in entries if entry.get("artifactType") == wanted]
            headers["OCI-Filters-Applied"] = "artifactType"
        body = json.dumps({"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": entries}).encode()
        return Response(body, headers=headers, media_type=MEDIA_INDEX)

    def _blob(self, application: Application, reference: str, request: Request) -> Response:
        digest = require_digest(reference)
        descriptor = application.blob(digest)
        if descriptor is None and self._writing is not None and digest not in application.layout.blobs:
            descriptor = self._writing.unlisted(application.name, digest)
        if descriptor is None:
            raise Refused(404, "BLOB_UNKNOWN", f"{application.name} has no blob {digest}")
        headers = content_headers(descriptor)
        headers["Accept-Ranges"] = "bytes"
        etag = headers["ETag"]
        if not none_match(request.headers.get("If-None-Match"), etag):
            return _not_modified(headers)
        size = descriptor.size
        wanted = request.headers.get("Range") if range_applies(request.headers.get("If-Range"), etag) else None
        try:
            part = parse_range(wanted, size)
        except UnsatisfiableError:
            raise Refused(
                416, "SIZE_INVALID", f"the blob has {size} bytes", {"Content-Range": f"bytes */{size}"}
            ) from None
        path = self._catalogue.open_blob(application, descriptor)
        offset, length = (part.offset, part.length) if part is not None else (0, size)
        if part is not None:
            headers["Content-Range"] = f"bytes {offset}-{offset + length - 1}/{size}"
        status = 200 if part is None else 206
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers | {"Content-Length": str(length)})
        headers |= {
            "X-Islet-Sendfile": str(path),
            "X-Islet-Sendfile-Offset": str(offset),
            "X-Islet-Sendfile-Length": str(length),
        }
        return Response(status_code=status, headers=headers)


def _not_modified(headers: dict[str, str]) -> Response:
    return Response(status_code=304, headers={key: headers[key] for key in ("ETag", "Docker-Content-Digest")})


def _manifest(application: Application, reference: str, request: Request) -> Response:
    layout = application.layout
    descriptor = application.manifest(require_digest(reference)) if ":" in reference else layout.tags.get(reference)
    if descriptor is None:
        raise Refused(404, "MANIFEST_UNKNOWN", f"{application.name} has no such manifest")
    headers = content_headers(descriptor)
    if not none_match(request.headers.get("If-None-Match"), headers["ETag"]):
        return _not_modified(headers)
    try:
        return Response(layout.read(descriptor), headers=headers)
    except VerificationError as error:
        logger.error("application %s: %s", application.name, error.message)
        raise Refused(404, "MANIFEST_UNKNOWN", "this content is not available") from error


def _tags(application: Application, request: Request) -> Response:
    tags, headers = _page(application.tags, request, f"/v2/{application.name}/tags/list")
    body = json.dumps({"name": application.name, "tags": tags}).encode()
    return Response(body, headers=headers, media_type="application/json")


def _repositories(catalogue: Catalogue, request: Request) -> Response:
    names, headers = _page(catalogue.names(), request, "/v2/_catalog")
    return Response(json.dumps({"repositories": names}).encode(), headers=headers, media_type="application/json")


def _page(names: list[str], request: Request, path: str) -> tuple[list[str], dict[str, str]]:
    """The part of a sorted list that `n` and `last` ask for, and the Link to the next one."""
    count = request.query_params.get("n")
    if count is not None and not (count.isascii() and count.isdigit() and len(count) < 10):
        raise Refused(400, "UNSUPPORTED", "n is a number of entries")
    last = request.query_params.get("last")
    after = [name for name in names if last is None or name > last]
    page = after if count is None else after[: int(count)]
    headers = {}
    if page and len(page) < len(after):
        query = f"n={count}&last={quote(page[-1], safe='')}"
        headers["Link"] = f'<{path}?{query}>; rel="next"'
    return page, headers


async def _send_head(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Send status and headers of the GET answer, and no body."""

    async def without_body(message: Any) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    await response(scope, receive, without_body)
