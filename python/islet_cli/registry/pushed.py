"""Manifests that clients push: what is accepted, and what they name.

Source: OCI distribution-spec 1.1 "Pushing manifests"; OCI image-spec 1.1; CVE-2021-41190 for documents that
could be read both as an index and as a manifest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from islet_cli.errors import InputError
from islet_cli.oci.descriptor import INDEX_TYPES, MANIFEST_TYPES, Descriptor, parse_descriptor
from islet_cli.oci.digest import Digest, digest_of
from islet_cli.oci.documents import parse_index, parse_manifest, parse_object
from islet_cli.registry.answers import Refused

_WHAT = "the manifest"
_MAX_MEDIA_TYPE = 255


@dataclass(frozen=True)
class Pushed:
    """A manifest, index or other document that is fit to be stored.

    Attributes:
        descriptor: How `index.json` names it, without a tag.
        needed: What must be in the repository before.
        subject: Digest of the manifest that it says something about.
    """

    data: bytes
    descriptor: Descriptor
    needed: tuple[Descriptor, ...]
    subject: Digest | None


def read_pushed(data: bytes, content_type: str, digest: Digest | None) -> Pushed:
    """Check a pushed document.

    Args:
        data: Its bytes.
        content_type: The request's header; parameters do not count.
        digest: What the client calls it, when it does not call it by a tag.

    Raises:
        Refused: 400 `MANIFEST_INVALID`, `DIGEST_INVALID`.
    """
    media_type = content_type.partition(";")[0].strip()
    if not media_type or len(media_type) > _MAX_MEDIA_TYPE or not (media_type.isascii() and media_type.isprintable()):
        raise Refused(400, "MANIFEST_INVALID", "the request names no media type of the manifest")
    own = digest_of(data, digest.algorithm if digest is not None else "sha256")
    if digest is not None and own != digest:
        raise Refused(400, "DIGEST_INVALID", f"what came has the digest {own}")
    try:
        needed, subject, artifact_type = _read(data, media_type)
    except InputError as error:
        raise Refused(400, "MANIFEST_INVALID", error.message) from error
    raw: dict[str, Any] = {"mediaType": media_type, "digest": str(own), "size": len(data)}
    if artifact_type:
        raw["artifactType"] = artifact_type
    return Pushed(data, Descriptor(media_type, own, len(data), raw=raw), needed, subject)


def _read(data: bytes, media_type: str) -> tuple[tuple[Descriptor, ...], Digest | None, str]:
    """What a document names, its subject, its own artifact type."""
    if media_type in MANIFEST_TYPES:
        manifest = parse_manifest(data, what=_WHAT, media_type=media_type)
        subject = manifest.subject.digest if manifest.subject is not None else None
        return (manifest.config, *manifest.layers), subject, _artifact_type(manifest.raw)
    if media_type in INDEX_TYPES:
        index = parse_index(data, what=_WHAT, media_type=media_type, nested=True)
        raw = index.raw.get("subject")
        parsed = None if raw is None else parse_descriptor(raw, what=f"{_WHAT}: subject")
        return index.manifests, parsed.digest if parsed is not None else None, _artifact_type(index.raw)
    value = parse_object(data, what=_WHAT, code="manifest_invalid")
    if value.keys() & {"config", "layers", "manifests", "fsLayers"}:
        raise InputError(f"{_WHAT}: {media_type} is not a type that may name blobs", code="manifest_invalid")
    if value.get("mediaType", media_type) != media_type:
        raise InputError(f"{_WHAT}: calls itself {str(value['mediaType'])[:200]!r}", code="manifest_invalid")
    return (), None, ""


def _artifact_type(document: dict[str, Any]) -> str:
    value = document.get("artifactType")
    return value if isinstance(value, str) else ""
