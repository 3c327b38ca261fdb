"""Signing a copy: of an OCI archive, or of a layout that is to stay as it is."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from islet_cli.fsutil import os_error
from islet_cli.oci import layout as layouts
from islet_cli.oci.archive import extract, staged
from islet_cli.oci.reference import default_reference
from islet_cli.progress import Report, silent
from islet_cli.signing.sign import SignedImage, Vendor, set_tag, sign_image


def sign_archive(
    archive: Path,
    destination: Path,
    reference: str | None,
    vendor: Vendor,
    *,
    application: str | None = None,
    signature: bytes | None = None,
    report: Report = silent,
) -> SignedImage:
    """Unpack an OCI archive as a new layout and sign its image; on failure nothing stays.

    Args:
        archive: The tar file.
        destination: The layout to make; must not exist.
        reference: A tag or digest. A plain tag also renames the one image of an archive whose tag is a
            full image name. None: the only image.

    Raises:
        InputError: As `extract`, `layout.load` and `sign_image` do; `exists`.
        VerificationError: As `layout.load` and `sign_image` do.
    """
    with staged(destination) as stage:
        extract_layout(archive, stage, reference, report=report)
        result = _sign(stage, reference, vendor, application, signature)
    return dataclasses.replace(result, layout=destination)


def extract_layout(archive: Path, stage: Path, reference: str | None, *, report: Report = silent) -> layouts.Layout:
    """Unpack an archive into an empty directory, name its image by `reference` and load it."""
    extract(archive, stage, report=report)
    layouts.read_marker(stage)
    if reference is not None and ":" not in reference:
        set_tag(stage, reference)
    return layouts.load(stage)


def sign_copy(
    source: Path,
    destination: Path,
    reference: str | None,
    vendor: Vendor,
    *,
    application: str | None = None,
    signature: bytes | None = None,
) -> SignedImage:
    """Sign a copy of a layout and leave the layout itself alone.

    Only what the layout refers to is copied.

    Raises:
        InputError: As `layout.load` and `sign_image` do; `exists`.
        VerificationError: As `layout.load` and `sign_image` do.
    """
    with staged(destination) as stage:
        try:
            _copy(layouts.load(source), stage)
        except OSError as error:
            raise os_error(error, destination) from error
        result = _sign(stage, reference, vendor, application, signature)
    return dataclasses.replace(result, layout=destination)


def _copy(source: layouts.Layout, stage: Path) -> None:
    for name in ("oci-layout", "index.json"):
        shutil.copyfile(source.path / name, stage / name)
    for digest in source.blobs:
        target = stage / "blobs" / digest.algorithm / digest.hex
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.blob_path(digest), target)


def _sign(
    stage: Path, reference: str | None, vendor: Vendor, application: str | None, signature: bytes | None
) -> SignedImage:
    index, _ = layouts.read_index(stage)
    chosen = default_reference(stage, index) if reference is None else reference
    return sign_image(stage, chosen, vendor, application=application, signature=signature)
