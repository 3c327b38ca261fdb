"""Finding the image that a tag or digest names, without loading the whole layout."""

from __future__ import annotations

from pathlib import Path

from islet_cli.errors import InputError
from islet_cli.oci import blobs
from islet_cli.oci.descriptor import ANNOTATION_REF_NAME, MEDIA_MANIFEST, Descriptor
from islet_cli.oci.digest import parse_digest
from islet_cli.oci.documents import Index, Manifest, parse_manifest
from islet_cli.oci.layout import descriptors, unknown_reference


def find(path: Path, index: Index, reference: str) -> Descriptor:
    """Find the image manifest that a tag of `index.json` or a digest names.

    Raises:
        InputError: `reference_unknown`, `reference_ambiguous`, `not_a_manifest`.
    """
    matches = [item for item in index.manifests if item.annotations.get(ANNOTATION_REF_NAME) == reference]
    if not matches:
        matches = _by_digest(path, index, reference)[:1]
    if len({item.digest for item in matches}) > 1:
        raise InputError(
            f"{path}: {reference!r} names {len(matches)} different images",
            code="reference_ambiguous",
            hint="name one by its digest",
        )
    if not matches:
        tags = [tag for item in index.manifests if (tag := item.annotations.get(ANNOTATION_REF_NAME)) is not None]
        raise unknown_reference(path, reference, tags)
    if matches[0].media_type != MEDIA_MANIFEST:
        raise InputError(
            f"{path}: {reference!r} is not an OCI image manifest but {matches[0].media_type!r}",
            code="not_a_manifest",
            hint="name the manifest of one platform by its digest",
        )
    return matches[0]


def _by_digest(path: Path, index: Index, reference: str) -> list[Descriptor]:
    try:
        digest = parse_digest(reference)
    except InputError:
        return []
    return [item for item in descriptors(path, index) if item.digest == digest]


def default_reference(path: Path, index: Index) -> str:
    """The one image of a layout that has only one: its tag, else its digest.

    Raises:
        InputError: There is none, or several (`reference_ambiguous`).
    """
    names = {item.annotations.get(ANNOTATION_REF_NAME) or str(item.digest) for item in index.manifests}
    # A signature artifact beside the image is not a second image.
    if len(names) > 1:
        names = {
            item.annotations.get(ANNOTATION_REF_NAME) or str(item.digest)
            for item in index.manifests
            if "artifactType" not in item.raw
        }
    if len(names) == 1:
        return names.pop()
    raise InputError(
        f"{path}: holds {'several images' if names else 'no image'}",
        code="reference_ambiguous" if names else "reference_unknown",
        hint="choose one with --tag: " + ", ".join(sorted(names)) if names else None,
    )


def read_manifest(path: Path, descriptor: Descriptor) -> Manifest:
    """Read an image manifest, digest checked."""
    data = blobs.read_blob(path, descriptor)
    what = f"{path}: {descriptor.digest}"
    return parse_manifest(data, what=what, media_type=descriptor.media_type, mismatch="manifest_invalid")
