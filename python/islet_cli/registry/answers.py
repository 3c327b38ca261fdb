"""What reading and writing endpoints share: requests taken apart, refusals, headers.

Source: OCI distribution-spec 1.1, "API" and "Error codes".
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from urllib.parse import unquote

from starlette.responses import Response

from islet_cli.errors import InputError
from islet_cli.oci.descriptor import Descriptor
from islet_cli.oci.digest import Digest, parse_digest
from islet_cli.oci.names import is_repository

READ = ("GET", "HEAD")

_ROUTE = re.compile(
    r"/v2/(?P<name>.+)/(?:(?P<kind>manifests|blobs|referrers)/(?P<reference>[^/]+)|(?P<tags>tags/list)"
    r"|blobs/uploads/(?P<upload>[^/]*))"
)


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
class Target:
    """A request path taken apart.

    Attributes:
        kind: `manifests`, `blobs`, `referrers`, `tags` or `uploads`.
        reference: A tag, a digest, or the identifier of an upload (empty for a new one), percent-decoded.
    """

    name: str
    kind: str
    reference: str


def parse_target(path: str, *, writing: bool) -> Target:
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
        return Target(name, "uploads", match["upload"] or "")
    if match["tags"] is not None:
        return Target(name, "tags", "")
    return Target(name, match["kind"], unquote(match["reference"], errors="replace"))


def require_digest(text: str) -> Digest:
    """Read a digest.

    Raises:
        Refused: 400 `DIGEST_INVALID`.
    """
    try:
        return parse_digest(text)
    except InputError:
        raise Refused(400, "DIGEST_INVALID", "this is not a digest") from None


def not_allowed(methods: tuple[str, ...], message: str) -> Refused:
    """The answer to a method that an endpoint does not have."""
    return Refused(405, "UNSUPPORTED", message, {"Allow": ", ".join(methods)})


def content_headers(descriptor: Descriptor) -> dict[str, str]:
    """Type, digest and entity tag of a manifest or blob."""
    media_type = descriptor.media_type
    # A media type out of a layout can be any string, a header cannot.
    sendable = media_type.isascii() and media_type.isprintable() and bool(media_type)
    return {
        "Content-Type": media_type if sendable else "application/octet-stream",
        "Docker-Content-Digest": str(descriptor.digest),
        "ETag": f'"{descriptor.digest}"',
    }
