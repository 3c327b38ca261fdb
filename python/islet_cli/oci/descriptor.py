"""Descriptors and media types.

Source: OCI image-spec 1.1, descriptor.md and media-types.md.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Any

from islet_cli.errors import InputError
from islet_cli.oci.digest import Digest, digest_of, parse_digest

__all__ = ["Descriptor", "Digest", "digest_of", "parse_descriptor", "parse_digest"]

MEDIA_INDEX = "application/vnd.oci.image.index.v1+json"
MEDIA_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MEDIA_CONFIG = "application/vnd.oci.image.config.v1+json"
MEDIA_EMPTY = "application/vnd.oci.empty.v1+json"
MEDIA_LAYER = "application/vnd.oci.image.layer.v1.tar"
MEDIA_LAYER_GZIP = MEDIA_LAYER + "+gzip"
MEDIA_LAYER_ZSTD = MEDIA_LAYER + "+zstd"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

INDEX_TYPES = frozenset((MEDIA_INDEX, DOCKER_INDEX))
MANIFEST_TYPES = frozenset((MEDIA_MANIFEST, DOCKER_MANIFEST))
LAYER_TYPES = frozenset((MEDIA_LAYER, MEDIA_LAYER_GZIP, MEDIA_LAYER_ZSTD))
_NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"
# Layers that a registry need not hold.
ABSENT_ALLOWED = frozenset(
    (
        _NONDISTRIBUTABLE,
        _NONDISTRIBUTABLE + "+gzip",
        _NONDISTRIBUTABLE + "+zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    )
)

ANNOTATION_REF_NAME = "org.opencontainers.image.ref.name"
LABEL_APPLICATION = "io.islet.application"
LABEL_SECURITY_VERSION = "io.islet.security-version"
LABEL_VERSION = "org.opencontainers.image.version"

MAX_DOCUMENT = 4 << 20
"""Largest index, manifest or configuration that is read into memory, in bytes."""
MAX_SIZE = (1 << 63) - 1


@dataclass(frozen=True)
class Descriptor:
    """What names a blob: its type, digest and size.

    Attributes:
        raw: The JSON object it was read from, unknown members included.
    """

    media_type: str
    digest: Digest
    size: int
    annotations: dict[str, str] = field(default_factory=dict)
    platform: dict[str, Any] | None = None
    raw: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_index(self) -> bool:
        return self.media_type in INDEX_TYPES

    @property
    def is_manifest(self) -> bool:
        return self.media_type in MANIFEST_TYPES

    def to_json(self) -> dict[str, Any]:
        """The JSON object: the one it was read from, else its own members."""
        if self.raw:
            return self.raw
        out: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.annotations:
            out["annotations"] = dict(self.annotations)
        if self.platform is not None:
            out["platform"] = self.platform
        return out


def string_map(value: object, *, what: str, code: str) -> dict[str, str]:
    """Read an optional JSON object whose values are strings; absent and null are empty.

    Raises:
        InputError: With `code`.
    """
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise InputError(f"{what}: not an object of strings", code=code)
    return value


def parse_descriptor(value: object, *, what: str = "descriptor") -> Descriptor:
    """Read a descriptor strictly.

    Raises:
        InputError: `descriptor_invalid`, `digest_invalid`, or `descriptor_data_mismatch` when the embedded
            data are not the bytes that digest and size name.
    """
    if not isinstance(value, dict):
        raise _invalid(what, "not an object")
    media_type, digest, size = value.get("mediaType"), value.get("digest"), value.get("size")
    if not isinstance(media_type, str) or not isinstance(digest, str):
        raise _invalid(what, "mediaType and digest must be strings")
    # bool is a subclass of int, hence the exact comparison.
    if type(size) is not int or not 0 <= size <= MAX_SIZE:
        raise _invalid(what, "size must be an integer from 0 to 2^63-1")
    annotations = string_map(value.get("annotations"), what=f"{what}: annotations", code="descriptor_invalid")
    platform = value.get("platform")
    if platform is not None and not isinstance(platform, dict):
        raise _invalid(what, "platform must be an object")
    parsed = Descriptor(media_type, parse_digest(digest, what=what), size, annotations, platform, value)
    if "data" in value:
        _check_data(value["data"], parsed, what)
    return parsed


def _invalid(what: str, problem: str) -> InputError:
    return InputError(f"{what}: {problem}", code="descriptor_invalid")


def _check_data(data: object, descriptor: Descriptor, what: str) -> None:
    try:
        content = base64.b64decode(data, validate=True) if isinstance(data, str) else None
    except (binascii.Error, ValueError):
        content = None
    if content is None or len(content) != descriptor.size or not descriptor.digest.matches(content):
        raise InputError(f"{what}: its embedded data are not {descriptor.digest}", code="descriptor_data_mismatch")
