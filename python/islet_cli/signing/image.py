"""Verifying an image in a layout: reference, digests, signature chain, layers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from islet_cli.errors import InputError, VerificationError
from islet_cli.fsutil import read_file
from islet_cli.keys.ecc import PublicKey
from islet_cli.oci import blobs, layers
from islet_cli.oci.descriptor import (
    LABEL_APPLICATION,
    LABEL_VERSION,
    Descriptor,
)
from islet_cli.oci.digest import Digest
from islet_cli.oci.documents import Config, Manifest, parse_config
from islet_cli.oci.layout import read_index, read_marker
from islet_cli.oci.reference import find, read_manifest
from islet_cli.progress import Report, silent
from islet_cli.signing.verify import (
    VendorIdentity,
    require_application,
    require_not_revoked,
    security_version,
    verify_config,
)


@dataclass(frozen=True)
class VerifiedImage:
    """An image whose whole chain was checked."""

    reference: str
    manifest: Manifest
    manifest_digest: Digest
    config: bytes
    config_digest: Digest
    vendor: VendorIdentity
    labels: dict[str, str]
    security_version: int
    created: str | None
    layers: tuple[Descriptor, ...]

    @property
    def application(self) -> str | None:
        """The label `io.islet.application`."""
        return self.labels.get(LABEL_APPLICATION)

    def to_json(self) -> dict[str, Any]:
        """What `islet verify --json` shows."""
        return {
            "reference": self.reference,
            "manifest": self.manifest_digest,
            "config": self.config_digest,
            "vendor": self.vendor.fingerprint,
            "application": self.application,
            "version": self.labels.get(LABEL_VERSION),
            "security_version": self.security_version,
            "created": self.created,
            "layers": [{"digest": layer.digest, "size": layer.size} for layer in self.layers],
        }


def verify_image(
    layout: Path,
    reference: str,
    ca: PublicKey,
    *,
    vendor: VendorIdentity | None = None,
    deep: bool = False,
    deny: frozenset[str] = frozenset(),
    report: Report = silent,
) -> VerifiedImage:
    """Check an image of a layout completely; the first failure in the documented order is raised.

    Args:
        layout: The layout directory.
        reference: A tag of `index.json`, or a digest reachable from it.
        ca: The root CA's public key.
        vendor: Who signed it, when that was found by other means than its annotations, which then do not count.
        deep: Also decompress every layer and compare it with its diff_id.
        deny: SHA-256 values of revoked vendor keys and configurations.
        report: Progress in bytes hashed.

    Raises:
        InputError: Reference or documents are malformed.
        VerificationError: Digests, sizes or signatures are wrong.
    """
    read_marker(layout)
    index, _ = read_index(layout)
    descriptor = find(layout, index, reference)
    manifest = read_manifest(layout, descriptor)
    config = blobs.read_blob(layout, manifest.config)
    vendor = vendor or verify_config(config, manifest.annotations, ca)
    require_not_revoked(vendor, config, deny)
    _check_layers(layout, manifest, report)
    parsed = parse_config(config, what=f"{layout}: {manifest.config.digest}")
    _check_diff_ids(layout, manifest, parsed, deep)
    return VerifiedImage(
        reference,
        manifest,
        descriptor.digest,
        config,
        manifest.config.digest,
        vendor,
        parsed.labels,
        security_version(config),
        parsed.created,
        manifest.layers,
    )


def _check_layers(layout: Path, manifest: Manifest, report: Report) -> None:
    total = sum(layer.size for layer in manifest.layers)
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        report(done, total)

    for layer in manifest.layers:
        blobs.check_blob(layout, layer, progress)


def _check_diff_ids(layout: Path, manifest: Manifest, config: Config, deep: bool) -> None:
    if len(config.diff_ids) != len(manifest.layers):
        raise VerificationError(
            f"{layout}: {len(manifest.layers)} layers, but {len(config.diff_ids)} diff_ids in the configuration",
            code="diff_id_count_mismatch",
        )
    if not deep:
        return
    for layer, expected in zip(manifest.layers, config.diff_ids, strict=True):
        if layers.diff_id(layout, layer, expected.algorithm) != expected:
            raise VerificationError(
                f"{layout}: layer {layer.digest} is not {expected} when decompressed", code="diff_id_mismatch"
            )


_DENY_LINE = re.compile(r"(?:sha256:)?([0-9a-fA-F]{64})")


def load_deny_list(path: Path) -> frozenset[str]:
    """Read a deny list: one SHA-256 a line, `#` starts a comment.

    Raises:
        InputError: `deny_list_invalid`, with the line's number.
    """
    values = set()
    for number, line in enumerate(read_file(path).decode("utf-8", "replace").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _DENY_LINE.fullmatch(text)
        if match is None:
            raise InputError(f"{path}: line {number} is not a SHA-256 value", code="deny_list_invalid")
        values.add(match[1].lower())
    return frozenset(values)


Requirement = Literal["annotation", "artifact", "either", "both"]


def verify_required(
    layout: Path,
    reference: str,
    ca: PublicKey,
    requirement: Requirement = "annotation",
    *,
    name: str | None = None,
    deep: bool = False,
    deny: frozenset[str] = frozenset(),
    report: Report = silent,
) -> VerifiedImage:
    """Verify an image whose signature may be in its annotations or in an artifact.

    Args:
        requirement: Which of the two must hold.
        name: Require that the image is signed for this application.

    Raises:
        InputError, VerificationError: As `verify_image` and `artifact.verify_artifact`.
    """
    from islet_cli.signing.artifact import verify_artifact

    by_artifact: VendorIdentity | None = None
    if requirement != "annotation":
        try:
            _, by_artifact = verify_artifact(layout, reference, ca, name=name)
        except VerificationError:
            if requirement != "either":
                raise
    by_annotation = requirement in ("annotation", "both") or by_artifact is None
    vendor = None if by_annotation else by_artifact
    done = verify_image(layout, reference, ca, vendor=vendor, deep=deep, deny=deny, report=report)
    if name is not None and by_annotation:
        require_application(done.config, name)
    return done
