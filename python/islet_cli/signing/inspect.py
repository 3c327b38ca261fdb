"""What is in a layout, as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from islet_cli.oci import blobs
from islet_cli.oci.descriptor import (
    ANNOTATION_REF_NAME,
    LABEL_APPLICATION,
    LABEL_SECURITY_VERSION,
    MEDIA_CONFIG,
    Descriptor,
)
from islet_cli.oci.documents import Manifest, parse_config
from islet_cli.oci.layout import Layout, load
from islet_cli.progress import Report, silent
from islet_cli.signing.verify import ANNOTATIONS


def inspect(path: Path, reference: str | None = None, *, report: Report = silent) -> dict[str, Any]:
    """Load a layout, every digest checked, and describe its images.

    Signatures are only named, not verified.

    Args:
        path: The layout directory.
        reference: A tag or digest; None for everything in `index.json`.
        report: Progress in bytes hashed.

    Raises:
        InputError, VerificationError: As `layout.load`; `reference_unknown`.
    """
    layout = load(path, report=report)
    chosen = layout.index.manifests if reference is None else (layout.resolve(reference),)
    return {
        "layout": str(path),
        "images": [_image(layout, descriptor) for descriptor in chosen],
        "warnings": layout.warnings,
    }


def _image(layout: Layout, descriptor: Descriptor) -> dict[str, Any]:
    out: dict[str, Any] = {
        "tag": descriptor.annotations.get(ANNOTATION_REF_NAME),
        "digest": descriptor.digest,
        "size": descriptor.size,
        "media_type": descriptor.media_type,
    }
    manifest = layout.manifests.get(descriptor.digest)
    return out if manifest is None else out | _manifest(layout, manifest)


def _manifest(layout: Layout, manifest: Manifest) -> dict[str, Any]:
    out: dict[str, Any] = {
        "layers": [
            {"digest": layer.digest, "size": layer.size, "media_type": layer.media_type} for layer in manifest.layers
        ],
        "annotations": manifest.annotations,
        "signed": all(name in manifest.annotations for name in ANNOTATIONS),
        "config_digest": manifest.config.digest,
    }
    if manifest.config.media_type != MEDIA_CONFIG:
        return out
    data = blobs.read_blob(layout.path, manifest.config)
    config = parse_config(data, what=f"{layout.path}: {manifest.config.digest}")
    return out | {
        "application": config.labels.get(LABEL_APPLICATION),
        "security_version": config.labels.get(LABEL_SECURITY_VERSION, "0"),
        "platform": f"{config.os}/{config.architecture}",
        "created": config.created,
        "config": config.raw.get("config") or {},
        "diff_ids": list(config.diff_ids),
    }


def as_text(described: dict[str, Any]) -> str:
    """The same for people."""
    lines = []
    for image in described["images"]:
        lines.append(f"{image['tag'] or '(no tag)'}: {image['digest']}")
        for key in ("application", "platform", "created", "security_version"):
            if image.get(key) is not None:
                lines.append(f"  {key.replace('_', ' ')}: {_plain(image[key])}")
        config = image.get("config") or {}
        for key in ("Entrypoint", "Cmd", "Env", "User", "WorkingDir"):
            if config.get(key):
                lines.append(f"  {key.lower()}: {_plain(config[key])}")
        lines += [f"  layer: {layer['digest']} {layer['size']} bytes" for layer in image.get("layers", ())]
        if "signed" in image:
            lines.append(f"  signature: {'present, not checked here (islet verify)' if image['signed'] else 'none'}")
    return "\n".join(lines) or "no images"


def _plain(value: object) -> str:
    """Text of an image, which may hold anything, made safe for a terminal."""
    text = value if isinstance(value, str) else repr(value)
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
