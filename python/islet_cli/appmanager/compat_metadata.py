"""`metadata.json` of an image partition in upstream's directory form.

Upstream's three fields come first, so that either side reads the other's file; islet's own follow in
`islet`. Byte strings are lists of numbers, as upstream's serialiser writes them.

Source: the app-manager of the Islet project, whose file this is; `islet` is ours and described here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Any

from islet_cli import strictjson
from islet_cli.appmanager.upgrade import Installed, Version, version_of
from islet_cli.errors import InputError, VerificationError
from islet_cli.keys.ecc import PublicKey
from islet_cli.signing.verify import (
    ANNOTATION_CERTIFICATE,
    ANNOTATION_SIGNATURE,
    ANNOTATION_VENDOR,
    VendorIdentity,
    verify_config,
)

HASH_SIZE = 48
"""Bytes of a configuration hash, SHA-384."""
SCHEMA = 1
MAX_SIZE = 32 << 20
"""Largest file read: a 4 MiB configuration fits in its list and base64 forms."""

_CONFIG_ORDER = (
    "created",
    "author",
    "architecture",
    "os",
    "os.version",
    "os.features",
    "variant",
    "config",
    "rootfs",
    "history",
)
_EXECUTION_ORDER = (
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Volumes",
    "WorkingDir",
    "Labels",
    "StopSignal",
)
_ROOTFS_ORDER = ("type", "diff_ids")
_HISTORY_ORDER = ("created", "author", "created_by", "comment", "empty_layer")


@dataclass(frozen=True)
class Provenance:
    """Islet's own part of the metadata: where the image came from, and what proves it.

    Attributes:
        name: The application.
        reference: Tag or digest that was asked for.
        manifest_digest, config_digest: OCI digests.
        config: The exact configuration bytes.
        signature: The vendor's DER signature over them.
        version: The image's own version.
        highest: The highest version ever installed here.
        installed_at: RFC 3339.
    """

    name: str
    reference: str
    manifest_digest: str
    config_digest: str
    config: bytes
    signature: bytes
    version: Version
    highest: Version
    installed_at: str


@dataclass(frozen=True)
class Metadata:
    """What is installed.

    Attributes:
        vendor_data: Vendor public key (SPKI) and the CA's signature over it.
        config_hash: SHA-384 of the configuration bytes.
        image_config: The parsed configuration.
        provenance: None when upstream installed it.
    """

    vendor_data: tuple[bytes, ...]
    config_hash: bytes
    image_config: dict[str, Any]
    provenance: Provenance | None = None

    @property
    def highest(self) -> Version:
        """The version that rollback is measured against.

        Raises:
            InputError, VerificationError: The stored values are malformed.
        """
        if self.provenance is not None:
            return self.provenance.highest
        return version_of(strictjson.dumps(self.image_config))

    def recheck(self, ca: PublicKey) -> Installed:
        """Check the stored signature chain against the root key again.

        Raises:
            VerificationError: It does not hold, or upstream installed the image and kept no signature
                (`annotation_missing`).
        """
        own = self.provenance
        if own is None or len(self.vendor_data) != 2:
            raise VerificationError(
                "the installed image has no signature beside it", code="annotation_missing", hint="install it again"
            )
        chain = (own.signature, *self.vendor_data)
        names = (ANNOTATION_SIGNATURE, ANNOTATION_VENDOR, ANNOTATION_CERTIFICATE)
        verify_config(own.config, {name: value.hex() for name, value in zip(names, chain, strict=True)}, ca)
        if hashlib.sha384(own.config).digest() != self.config_hash:
            raise VerificationError("the installed image's configuration has another hash", code="digest_mismatch")
        return Installed(self.config_hash, self.vendor_data, own.highest)


def of_image(
    vendor: VendorIdentity,
    config: bytes,
    *,
    name: str,
    reference: str,
    manifest_digest: str,
    signature: bytes,
    installed_at: str,
    previous: Metadata | None = None,
) -> Metadata:
    """The metadata of an image whose signature was checked.

    Args:
        vendor: Result of that check.
        config: The exact configuration bytes.
        signature: The vendor's DER signature over them.
        previous: What was installed before under this application: its highest version survives.
    """
    version = version_of(config)
    highest = version if previous is None else previous.highest.highest(version)
    provenance = Provenance(
        name=name,
        reference=reference,
        manifest_digest=manifest_digest,
        config_digest="sha256:" + hashlib.sha256(config).hexdigest(),
        config=config,
        signature=signature,
        version=version,
        highest=highest,
        installed_at=installed_at,
    )
    parsed = strictjson.loads(config, what="image configuration", code="config_invalid")
    return Metadata(tuple(vendor.vendor_data), hashlib.sha384(config).digest(), parsed, provenance)


def encode(metadata: Metadata) -> bytes:
    """Write the file: compact, no final newline; without provenance it is upstream's byte for byte."""
    value: dict[str, Any] = {
        "vendor_cert": [list(item) for item in metadata.vendor_data],
        "config_hash": list(metadata.config_hash),
        "image_config": _ordered_config(metadata.image_config),
    }
    own = metadata.provenance
    if own is not None:
        value["islet"] = {
            "schema": SCHEMA,
            "name": own.name,
            "reference": own.reference,
            "manifest_digest": own.manifest_digest,
            "config_digest": own.config_digest,
            "security_version": own.version.security_version,
            "created": own.version.created,
            "max_security_version": own.highest.security_version,
            "max_created": own.highest.created,
            "installed_at": own.installed_at,
            "config": base64.b64encode(own.config).decode("ascii"),
            "signature": base64.b64encode(own.signature).decode("ascii"),
        }
    return strictjson.dumps(value)


