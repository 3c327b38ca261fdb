"""Unpacking an image of a layout into a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from islet_cli.oci import blobs
from islet_cli.oci.digest import Digest
from islet_cli.oci.documents import parse_config
from islet_cli.oci.layout import read_index, read_marker
from islet_cli.oci.reference import find, read_manifest
from islet_cli.oci.unpack import pair_layers, unpack_to
from islet_cli.progress import Report, silent


def extract_image(
    layout: Path, reference: str, destination: Path, *, skip_devices: bool = False, report: Report = silent
) -> dict[str, Any]:
    """Unpack every layer of an image; digests and diff_ids are checked before anything is written.

    Args:
        layout: The layout directory.
        reference: A tag or digest.
        destination: New or empty; appears whole or not at all.
        skip_devices: Leave device nodes out instead of refusing the image.
        report: Progress in bytes, every pass counted.

    Raises:
        InputError: Reference or documents are malformed, or `destination` holds something.
        VerificationError: A blob is wrong, or a rule refused a layer.
    """
    read_marker(layout)
    index, _ = read_index(layout)
    descriptor = find(layout, index, reference)
    manifest = read_manifest(layout, descriptor)
    data = blobs.read_blob(layout, manifest.config)
    config = parse_config(data, what=f"{layout}: {manifest.config.digest}")
    layers = pair_layers(manifest.layers, config.diff_ids, lambda digest: blobs.blob_path(layout, Digest(digest)))
    warnings = unpack_to(destination, layers, devices="skip" if skip_devices else "error", progress=report)
    return {
        "directory": str(destination),
        "reference": reference,
        "manifest": descriptor.digest,
        "warnings": [f"{warning.code}: {warning.entry}" for warning in warnings],
    }
