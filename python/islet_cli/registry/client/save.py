"""Writing a pulled image as an OCI image layout."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from islet_cli.errors import InputError
from islet_cli.fsutil import fsync_directory, os_error, write_atomic
from islet_cli.oci import jsonform
from islet_cli.oci.blobs import blob_path, write_blob
from islet_cli.oci.descriptor import ABSENT_ALLOWED, ANNOTATION_REF_NAME, MEDIA_INDEX
from islet_cli.oci.layout import Layout, load
from islet_cli.oci.names import check_tag
from islet_cli.progress import Report, silent
from islet_cli.registry.client.api import Fetched, RegistryClient
from islet_cli.registry.client.pull import fetch_layers, fetch_manifest_and_config


def save(
    client: RegistryClient,
    name: str,
    reference: str,
    destination: Path,
    *,
    platform: str | None = None,
    tag: str | None = None,
    report: Report = silent,
) -> Layout:
    """Fetch an image into `destination`, which appears complete or not at all; see `pull.pull`."""
    if tag is not None:
        check_tag(tag)
    elif ":" not in reference:
        tag = reference
    if destination.exists() or destination.is_symlink():
        raise InputError(f"{destination}: already exists", code="exists", hint="choose another directory")
    fetched = fetch_manifest_and_config(client, name, reference, platform)
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    except OSError as error:
        raise os_error(error, destination.parent) from error
    try:
        _fill(client, fetched, work, tag, report)
        load(work)
        work.chmod(0o755)
        work.rename(destination)
        fsync_directory(destination.parent)
    except OSError as error:
        raise os_error(error, destination) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return load(destination)


def _fill(client: RegistryClient, fetched: Fetched, work: Path, tag: str | None, report: Report) -> None:
    download = work / ".download"
    download.mkdir(mode=0o700)
    layers = [layer for layer in fetched.document.layers if layer.media_type not in ABSENT_ALLOWED]
    fetch_layers(client, fetched.name, layers, download, report)
    write_blob(work, fetched.descriptor.digest, fetched.manifest)
    write_blob(work, fetched.document.config.digest, fetched.config)
    for layer in layers:
        goal = blob_path(work, layer.digest)
        goal.parent.mkdir(parents=True, exist_ok=True)
        source = download / layer.digest.hex
        if source.exists():
            with source.open("rb") as file:
                os.fsync(file.fileno())
            source.chmod(0o644)
            source.rename(goal)
    download.rmdir()
    descriptor = dict(fetched.descriptor.to_json())
    annotations = {key: value for key, value in fetched.descriptor.annotations.items() if key != ANNOTATION_REF_NAME}
    if tag is not None:
        annotations[ANNOTATION_REF_NAME] = tag
    descriptor["annotations"] = annotations or None
    index = {"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": [descriptor]}
    write_atomic(work / "oci-layout", b'{"imageLayoutVersion": "1.0.0"}', mode=0o644)
    write_atomic(work / "index.json", jsonform.dumps(index), mode=0o644)
