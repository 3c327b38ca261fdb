"""The exact JSON form in which manifests and indexes are written.

Two spaces per level, known members in a fixed order, annotation keys sorted by code point, unknown
members kept after the known ones in document order, no final newline: the same document always has
the same digest, here and in upstream's tool.

Source: OCI image-spec 1.1, manifest.md and image-index.md, for the members; the order and the white space are those
of Islet's `ir-sign`.
"""

from __future__ import annotations

import json
from typing import Any

_DESCRIPTOR = ("mediaType", "digest", "size", "urls", "annotations", "platform", "artifactType", "data")
_MANIFEST = ("schemaVersion", "mediaType", "artifactType", "config", "layers", "subject", "annotations")
_INDEX = ("schemaVersion", "mediaType", "artifactType", "manifests", "subject", "annotations")
_PLATFORM = ("architecture", "os", "os.version", "os.features", "variant", "features")


def dumps(document: dict[str, Any]) -> bytes:
    """Write a manifest or, when it has `manifests`, an index."""
    ordered = _index(document) if "manifests" in document else _manifest(document)
    return json.dumps(ordered, indent=2, ensure_ascii=False, allow_nan=False).encode("utf-8")


def _ordered(value: dict[str, Any], order: tuple[str, ...]) -> dict[str, Any]:
    """Known members first; those that are null are left out, as optional ones that are absent."""
    known = {key: value[key] for key in order if value.get(key) is not None}
    return known | {key: item for key, item in value.items() if key not in order}


def _annotations(value: dict[str, Any]) -> dict[str, Any]:
    if isinstance(value.get("annotations"), dict):
        value["annotations"] = dict(sorted(value["annotations"].items()))
    return value


def _descriptor(value: dict[str, Any]) -> dict[str, Any]:
    ordered = _annotations(_ordered(value, _DESCRIPTOR))
    if isinstance(ordered.get("platform"), dict):
        ordered["platform"] = _ordered(ordered["platform"], _PLATFORM)
    return ordered


def _common(ordered: dict[str, Any]) -> dict[str, Any]:
    if isinstance(ordered.get("subject"), dict):
        ordered["subject"] = _descriptor(ordered["subject"])
    return _annotations(ordered)


def _manifest(value: dict[str, Any]) -> dict[str, Any]:
    ordered = _common(_ordered(value, _MANIFEST))
    ordered["config"] = _descriptor(ordered["config"])
    ordered["layers"] = [_descriptor(layer) for layer in ordered["layers"]]
    return ordered


def _index(value: dict[str, Any]) -> dict[str, Any]:
    ordered = _common(_ordered(value, _INDEX))
    ordered["manifests"] = [_descriptor(item) for item in ordered.get("manifests", ())]
    return ordered
