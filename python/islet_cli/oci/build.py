"""Building an image: a program, a directory or a root file system becomes a reproducible OCI layout.

The same input gives the same bytes: entries are sorted, times clamped to SOURCE_DATE_EPOCH (0 when
unset), nothing of this machine's users or clock goes in.

Source: OCI image-spec 1.1, config.md, manifest.md, image-layout.md.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from islet_cli import strictjson
from islet_cli.errors import InputError
from islet_cli.fsutil import write_atomic
from islet_cli.oci import blobs, jsonform
from islet_cli.oci.archive import require_free, staged
from islet_cli.oci.descriptor import (
    ANNOTATION_REF_NAME,
    LABEL_APPLICATION,
    LABEL_SECURITY_VERSION,
    LABEL_VERSION,
    MEDIA_CONFIG,
    MEDIA_INDEX,
    MEDIA_MANIFEST,
    Descriptor,
)
from islet_cli.oci.digest import Digest, digest_of
from islet_cli.oci.documents import parse_config
from islet_cli.oci.layerwriter import Compression, Layer, write_layer
from islet_cli.oci.layout import read_index, read_marker
from islet_cli.oci.measure import unpacked_bytes
from islet_cli.oci.names import check_repository, check_tag
from islet_cli.oci.reference import find, read_manifest
from islet_cli.oci.source import Source, read_source
from islet_cli.progress import Report, silent

_ENV = re.compile(r"[^=\0]+=[^\0]*", re.DOTALL)
MAX_SECURITY_VERSION = (1 << 64) - 1
LAYOUT_MARKER = b'{"imageLayoutVersion":"1.0.0"}'


@dataclass(frozen=True)
class BuiltImage:
    """An image in a layout.

    Attributes:
        unpacked_bytes: What its files take on a file system with 4 KiB blocks.
        compressed_bytes: All its layer blobs together.
        name: The label `io.islet.application`; empty when the image has none.
    """

    layout: Path
    tag: str
    manifest_digest: Digest
    config_digest: Digest
    unpacked_bytes: int
    compressed_bytes: int
    name: str
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What `islet image build --json` shows."""
        return {
            "layout": str(self.layout),
            "tag": self.tag,
            "name": self.name,
            "manifest": self.manifest_digest,
            "config": self.config_digest,
            "unpacked_bytes": self.unpacked_bytes,
            "compressed_bytes": self.compressed_bytes,
            "warnings": list(self.warnings),
        }


def source_date_epoch() -> int:
    """SOURCE_DATE_EPOCH in seconds, 0 when unset.

    Raises:
        InputError: It is not a number of seconds (`epoch_invalid`).
    """
    text = os.environ.get("SOURCE_DATE_EPOCH") or "0"
    if not re.fullmatch(r"[0-9]{1,11}", text):
        raise InputError(f"SOURCE_DATE_EPOCH: {text[:40]!r} is not a number of seconds", code="epoch_invalid")
    return int(text)


def build_image(
    source: Path,
    output: Path,
    *,
    name: str,
    tag: str = "latest",
    entrypoint: Sequence[str] | None = None,
    cmd: Sequence[str] = (),
    env: Sequence[str] = (),
    user: str = "",
    workdir: str = "",
    arch: str | None = None,
    version: str | None = None,
    security_version: int | None = None,
    compression: Compression = "zstd",
    report: Report | None = None,
    force: bool = False,
) -> BuiltImage:
    """Make an image layout.

    Args:
        source: A program, a script, a directory or a root file system (see `oci.source`).
        output: The layout directory; it appears only when everything is written.
        name: The application's name, a repository name; becomes the label `io.islet.application`.
        tag: The tag in `index.json`.
        entrypoint: Program and first arguments; by default the program itself.
        cmd: Further arguments.
        env: `K=V` items.
        user: `USER[:GROUP]`, names or numbers.
        workdir: Absolute working directory.
        arch: Required or, where nothing tells, stated architecture.
        version: For the label `org.opencontainers.image.version`, which is only shown.
        security_version: For the label `io.islet.security-version`.
        compression: Of the layer.
        report: Progress in bytes of file content.
        force: Replace an existing layout.

    Raises:
        InputError: The source, the output or an option is not usable.
        OperationError: Writing failed.
    """
    check_repository(name)
    check_tag(tag)
    require_free(output, replace=force)
    _check_settings(entrypoint, cmd, env, user, workdir, security_version)
    epoch = source_date_epoch()
    content = read_source(source, entrypoint=list(entrypoint) if entrypoint else None, arch=arch)
    if not content.entrypoint and not cmd:
        raise InputError(f"{source}: what to start is not known", code="no-entrypoint", hint="say it with --entrypoint")
    labels = {LABEL_APPLICATION: name}
    if security_version is not None:
        labels[LABEL_SECURITY_VERSION] = str(security_version)
    if version is not None:
        labels[LABEL_VERSION] = version
    execution = _execution(content, cmd, env, user, workdir, labels)
    with staged(output, replace=force) as stage:
        layer = write_layer(content.tree, stage, epoch=epoch, compression=compression, report=report or silent)
        config = strictjson.dumps(_configuration(content.architecture, execution, layer, epoch))
        manifest_digest = _write_documents(stage, config, layer, tag)
    return BuiltImage(
        output,
        tag,
        manifest_digest,
        digest_of(config),
        layer.unpacked_bytes,
        layer.descriptor.size,
        name,
        tuple(content.tree.warnings),
    )


