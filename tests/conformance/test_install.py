"""The installed form of the sample image: metadata byte for byte, and what is measured."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import vectors

from islet_cli.appmanager import compat_metadata
from islet_cli.attestation.rem import application_measurement, chunks
from islet_cli.keys.ecc import load_public
from islet_cli.oci import layout as layouts
from islet_cli.signing.verify import ANNOTATION_SIGNATURE, VendorIdentity, verify_config

_CASE = vectors.images("install", "expected.json")
_ROOT = vectors.path("ISLET_VECTORS_IMAGES")

pytestmark = pytest.mark.skipif(_CASE is None, reason="no install case in these vectors")


@pytest.fixture
def image() -> tuple[VendorIdentity, bytes, dict[str, str], str]:
    assert _CASE is not None
    layout = layouts.load(_ROOT / "install" / _CASE["image"])
    descriptor = layout.resolve(_CASE["reference"])
    manifest: dict[str, Any] = json.loads(layout.read(descriptor, 4 << 20))
    blob = layout.blobs[manifest["config"]["digest"]]
    config = layout.read(blob, 4 << 20)
    ca = load_public(_ROOT / "keys" / "root-ca.pub")
    return verify_config(config, manifest["annotations"], ca), config, manifest["annotations"], str(descriptor.digest)


def _metadata(image: tuple[VendorIdentity, bytes, dict[str, str], str]) -> compat_metadata.Metadata:
    vendor, config, annotations, digest = image
    return compat_metadata.of_image(
        vendor,
        config,
        name="app",
        reference="stable",
        manifest_digest=digest,
        signature=bytes.fromhex(annotations[ANNOTATION_SIGNATURE]),
        installed_at="2026-01-01T00:00:00Z",
    )


def test_metadata_is_upstreams_byte_for_byte(image: tuple[VendorIdentity, bytes, dict[str, str], str]) -> None:
    assert _CASE is not None
    metadata = _metadata(image)
    upstream = (_ROOT / "install" / "metadata.json").read_bytes()
    without = compat_metadata.Metadata(metadata.vendor_data, metadata.config_hash, metadata.image_config)
    assert compat_metadata.encode(without) == upstream
    assert compat_metadata.decode(upstream) == without
    # Ours begins with upstream's members and adds its own.
    assert compat_metadata.encode(metadata).startswith(upstream[:-1] + b',"islet":{')
    assert compat_metadata.decode(compat_metadata.encode(metadata)) == metadata


def test_measurement(image: tuple[VendorIdentity, bytes, dict[str, str], str]) -> None:
    assert _CASE is not None
    metadata = _metadata(image)
    assert [item.hex() for item in metadata.vendor_data] == _CASE["vendor_data_hex"]
    assert metadata.config_hash.hex() == _CASE["image_hash_hex"] == hashlib.sha384(image[1]).hexdigest()
    measured = application_measurement(metadata.vendor_data, metadata.config_hash)
    assert [item.hex() for item in chunks(measured)] == _CASE["measurement_chunks_hex"]
