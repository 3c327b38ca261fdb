"""Signature artifacts: a signed statement about a manifest, beside the annotations and binding more.

An OCI 1.1 artifact whose subject is the image manifest holds one JSON statement with the manifest's and
configuration's digests, the application's name, versions and an optional end of validity, signed by the
vendor as the configuration is.

Source: OCI image-spec 1.1, manifest.md, "Guidelines for Artifact Usage"; docs/registry.md, "Signatures".
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from islet_cli import strictjson
from islet_cli.errors import InputError, VerificationError
from islet_cli.fsutil import write_atomic
from islet_cli.keys.ecc import PublicKey
from islet_cli.oci import blobs, jsonform
from islet_cli.oci.descriptor import LABEL_VERSION, MEDIA_EMPTY, MEDIA_MANIFEST, Descriptor
from islet_cli.oci.digest import Digest, digest_of
from islet_cli.oci.documents import Manifest, parse_config, parse_object
from islet_cli.oci.layout import descriptors, read_index
from islet_cli.oci.names import check_repository
from islet_cli.oci.reference import find, read_manifest
from islet_cli.signing.sign import SignedImage, Vendor
from islet_cli.signing.verify import VendorIdentity, security_version, verify_chain

ARTIFACT_TYPE = "application/vnd.islet.signature.v1"
PAYLOAD_TYPE = "application/vnd.islet.signature.payload.v1+json"
SCHEMA = "io.islet.signature/1"
ANNOTATIONS = ("io.islet.signature", "io.islet.signature.vendorpub", "io.islet.signature.vendorpub.signature")
_CREATED = "org.opencontainers.image.created"
_EMPTY = b"{}"
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class Statement:
    """What a vendor says about an image.

    Attributes:
        expires: End of validity, or None.
    """

    manifest: Descriptor
    config: Digest
    name: str
    version: str
    security_version: int
    created: str
    expires: str | None = None

    def to_bytes(self) -> bytes:
        """The exact bytes that are signed: sorted keys, no spaces."""
        value: dict[str, Any] = {
            "schema": SCHEMA,
            "manifest": {
                "digest": self.manifest.digest,
                "mediaType": self.manifest.media_type,
                "size": self.manifest.size,
            },
            "config": self.config,
            "name": self.name,
            "version": self.version,
            "securityVersion": self.security_version,
            "created": self.created,
        }
        if self.expires is not None:
            value["expires"] = self.expires
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def _statement(layout: Path, descriptor: Descriptor, name: str, expires: str | None) -> Statement:
    """The statement that is true of an image in a layout."""
    manifest = read_manifest(layout, descriptor)
    data = blobs.read_blob(layout, manifest.config)
    config = parse_config(data, what=f"{layout}: {manifest.config.digest}")
    return Statement(
        descriptor,
        manifest.config.digest,
        name,
        config.labels.get(LABEL_VERSION, ""),
        security_version(data),
        config.created or "1970-01-01T00:00:00Z",
        expires,
    )


def add_artifact(layout: Path, reference: str, vendor: Vendor, *, name: str, expires: str | None = None) -> Digest:
    """Add a signature artifact for an image; what is there already is left alone.

    Args:
        layout: The layout directory.
        reference: The image.
        vendor: Must have its private key.
        name: The application's name.
        expires: RFC 3339 in UTC, `YYYY-MM-DDThh:mm:ssZ`.

    Raises:
        InputError: The image, the name or the time is malformed, or the private key is missing.
        VerificationError: A digest is wrong.
    """
    check_repository(name)
    if expires is not None:
        _parse_time(expires)
    if vendor.private is None:
        raise InputError("a signature artifact needs the vendor's private key", code="key_missing")
    index, _ = read_index(layout)
    subject = find(layout, index, reference)
    statement = _statement(layout, subject, name, expires)
    payload = statement.to_bytes()
    signature = vendor.private.sign(payload)
    values = (signature.hex(), vendor.public.spki.hex(), vendor.certificate.hex())
    document = {
        "schemaVersion": 2,
        "mediaType": MEDIA_MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "config": Descriptor(MEDIA_EMPTY, digest_of(_EMPTY), len(_EMPTY)).to_json(),
        "layers": [Descriptor(PAYLOAD_TYPE, digest_of(payload), len(payload)).to_json()],
        "subject": Descriptor(subject.media_type, subject.digest, subject.size).to_json(),
        "annotations": {**dict(zip(ANNOTATIONS, values, strict=True)), _CREATED: statement.created},
    }
    data = jsonform.dumps(document)
    digest = digest_of(data)
    if any(item.digest == digest for item in index.manifests):
        return digest
    for blob in (_EMPTY, payload, data):
        blobs.write_blob(layout, digest_of(blob), blob)
    entry = {**Descriptor(MEDIA_MANIFEST, digest, len(data)).to_json(), "artifactType": ARTIFACT_TYPE}
    manifests = [*(item.raw for item in index.manifests), entry]
    write_atomic(layout / "index.json", jsonform.dumps({**index.raw, "manifests": manifests}), mode=0o644)
    return digest


def with_artifact(signed: SignedImage, vendor: Vendor, *, expires: str | None = None) -> SignedImage:
    """Add an artifact to an image that was just signed, for the application that its label names.

    Raises:
        InputError: It has no label; as `add_artifact`.
    """
    if signed.application is None:
        raise InputError(
            f"{signed.layout}: the image names no application", code="name_missing", hint="name it with --app"
        )
    reference = str(signed.manifest_digest)
    digest = add_artifact(signed.layout, reference, vendor, name=signed.application, expires=expires)
    return dataclasses.replace(signed, artifact_digest=digest)


def verify_artifact(
    layout: Path, reference: str, ca: PublicKey, *, name: str | None = None, now: datetime.datetime | None = None
) -> tuple[Statement, VendorIdentity]:
    """Find a signature artifact of an image that holds; with several, one is enough.

    Args:
        layout: The layout directory.
        reference: The image.
        ca: The root CA's public key.
        name: Require this application name.
        now: The time of verification, with its zone; the clock's when None.

    Raises:
        InputError: Reference or documents are malformed.
        VerificationError: `artifact_missing`, or why the last artifact does not hold: `annotation_…` and
            `…_invalid` codes of the chain, `statement_invalid`, `statement_mismatch`, `name_mismatch`,
            `expired`.
    """
    index, _ = read_index(layout)
    subject = find(layout, index, reference)
    failure = VerificationError(
        f"{layout}: {reference!r} has no signature artifact", code="artifact_missing", hint="sign it with --artifact"
    )
    for manifest in _artifacts(layout, subject.digest):
        try:
            return _check(layout, subject, manifest, ca, name, now or datetime.datetime.now(datetime.timezone.utc))
        except VerificationError as error:
            failure = error
    raise failure


def _artifacts(layout: Path, subject: Digest) -> Iterator[Manifest]:
    index, _ = read_index(layout)
    for descriptor in descriptors(layout, index):
        if descriptor.media_type != MEDIA_MANIFEST:
            continue
        manifest = read_manifest(layout, descriptor)
        if (
            manifest.raw.get("artifactType") == ARTIFACT_TYPE
            and manifest.subject
            and manifest.subject.digest == subject
        ):
            yield manifest


def _check(
    layout: Path,
    subject: Descriptor,
    artifact: Manifest,
    ca: PublicKey,
    name: str | None,
    now: datetime.datetime,
) -> tuple[Statement, VendorIdentity]:
    if len(artifact.layers) != 1 or artifact.layers[0].media_type != PAYLOAD_TYPE:
        raise VerificationError(f"{layout}: a signature artifact without its statement", code="statement_invalid")
    payload = blobs.read_blob(layout, artifact.layers[0])
    vendor = verify_chain(payload, artifact.annotations, ca, names=ANNOTATIONS, what="statement")
    value = parse_object(payload, what="statement of a signature artifact", code="statement_invalid")
    expires, stated_name = value.get("expires"), value.get("name")
    if not isinstance(stated_name, str) or not (expires is None or isinstance(expires, str)):
        raise VerificationError("the statement lacks a name, or its end is no time", code="statement_invalid")
    expected = _statement(layout, subject, stated_name, expires)
    # Values, not bytes: a statement of a later schema revision may say more.
    if {key: value.get(key) for key in strictjson.loads(expected.to_bytes())} != strictjson.loads(expected.to_bytes()):
        raise VerificationError("the signed statement is about another image", code="statement_mismatch")
    if name is not None and stated_name != name:
        raise VerificationError(f"the image is signed for {stated_name!r}, not {name!r}", code="name_mismatch")
    if expires is not None and now >= _parse_time(expires):
        raise VerificationError(f"the signature ended at {expires}", code="expired")
    return expected, vendor


def _parse_time(text: str) -> datetime.datetime:
    try:
        return datetime.datetime.strptime(text, _TIME).replace(tzinfo=datetime.timezone.utc)
    except ValueError:
        raise InputError(f"{text[:40]!r} is not of the form YYYY-MM-DDThh:mm:ssZ", code="time_invalid") from None