def _check_settings(
    entrypoint: Sequence[str] | None,
    cmd: Sequence[str],
    env: Sequence[str],
    user: str,
    workdir: str,
    security_version: int | None,
) -> None:
    for item in env:
        if _ENV.fullmatch(item) is None:
            raise InputError(
                f"environment {item.partition('=')[0][:80]!r}: not of the form NAME=VALUE", code="env_invalid"
            )
    if workdir and not workdir.startswith("/"):
        raise InputError(f"working directory {workdir!r} is not absolute", code="workdir_invalid")
    if any("\0" in item for item in (*(entrypoint or ()), *cmd, user, workdir)):
        raise InputError("an option holds a NUL", code="option_invalid")
    if entrypoint is not None and entrypoint and not entrypoint[0]:
        raise InputError("the entrypoint is empty", code="entrypoint_invalid")
    if user and not all(user.split(":", 1)):
        raise InputError(f"user {user!r}: an empty part beside the colon", code="user_invalid")
    if security_version is not None and not 0 <= security_version <= MAX_SECURITY_VERSION:
        raise InputError(f"security version {security_version} is out of range", code="security_version_invalid")


def _execution(
    content: Source, cmd: Sequence[str], env: Sequence[str], user: str, workdir: str, labels: dict[str, str]
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if user:
        out["User"] = user
    given = {item.partition("=")[0] for item in env}
    # A search path that the user gives must hold what the program needs as well; theirs wins.
    environment = [item for item in content.environment if item.partition("=")[0] not in given] + list(env)
    if environment:
        out["Env"] = environment
    if content.entrypoint:
        out["Entrypoint"] = content.entrypoint
    if cmd:
        out["Cmd"] = list(cmd)
    out["WorkingDir"] = workdir or content.workdir
    out["Labels"] = dict(sorted(labels.items()))
    return out


def _configuration(architecture: str, execution: dict[str, Any], layer: Layer, epoch: int) -> dict[str, Any]:
    created = datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "created": created,
        "architecture": architecture,
        "os": "linux",
        "config": execution,
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
        # Upstream's client cannot read a configuration without a history.
        "history": [{"created": created, "created_by": "islet image build"}],
    }


def _write_documents(stage: Path, config: bytes, layer: Layer, tag: str) -> Digest:
    """Write configuration, manifest, index and marker; return the manifest's digest."""
    config_digest = digest_of(config)
    manifest = jsonform.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MEDIA_MANIFEST,
            "config": Descriptor(MEDIA_CONFIG, config_digest, len(config)).to_json(),
            "layers": [layer.descriptor.to_json()],
        }
    )
    digest = digest_of(manifest)
    named = Descriptor(MEDIA_MANIFEST, digest, len(manifest), {ANNOTATION_REF_NAME: tag})
    index = {"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": [named.to_json()]}
    blobs.write_blob(stage, config_digest, config)
    blobs.write_blob(stage, digest, manifest)
    write_atomic(stage / "index.json", jsonform.dumps(index), mode=0o644)
    write_atomic(stage / "oci-layout", LAYOUT_MARKER, mode=0o644)
    return digest


def describe(layout: Path, tag: str) -> BuiltImage:
    """The same facts about an image that exists already, its layers' sizes measured by reading them.

    Raises:
        InputError: The layout, the reference or a layer is malformed.
        VerificationError: A blob is missing or wrong.
    """

    read_marker(layout)
    index, _ = read_index(layout)
    descriptor = find(layout, index, tag)
    manifest = read_manifest(layout, descriptor)
    config = parse_config(blobs.read_blob(layout, manifest.config), what=f"{layout}: {manifest.config.digest}")
    return BuiltImage(
        layout,
        tag,
        descriptor.digest,
        manifest.config.digest,
        sum(unpacked_bytes(layout, layer) for layer in manifest.layers),
        sum(layer.size for layer in manifest.layers),
        config.labels.get(LABEL_APPLICATION, ""),
    )
