"""Signing an image of a layout, so that a crash at any point leaves the old or the new image complete.

Source: Islet's `ir-sign`, sub-command `sign-image`.
"""

from __future__ import annotations

import base64
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from islet_cli import strictjson
from islet_cli.errors import InputError, VerificationError
from islet_cli.fsutil import fsync_directory, write_atomic
from islet_cli.keys.ecc import PrivateKey, PublicKey
from islet_cli.oci import blobs, jsonform
from islet_cli.oci.descriptor import (
    ANNOTATION_REF_NAME,
    LABEL_APPLICATION,
    MAX_DOCUMENT,
    MEDIA_INDEX,
    MEDIA_MANIFEST,
    Descriptor,
)
from islet_cli.oci.digest import Digest, digest_of
from islet_cli.oci.documents import Index, Manifest, parse_config, parse_index, parse_manifest
from islet_cli.oci.layout import MAX_DEPTH, read_index, read_marker
from islet_cli.oci.names import check_repository
from islet_cli.oci.reference import find, read_manifest
from islet_cli.signing.verify import ANNOTATION_CERTIFICATE, ANNOTATION_SIGNATURE, ANNOTATION_VENDOR


@dataclass(frozen=True)
class Vendor:
    """What signs images.

    Attributes:
        public: The vendor's public key.
        certificate: The root CA's DER signature over its SPKI.
        private: None when signatures are made elsewhere.
    """

    public: PublicKey
    certificate: bytes
    private: PrivateKey | None = field(default=None, repr=False)


def certified_vendor(public: PublicKey, certificate: bytes, ca: PublicKey, private: PrivateKey | None = None) -> Vendor:
    """A vendor whose key the root CA has signed already.

    Raises:
        VerificationError: `vendor_signature_invalid`.
    """
    try:
        ca.verify(certificate, public.spki)
    except VerificationError as error:
        raise VerificationError(
            f"the root CA's signature over the vendor key does not fit: {error}",
            code="vendor_signature_invalid",
            hint="make it with: islet key certify -k CA_PRIV -i VENDOR_PUB -o SIG",
        ) from error
    return Vendor(public, certificate, private)


def certify(vendor: PublicKey, ca: PrivateKey, private: PrivateKey | None = None) -> Vendor:
    """A vendor whose key is signed on the spot: for tests, where the root CA's private key is at hand."""
    return Vendor(vendor, ca.sign(vendor.spki), private)


@dataclass(frozen=True)
class SignedImage:
    """The outcome of signing."""

    layout: Path
    reference: str
    manifest_digest: Digest
    config_digest: Digest
    vendor: str
    application: str | None
    changed: bool
    warnings: tuple[str, ...] = ()
    artifact_digest: Digest | None = None

    def to_json(self) -> dict[str, Any]:
        """What `islet sign --json` shows."""
        return {
            "layout": str(self.layout),
            "reference": self.reference,
            "manifest": self.manifest_digest,
            "config": self.config_digest,
            "vendor": self.vendor,
            "application": self.application,
            "changed": self.changed,
            "artifact": self.artifact_digest,
            "warnings": list(self.warnings),
        }


def to_be_signed(layout: Path, reference: str, *, application: str | None = None) -> bytes:
    """The bytes that the vendor has to sign: the configuration, with the application's name if one is given."""
    read_marker(layout)
    index, _ = read_index(layout)
    manifest = read_manifest(layout, find(layout, index, reference))
    return _configuration(layout, manifest, application)


def sign_image(
    layout: Path,
    reference: str,
    vendor: Vendor,
    *,
    application: str | None = None,
    signature: bytes | None = None,
) -> SignedImage:
    """Sign an image in place.

    Everything is read, checked and prepared in memory first; then new blobs are added, `index.json` is
    replaced by a rename, and last the documents that nothing refers to any more are removed. The same
    image signed again with the same keys is left alone.

    Args:
        layout: The layout directory.
        reference: A tag of `index.json`, or a digest reachable from it.
        vendor: The vendor's keys.
        application: Writes this name into the configuration's labels first.
        signature: A DER signature made elsewhere over `to_be_signed(...)`.

    Raises:
        InputError: Reference or documents are malformed.
        VerificationError: A digest is wrong, or the given signature does not fit
            (`config_signature_invalid`).
    """
    with _locked(layout):
        plan = _plan(layout, reference, vendor, application, signature)
        if plan.result.changed:
            _apply(layout, plan)
        return plan.result


