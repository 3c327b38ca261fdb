"""The registry behind the listener: pull endpoints of the OCI distribution API as an ASGI application.

It is reached over a Unix socket only. Blobs are answered with the name of a file (`X-Islet-Sendfile`), which
the listener sends; their bytes never pass through here.

Source: OCI distribution-spec 1.1, "API"; RFC 9110.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from islet_cli.errors import InputError, IsletError, VerificationError
from islet_cli.oci.descriptor import MEDIA_INDEX, Descriptor
from islet_cli.oci.digest import Digest, parse_digest
from islet_cli.oci.names import is_repository
from islet_cli.registry.catalogue import Application, Catalogue
from islet_cli.registry.ranges import UnsatisfiableError, none_match, parse_range, range_applies

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

logger = logging.getLogger(__name__)

_ROUTE = re.compile(
    r"/v2/(?P<name>.+)/(?:(?P<kind>manifests|blobs|referrers)/(?P<reference>[^/]+)|(?P<tags>tags/list)"
    r"|(?P<upload>blobs/uploads/[^/]*))"
)
_READ = ("GET", "HEAD")
_API_VERSION = {"Docker-Distribution-API-Version": "registry/2.0"}


class Refused(Exception):  # noqa: N818 (an answer, not a fault)
    """An error answer: status, a code of the distribution specification, a sentence."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}

    def response(self) -> Response:
        """The error body that the specification defines."""
        errors = [{"code": self.code, "message": self.message, "detail": None}]
        body = json.dumps({"errors": errors}).encode()
        return Response(body, self.status, headers=self.headers, media_type="application/json")


@dataclass(frozen=True)
class _Target:
    """A request path taken apart."""

    name: str
    kind: str
    reference: str


class RegistryApp:
    """The ASGI application over one catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http"
        request = Request(scope, receive)
        try:
            response = await run_in_threadpool(self._answer, request)
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

    def _answer(self, request: Request) -> Response:
        # The raw path, because a decoded %2F would be taken for a separator.
        raw = request.scope.get("raw_path") or request.scope["path"].encode()
        path = raw.decode("ascii", "replace")
        if path == "/v2":
            return Response(status_code=301, headers={"Location": "/v2/"})
        if path == "/v2/":
            _require_read(request)
            return Response(b"{}", media_type="application/json")
        target = _parse(path, writing=request.method not in _READ)
        _require_read(request)
        if target.kind == "referrers":
            return self._referrers(target, request)
        application = self._catalogue.find(target.name)
        if application is None:
            if target.kind != "tags" and ":" in target.reference:
                _digest(target.reference)
            raise Refused(404, "NAME_UNKNOWN", f"there is no repository {target.name}")
        if target.kind == "tags":
            return _tags(application, request)
        if target.kind == "manifests":
            return _manifest(application, target.reference, request)
        return self._blob(application, target.reference, request)

    def _referrers(self, target: _Target, request: Request) -> Response:
        digest = _digest(target.reference)
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
        digest = _digest(reference)
        descriptor = application.layout.blobs.get(digest)
        if descriptor is None or descriptor.is_index or descriptor.is_manifest:
            raise Refused(404, "BLOB_UNKNOWN", f"{application.name} has no blob {digest}")
        headers = _content_headers(descriptor)
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


def _parse(path: str, *, writing: bool) -> _Target:
    """Take a path apart.

    Raises:
        Refused: It is none of ours (404), or the name is malformed (404 when reading, 400 when writing).
    """
    match = _ROUTE.fullmatch(path)
    if match is None:
        # As if the name were unknown: no other code of the specification fits a path that is no endpoint.
        raise Refused(404, "NAME_UNKNOWN", "there is no such endpoint")
    name = match["name"]
    if not is_repository(name):
        raise Refused(400 if writing else 404, "NAME_INVALID", "this is not the name of a repository")
    if match["upload"] is not None or match["reference"] == "uploads":
        return _Target(name, "uploads", "")
    if match["tags"] is not None:
        return _Target(name, "tags", "")
    return _Target(name, match["kind"], unquote(match["reference"], errors="replace"))


def _require_read(request: Request) -> None:
    if request.method not in _READ:
        raise Refused(405, "UNSUPPORTED", "this registry serves pulls only", {"Allow": ", ".join(_READ)})


def _digest(text: str) -> Digest:
    try:
        return parse_digest(text)
    except InputError:
        raise Refused(400, "DIGEST_INVALID", "this is not a digest") from None


def _content_headers(descriptor: Descriptor) -> dict[str, str]:
    return {
        "Content-Type": descriptor.media_type if _is_token(descriptor.media_type) else "application/octet-stream",
        "Docker-Content-Digest": str(descriptor.digest),
        "ETag": f'"{descriptor.digest}"',
    }


def _is_token(media_type: str) -> bool:
    """Whether a media type out of a layout can stand in a header."""
    return media_type.isascii() and media_type.isprintable() and bool(media_type)


def _not_modified(headers: dict[str, str]) -> Response:
    return Response(status_code=304, headers={key: headers[key] for key in ("ETag", "Docker-Content-Digest")})


def _manifest(application: Application, reference: str, request: Request) -> Response:
    layout = application.layout
    if ":" in reference:
        descriptor = layout.blobs.get(_digest(reference))
        if descriptor is not None and not (descriptor.is_index or descriptor.is_manifest):
            descriptor = None
    else:
        descriptor = layout.tags.get(reference)
    if descriptor is None:
        raise Refused(404, "MANIFEST_UNKNOWN", f"{application.name} has no such manifest")
    headers = _content_headers(descriptor)
    if not none_match(request.headers.get("If-None-Match"), headers["ETag"]):
        return _not_modified(headers)
    try:
        return Response(layout.read(descriptor), headers=headers)
    except VerificationError as error:
        logger.error("application %s: %s", application.name, error.message)
        raise Refused(404, "MANIFEST_UNKNOWN", "this content is not available") from error


def _tags(application: Application, request: Request) -> Response:
    count = request.query_params.get("n")
    if count is not None and not (count.isascii() and count.isdigit() and len(count) < 10):
        raise Refused(400, "UNSUPPORTED", "n is a number of tags")
    last = request.query_params.get("last")
    after = [tag for tag in application.tags if last is None or tag > last]
    tags = after if count is None else after[: int(count)]
    headers = {}
    if tags and len(tags) < len(after):
        query = f"n={count}&last={quote(tags[-1], safe='')}"
        headers["Link"] = f'</v2/{application.name}/tags/list?{query}>; rel="next"'
    body = json.dumps({"name": application.name, "tags": tags}).encode()
    return Response(body, headers=headers, media_type="application/json")


async def _send_head(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Send status and headers of the GET answer, and no body."""

    async def without_body(message: Any) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    await response(scope, receive, without_body)