def decode(data: bytes) -> Metadata:
    """Read the file; unknown fields are ignored, a missing `islet` is upstream's.

    Raises:
        InputError: Malformed (`metadata_invalid`).
    """
    value = strictjson.loads(data, what="metadata.json", code="metadata_invalid")
    try:
        vendor_data = tuple(bytes(item) for item in value["vendor_cert"])
        config_hash, image_config = bytes(value["config_hash"]), value["image_config"]
        provenance = _provenance(value["islet"]) if "islet" in value else None
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise InputError(f"metadata.json: malformed: {error}", code="metadata_invalid") from error
    if len(config_hash) != HASH_SIZE or not isinstance(image_config, dict):
        raise InputError("metadata.json: malformed", code="metadata_invalid")
    return Metadata(vendor_data, config_hash, image_config, provenance)


def _provenance(value: dict[str, Any]) -> Provenance:
    if value["schema"] != SCHEMA:
        raise ValueError(f"schema {value['schema']!r} is unknown")
    texts = {key: value[key] for key in ("name", "reference", "manifest_digest", "config_digest", "installed_at")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("a text is no string")
    return Provenance(
        config=base64.b64decode(value["config"], validate=True),
        signature=base64.b64decode(value["signature"], validate=True),
        version=_version(value["security_version"], value["created"]),
        highest=_version(value["max_security_version"], value["max_created"]),
        **texts,
    )


def _version(security_version: Any, created: Any) -> Version:
    if type(security_version) is not int or security_version < 0:
        raise ValueError("a security version is no number")
    if created is not None and not isinstance(created, str):
        raise ValueError("a time is no string")
    return Version(security_version, created)


def _ordered(value: Any, order: tuple[str, ...]) -> Any:
    """Known members in upstream's order, absent for null; unknown ones after them in document order."""
    if not isinstance(value, dict):
        return value
    known = {key: value[key] for key in order if value.get(key) is not None}
    return known | {key: item for key, item in value.items() if key not in order}


def _ordered_config(config: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = _ordered(config, _CONFIG_ORDER)
    if "config" in out:
        out["config"] = _ordered(out["config"], _EXECUTION_ORDER)
    if "rootfs" in out:
        out["rootfs"] = _ordered(out["rootfs"], _ROOTFS_ORDER)
    if isinstance(out.get("history"), list):
        out["history"] = [_ordered(item, _HISTORY_ORDER) for item in out["history"]]
    return out