@contextmanager
def _locked(layout: Path) -> Iterator[None]:
    """Keep two signers of one layout apart; the lock is on the directory, so that no file appears in it."""
    read_marker(layout)
    directory = os.open(layout, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


@dataclass(frozen=True)
class _Plan:
    new: dict[Digest, bytes]
    index: bytes
    stale: frozenset[Digest]
    result: SignedImage


def _plan(layout: Path, reference: str, vendor: Vendor, application: str | None, signature: bytes | None) -> _Plan:
    index, _ = read_index(layout)
    old = find(layout, index, reference)
    manifest = read_manifest(layout, old)
    config = _configuration(layout, manifest, application)
    config_digest = digest_of(config, manifest.config.digest.algorithm)
    data = _signed_manifest(manifest, config, config_digest, vendor, _signature(config, vendor, signature))
    new_digest = digest_of(data, old.digest.algorithm)

    rewriter = _Rewriter(layout, old.digest, new_digest, data)
    new_index = jsonform.dumps(rewriter.document(index))
    new = {**rewriter.new, config_digest: config, new_digest: data}
    in_use = _references(layout, parse_index(new_index, what=f"{layout}: index.json"), new)
    stale = ({old.digest, manifest.config.digest} | rewriter.replaced) - in_use
    label = parse_config(config, what=f"{layout}: configuration").labels.get(LABEL_APPLICATION)
    warnings = () if label else (f"no label {LABEL_APPLICATION}: only realms in compat mode will run this image",)
    result = SignedImage(
        layout,
        reference,
        new_digest,
        config_digest,
        vendor.public.fingerprint,
        label,
        new_digest != old.digest,
        warnings,
    )
    return _Plan(new, new_index, frozenset(stale), result)


def _configuration(layout: Path, manifest: Manifest, application: str | None) -> bytes:
    """The configuration to sign: its bytes as they are, unless a name has to be written into it."""
    data = blobs.read_blob(layout, manifest.config)
    config = parse_config(data, what=f"{layout}: {manifest.config.digest}")
    if application is None or config.labels.get(LABEL_APPLICATION) == application:
        return data
    check_repository(application)
    execution = dict(config.raw.get("config") or {})
    execution["Labels"] = {**config.labels, LABEL_APPLICATION: application}
    return strictjson.dumps({**config.raw, "config": execution})


def _signature(config: bytes, vendor: Vendor, given: bytes | None) -> bytes:
    if given is None:
        if vendor.private is None:
            raise InputError(
                "the vendor's private key is missing", code="key_missing", hint="give --vendor-key or --signature"
            )
        return vendor.private.sign(config)
    try:
        vendor.public.verify(given, config)
    except VerificationError as error:
        raise VerificationError(
            f"the given signature does not fit the configuration: {error}",
            code="config_signature_invalid",
            hint="sign exactly the bytes that --tbs-out wrote, with the same --app",
        ) from error
    return given


def _signed_manifest(
    manifest: Manifest, config: bytes, config_digest: Digest, vendor: Vendor, signature: bytes
) -> bytes:
    annotations = {
        **manifest.annotations,
        ANNOTATION_SIGNATURE: signature.hex(),
        ANNOTATION_VENDOR: vendor.public.spki.hex(),
        ANNOTATION_CERTIFICATE: vendor.certificate.hex(),
    }
    document = {**manifest.raw, "annotations": annotations}
    if config_digest != manifest.config.digest:
        document["config"] = _renamed(manifest.config.raw, config_digest, config)
    data = jsonform.dumps(document)
    if len(data) > MAX_DOCUMENT:
        raise InputError(f"the signed manifest would have more than {MAX_DOCUMENT} bytes", code="limit_exceeded")
    return data


def _renamed(descriptor: dict[str, Any], digest: Digest, data: bytes) -> dict[str, Any]:
    """A descriptor that names `data` instead; a copy of the blob embedded in it follows."""
    out = {**descriptor, "digest": str(digest), "size": len(data)}
    if "data" in descriptor:
        out["data"] = base64.b64encode(data).decode("ascii")
    return out


class _Rewriter:
    """Replaces one manifest throughout an index and the indexes nested in it.

    Attributes:
        new: Rewritten nested indexes by their new digest.
        replaced: Their old digests.
    """

    def __init__(self, layout: Path, old: Digest, new: Digest, data: bytes) -> None:
        self._layout = layout
        self._old = old
        self._data = data
        self._digest = new
        self.new: dict[Digest, bytes] = {}
        self.replaced: set[Digest] = set()
        self._memo: dict[Digest, bytes | None] = {}

    def document(self, index: Index, depth: int = 0) -> dict[str, Any]:
        """The index with every descriptor of the old manifest, at any depth, replaced."""
        return {**index.raw, "manifests": [self._descriptor(item, depth) for item in index.manifests]}

    def _descriptor(self, item: Descriptor, depth: int) -> dict[str, Any]:
        if item.media_type == MEDIA_MANIFEST and item.digest == self._old:
            return _renamed(item.raw, self._digest, self._data)
        if item.media_type != MEDIA_INDEX:
            return item.raw
        data = self._nested(item, depth + 1)
        return item.raw if data is None else _renamed(item.raw, digest_of(data, item.digest.algorithm), data)

    def _nested(self, item: Descriptor, depth: int) -> bytes | None:
        """The new content of a nested index, or None when it stays as it is."""
        if depth > MAX_DEPTH:
            raise InputError(
                f"{self._layout}: more than {MAX_DEPTH} indexes inside one another", code="nesting_too_deep"
            )
        if item.digest not in self._memo:
            self._memo[item.digest] = self._rewrite(item, depth)
        return self._memo[item.digest]

    def _rewrite(self, item: Descriptor, depth: int) -> bytes | None:
        data = blobs.read_blob(self._layout, item)
        what = f"{self._layout}: {item.digest}"
        index = parse_index(data, what=what, media_type=item.media_type, nested=True)
        rewritten = self.document(index, depth)
        if rewritten["manifests"] == [child.raw for child in index.manifests]:
            return None
        new = jsonform.dumps(rewritten)
        self.new[digest_of(new, item.digest.algorithm)] = new
        self.replaced.add(item.digest)
        return new


def _references(layout: Path, index: Index, overlay: dict[Digest, bytes]) -> set[Digest]:
    """Every digest that `index` leads to, subjects included; `overlay` holds blobs not yet written."""
    found: set[Digest] = set()
    pending = list(index.manifests)
    while pending:
        item = pending.pop()
        if item.digest in found:
            continue
        found.add(item.digest)
        if not (item.is_index or item.is_manifest):
            continue
        what = f"{layout}: {item.digest}"
        data = overlay[item.digest] if item.digest in overlay else blobs.read_blob(layout, item)
        if item.is_index:
            pending.extend(parse_index(data, what=what, media_type=item.media_type, nested=True).manifests)
            continue
        manifest = parse_manifest(data, what=what, media_type=item.media_type)
        found.update(blob.digest for blob in (manifest.config, *manifest.layers))
        if manifest.subject is not None:
            found.add(manifest.subject.digest)
    return found


def _apply(layout: Path, plan: _Plan) -> None:
    """Add, switch, remove: in this order a crash leaves at worst unreferenced blobs."""
    for digest, data in plan.new.items():
        if not blobs.blob_path(layout, digest).exists():
            blobs.write_blob(layout, digest, data)
    write_atomic(layout / "index.json", plan.index, mode=0o644)
    for digest in plan.stale:
        path = blobs.blob_path(layout, digest)
        path.unlink(missing_ok=True)
        fsync_directory(path.parent)


def set_tag(layout: Path, tag: str) -> None:
    """Give the one image of a layout the plain tag `tag`, as for archives whose tag is a full image name.

    A layout in which some image has that tag already is left alone.

    Raises:
        InputError: There is no single image that could be meant (`reference_ambiguous`).
    """
    index, _ = read_index(layout)
    names = [item.annotations.get(ANNOTATION_REF_NAME) for item in index.manifests]
    if tag in names:
        return
    fitting = [at for at, name in enumerate(names) if name is not None and name.endswith(f":{tag}")]
    chosen = fitting if len(fitting) == 1 else list(range(len(names)))
    if len(chosen) != 1:
        raise InputError(f"{layout}: no single image that could be called {tag!r}", code="reference_ambiguous")
    manifests = [dict(item.raw) for item in index.manifests]
    annotations = {**index.manifests[chosen[0]].annotations, ANNOTATION_REF_NAME: tag}
    manifests[chosen[0]]["annotations"] = annotations
    write_atomic(layout / "index.json", jsonform.dumps({**index.raw, "manifests": manifests}), mode=0o644)
