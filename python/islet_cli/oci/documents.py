"""Strict reading of indexes, manifests and image configurations.

Source: OCI image-spec 1.1, image-index.md, manifest.md, config.md; CVE-2021-41190 for documents that
could be read both as an index and as a manifest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from islet_cli import strictjson
from islet_cli.errors import InputError
from islet_cli.oci.descriptor import MEDIA_INDEX, Descriptor, parse_descriptor, string_map
from islet_cli.oci.digest import Digest, parse_digest

MAX_DEPTH = 64
"""Containers inside one another."""


@dataclass(frozen=True)
class Index:
    """An image index."""

    manifests: tuple[Descriptor, ...]
    raw: dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """An image manifest."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None
    annotations: dict[str, str]
    raw: dict[str, Any]


@dataclass(frozen=True)
class Config:
    """An image configuration, as far as islet reads it.

    Attributes:
        labels: `config.Labels`.
        diff_ids: Digests of the uncompressed layers, bottom first.
        created: `created` as written, or None.
    """

    labels: dict[str, str]
    diff_ids: tuple[Digest, ...]
    created: str | None
    architecture: str
    os: str
    raw: dict[str, Any]


def parse_object(data: bytes, *, what: str, code: str) -> dict[str, Any]:
    """Parse strict JSON that is an object and consists of valid Unicode.

    Raises:
        InputError: With `code`.
    """
    value = strictjson.loads(data, what=what, code=code)
    if not isinstance(value, dict):
        raise InputError(f"{what}: not a JSON object", code=code)
    if _too_deep(value):
        raise InputError(f"{what}: nested more than {MAX_DEPTH} levels deep", code=code)
    # An escaped lone surrogate is valid JSON but no text: it could not be written back or shown.
    if b"\\u" in data:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(f"{what}: holds a lone surrogate", code=code) from None
    return value


def _too_deep(value: Any) -> bool:
    """Whether containers stand in one another deeper than any real document, and than encoders can go."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return False
    return True


def _require_schema(value: dict[str, Any], what: str, code: str) -> None:
    version = value.get("schemaVersion")
    if type(version) is not int or version != 2:
        raise InputError(f"{what}: schemaVersion is not 2", code=code)


def _require_media_type(value: dict[str, Any], expected: str, what: str, invalid: str, mismatch: str) -> None:
    """Require that the document's own mediaType, if it has one, is `expected`."""
    media_type = value.get("mediaType")
    if media_type is None:
        return
    if not isinstance(media_type, str):
        raise InputError(f"{what}: mediaType is not a string", code=invalid)
    if media_type != expected:
        raise InputError(f"{what}: calls itself {media_type!r}, not {expected!r}", code=mismatch)


def parse_index(data: bytes, *, what: str, media_type: str = MEDIA_INDEX, nested: bool = False) -> Index:
    """Read an image index.

    Args:
        data: The document.
        what: Names it in errors.
        media_type: What the descriptor that named it says.
        nested: Whether it is a blob rather than `index.json`; then another own media type is
            `media_type_mismatch`.

    Raises:
        InputError: `index_invalid`, `media_type_mismatch`, or an error of a descriptor.
    """
    code = "index_invalid"
    value = parse_object(data, what=what, code=code)
    _require_media_type(value, media_type, what, code, "media_type_mismatch" if nested else code)
    _require_schema(value, what, code)
    manifests = value.get("manifests", ())
    if manifests is None:
        manifests = []
    if not isinstance(manifests, list):
        raise InputError(f"{what}: manifests is not a list", code=code)
    if "config" in value or "layers" in value:
        raise InputError(f"{what}: could also be read as a manifest", code=code)
    string_map(value.get("annotations"), what=f"{what}: annotations", code=code)
    parsed = tuple(parse_descriptor(item, what=f"{what}: manifests[{at}]") for at, item in enumerate(manifests))
    return Index(parsed, value)


def parse_manifest(data: bytes, *, what: str, media_type: str, mismatch: str = "media_type_mismatch") -> Manifest:
    """Read an image manifest.

    Args:
        data: The document.
        what: Names it in errors.
        media_type: What the descriptor that named it says.
        mismatch: Error code when the document's own media type is another.

    Raises:
        InputError: `manifest_invalid`, `mismatch`, or an error of a descriptor.
    """
    code = "manifest_invalid"
    value = parse_object(data, what=what, code=code)
    _require_media_type(value, media_type, what, code, mismatch)
    _require_schema(value, what, code)
    layers = value.get("layers")
    if "config" not in value or not isinstance(layers, list):
        raise InputError(f"{what}: config or layers are missing", code=code)
    if "manifests" in value:
        raise InputError(f"{what}: could also be read as an index", code=code)
    annotations = string_map(value.get("annotations"), what=f"{what}: annotations", code=code)
    config = parse_descriptor(value["config"], what=f"{what}: config")
    parsed = tuple(parse_descriptor(item, what=f"{what}: layers[{at}]") for at, item in enumerate(layers))
    subject = value.get("subject")
    parsed_subject = None if subject is None else parse_descriptor(subject, what=f"{what}: subject")
    return Manifest(config, parsed, parsed_subject, annotations, value)


def parse_config(data: bytes, *, what: str = "image configuration") -> Config:
    """Read an image configuration.

    Raises:
        InputError: `config_invalid`, or `digest_invalid` for a diff_id.
    """
    code = "config_invalid"
    value = parse_object(data, what=what, code=code)
    execution = value.get("config")
    if execution is not None and not isinstance(execution, dict):
        raise InputError(f"{what}: config is not an object", code=code)
    labels = string_map((execution or {}).get("Labels"), what=f"{what}: Labels", code=code)
    rootfs = value.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    # Go writes an empty slice that was never set as null.
    if diff_ids is None and isinstance(rootfs, dict):
        diff_ids = []
    if not isinstance(diff_ids, list):
        raise InputError(f"{what}: rootfs.diff_ids is missing", code=code)
    texts: dict[str, str | None] = {}
    for name in ("created", "architecture", "os"):
        text = value.get(name)
        if text is not None and not isinstance(text, str):
            raise InputError(f"{what}: {name} is not a string", code=code)
        texts[name] = text
    parsed = tuple(parse_digest(item, what=f"{what}: diff_ids[{at}]") for at, item in enumerate(diff_ids))
    return Config(labels, parsed, texts["created"], texts["architecture"] or "", texts["os"] or "", value)
