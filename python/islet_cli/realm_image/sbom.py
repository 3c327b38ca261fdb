"""The list of what a realm image is made of, as SPDX 2.3 JSON.

Source: SPDX Specification 2.3, clauses 6 (document), 7 (packages), 11 (relationships).
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from typing import Any

from islet_cli.realm_image.lock import RealmLock

_DOCUMENT = "SPDXRef-DOCUMENT"


def spdx(lock: RealmLock, *, name: str, initramfs_sha256: str, kernel_sha256: str) -> bytes:
    """Return the document; it depends on its arguments alone."""
    created = datetime.datetime.fromtimestamp(lock.created, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    image = _package("realm-image", name, "0", f"sha256:{initramfs_sha256}", initramfs_sha256, "pkg:generic/" + name)
    kernel = _package("realm-kernel", "kernel", "0", f"sha256:{kernel_sha256}", kernel_sha256, "pkg:generic/kernel")
    parts = [_debian(item) for item in lock.package]
    parts += [
        _package(item.name, item.name, item.version, None, None, f"pkg:pypi/{item.name.lower()}@{item.version}")
        for item in lock.distribution
    ]
    parts.append(
        _package("islet-cli", "islet-cli", lock.islet.version, None, None, f"pkg:pypi/islet-cli@{lock.islet.version}")
    )
    identity = hashlib.sha256(lock.to_toml().encode() + initramfs_sha256.encode()).hexdigest()
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": _DOCUMENT,
        "name": f"realm image {name}",
        "documentNamespace": f"urn:islet:sbom:{identity}",
        "creationInfo": {"created": created, "creators": [f"Tool: islet-{lock.islet.version}"]},
        "packages": [image, kernel, *parts],
        "relationships": [
            _relationship(_DOCUMENT, "DESCRIBES", image["SPDXID"]),
            _relationship(_DOCUMENT, "DESCRIBES", kernel["SPDXID"]),
            *(_relationship(image["SPDXID"], "CONTAINS", part["SPDXID"]) for part in parts),
        ],
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def _debian(item: Any) -> dict[str, Any]:
    locator = f"pkg:deb/debian/{item.name}@{item.version}?arch={item.architecture}"
    return _package(item.name, item.name, item.version, item.path, item.sha256, locator)


def _package(
    identity: str, name: str, version: str, location: str | None, sha256: str | None, locator: str
) -> dict[str, Any]:
    out: dict[str, Any] = {
        "SPDXID": "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]", "-", identity),
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "externalRefs": [
            {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": locator}
        ],
    }
    if location is not None:
        out["sourceInfo"] = location
    if sha256 is not None:
        out["checksums"] = [{"algorithm": "SHA256", "checksumValue": sha256}]
    return out


def _relationship(left: str, kind: str, right: str) -> dict[str, str]:
    return {"spdxElementId": left, "relationshipType": kind, "relatedSpdxElement": right}
