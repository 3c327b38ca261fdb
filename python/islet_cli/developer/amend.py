"""Change how a ready image is started: environment, arguments and entrypoint enter a configuration of its own.

The result is a layout with this one image, unsigned: its vendor's signature covered the old configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from islet_cli import strictjson
from islet_cli.fsutil import write_atomic
from islet_cli.oci import blobs, jsonform
from islet_cli.oci.descriptor import ANNOTATION_REF_NAME, LABEL_APPLICATION, MEDIA_INDEX, Descriptor
from islet_cli.oci.digest import digest_of
from islet_cli.oci.documents import parse_config
from islet_cli.oci.layout import read_index
from islet_cli.oci.reference import find, read_manifest


def amend(
    layout: Path,
    reference: str,
    *,
    name: str,
    env: Sequence[str] = (),
    cmd: Sequence[str] | None = None,
    entrypoint: Sequence[str] | None = None,
) -> None:
    """Rewrite the image under `reference`, in place, as the only image of `layout`, with the same tag.

    Args:
        name: The application's name, for the label `io.islet.application`.
        env: `K=V` items; they replace those of the same name.
        cmd: Arguments; None keeps the image's.
        entrypoint: Program and first arguments; None keeps the image's.

    Raises:
        InputError: Reference or documents are malformed.
        VerificationError: A digest is wrong.
    """
    index, _ = read_index(layout)
    descriptor = find(layout, index, reference)
    manifest = read_manifest(layout, descriptor)
    config = parse_config(blobs.read_blob(layout, manifest.config), what=f"{layout}: configuration")
    execution: dict[str, Any] = dict(config.raw.get("config") or {})
    given = {item.partition("=")[0] for item in env}
    kept = [item for item in execution.get("Env") or [] if item.partition("=")[0] not in given]
    if kept or env:
        execution["Env"] = [*kept, *env]
    if entrypoint is not None:
        execution["Entrypoint"] = list(entrypoint)
    if cmd is not None:
        execution["Cmd"] = list(cmd)
    execution["Labels"] = {**config.labels, LABEL_APPLICATION: name}

    data = strictjson.dumps({**config.raw, "config": execution})
    new_config = Descriptor(manifest.config.media_type, digest_of(data), len(data))
    document = {**manifest.raw, "config": new_config.to_json()}
    document.pop("annotations", None)
    text = jsonform.dumps(document)
    named = Descriptor(descriptor.media_type, digest_of(text), len(text), {ANNOTATION_REF_NAME: reference})
    blobs.write_blob(layout, new_config.digest, data)
    blobs.write_blob(layout, named.digest, text)
    new_index = {"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": [named.to_json()]}
    write_atomic(layout / "index.json", jsonform.dumps(new_index), mode=0o644)
