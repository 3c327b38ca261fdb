"""Where an image comes from: a layout directory, an OCI archive, or a registry."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from islet_cli.errors import InputError
from islet_cli.oci.archive import extract
from islet_cli.oci.layout import read_index, read_marker
from islet_cli.oci.names import is_remote, parse_remote
from islet_cli.oci.reference import default_reference
from islet_cli.oci.remote import Tls, fetched
from islet_cli.progress import Report, silent
from islet_cli.signing.archive import extract_layout, sign_archive, sign_copy
from islet_cli.signing.sign import SignedImage, Vendor, sign_image, to_be_signed


@contextmanager
def local_image(
    image: str, *, tls: Tls = "tls", root_ca: Path | None = None, report: Report = silent
) -> Iterator[Path]:
    """A file or directory as it is; an image of a registry (`docker://…`) fetched into a temporary layout."""
    if not is_remote(image):
        yield Path(image)
        return
    with fetched(parse_remote(image), tls=tls, root_ca=root_ca, report=report) as layout:
        yield layout


def require_destination(image: str, into: Path | None) -> None:
    """Require a new layout to write for what cannot be signed in place.

    Raises:
        InputError: `usage`.
    """
    if into is None and (is_remote(image) or Path(image).is_file()):
        kind = "an image in a registry" if is_remote(image) else "an archive"
        raise InputError(
            f"{image}: {kind} cannot be signed in place", code="usage", hint="name a new layout with --into DIR"
        )


@contextmanager
def opened_layout(image: Path, *, report: Report = silent) -> Iterator[Path]:
    """A layout directory: `image` itself, or a temporary one with an archive's content.

    Raises:
        InputError: `image` is neither, or the archive is malformed.
    """
    require_image(image)
    if image.is_dir():
        yield image
        return
    with tempfile.TemporaryDirectory(prefix="islet-image-") as directory:
        extract(image, Path(directory), report=report)
        yield Path(directory)


def require_image(image: Path) -> None:
    """Require that `image` exists.

    Raises:
        InputError: `no-such-file`.
    """
    if not image.exists():
        raise InputError(
            f"{image}: does not exist", code="no-such-file", hint="an OCI layout directory or an OCI archive"
        )


def reference_of(layout: Path, tag: str | None) -> str:
    """The tag or digest that was given, else that of the only image."""
    read_marker(layout)
    index, _ = read_index(layout)
    return default_reference(layout, index) if tag is None else tag


def bytes_to_sign(image: Path, tag: str | None, application: str | None) -> bytes:
    """What must be signed when the vendor's key is elsewhere.

    Raises:
        InputError, VerificationError: The image is malformed.
    """
    require_image(image)
    if image.is_dir():
        return to_be_signed(image, reference_of(image, tag), application=application)
    with tempfile.TemporaryDirectory(prefix="islet-image-") as directory:
        stage = Path(directory)
        extract_layout(image, stage, tag)
        return to_be_signed(stage, reference_of(stage, tag), application=application)


def sign_source(
    image: Path,
    tag: str | None,
    vendor: Vendor,
    *,
    into: Path | None = None,
    application: str | None = None,
    signature: bytes | None = None,
    report: Report = silent,
) -> SignedImage:
    """Sign a layout in place, or a layout or archive into the new layout `into`.

    Raises:
        InputError: The image is malformed, or an archive is to be signed without `into` (`usage`).
        VerificationError: A digest or the given signature is wrong.
    """
    require_image(image)
    if image.is_dir() and into is None:
        chosen = reference_of(image, tag)
        return sign_image(image, chosen, vendor, application=application, signature=signature)
    if into is None:
        raise InputError(f"{image}: no new layout is named", code="usage", hint="name one with --into DIR")
    if image.is_dir():
        return sign_copy(image, into, tag, vendor, application=application, signature=signature)
    return sign_archive(image, into, tag, vendor, application=application, signature=signature, report=report)
