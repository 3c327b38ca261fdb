"""Reference values: which measurements a relying party accepts.

Source: the reference value document of the Islet project's realm-verifier. Members that are not read here are
information for people. Our own member `islet` says what the values describe:
`{"kind": "pull"}` (REMs still zero, the state in which images are fetched) or `{"kind": "running"}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from islet_cli import strictjson
from islet_cli.attestation.errors import TokenError
from islet_cli.attestation.token import RealmToken
from islet_cli.errors import InputError
from islet_cli.fsutil import read_file

MAX_DOCUMENT = 1 << 20
HASH_SIZES = {"sha-256": 32, "sha-512": 64}
_HEX = re.compile(r"[0-9a-fA-F]*", re.ASCII)

Kind = Literal["pull", "running"]
RemSet = tuple[bytes, bytes, bytes, bytes]


@dataclass(frozen=True)
class ReferenceValues:
    """The accepted measurements of one realm.

    Attributes:
        rim: Hash length.
        rems: Alternatives, each REM0..REM3.
        hash_algo: `sha-256` or `sha-512`.
        name: `realm.name` of the document.
        kind: `pull`, `running`, or None in documents of others.
        version: `realm.version` of the document.
        source: The file, for messages.
    """

    rim: bytes
    rems: tuple[RemSet, ...]
    hash_algo: str
    name: str = "unnamed"
    kind: Kind | None = None
    version: str | None = None
    source: str | None = None

    @classmethod
    def load(cls, path: Path) -> ReferenceValues:
        """Read a document from a file; see `parse`."""
        return load(path)

    @classmethod
    def parse(cls, document: bytes | dict[str, Any], *, what: str = "reference values") -> ReferenceValues:
        """Read a document; see the function `parse`."""
        return parse(document, what=what)

    def to_json(self) -> dict[str, Any]:
        """The upstream document; `parse` reads it back."""
        realm: dict[str, Any] = {"name": self.name}
        if self.version is not None:
            realm["version"] = self.version
        realm["attestation-protocol"] = "HTTPS/RA-TLSv1.0"
        realm["reference-values"] = {
            "rim": self.rim.hex(),
            "rems": [[rem.hex() for rem in rems] for rems in self.rems],
            "hash-algo": self.hash_algo,
        }
        document: dict[str, Any] = {"version": "0.1", "realm": realm}
        if self.kind is not None:
            document["islet"] = {"kind": self.kind}
        return document

    def to_bytes(self) -> bytes:
        """The document as indented UTF-8 JSON."""
        return json.dumps(self.to_json(), indent=2, ensure_ascii=False).encode() + b"\n"


def parse(
    document: bytes | dict[str, Any], *, what: str = "reference values", source: str | None = None
) -> ReferenceValues:
    """Read a document.

    Raises:
        InputError: `json`, `refval-structure`, `refval-hash-algo`, `refval-rim-short`, `refval-rim`,
            `refval-no-rems`, `refval-rems-count`, `refval-rem-length`, `refval-rem`.
    """
    content = strictjson.loads(document, what=what) if isinstance(document, bytes) else document
    realm = content.get("realm") if isinstance(content, dict) else None
    values = realm.get("reference-values") if isinstance(realm, dict) else None
    if not isinstance(realm, dict) or not _has_structure(values):
        raise InputError(
            f"{what}: realm/reference-values with rim, rems and hash-algo is missing or ill-typed",
            code="refval-structure",
        )
    assert isinstance(values, dict)
    size = HASH_SIZES.get(values["hash-algo"])
    if size is None:
        raise InputError(
            f"{what}: hash-algo {values['hash-algo']!r} is not sha-256 or sha-512", code="refval-hash-algo"
        )
    rim = _rim(values["rim"], size, what)
    if not values["rems"]:
        raise InputError(f"{what}: no set of REMs", code="refval-no-rems")
    rems = tuple(_rem_set(rem_set, size, what) for rem_set in values["rems"])
    name, version = realm.get("name"), realm.get("version")
    return ReferenceValues(
        rim,
        rems,
        values["hash-algo"],
        name if isinstance(name, str) and name else "unnamed",
        _kind(content),
        version if isinstance(version, str) else None,
        source,
    )


def load(path: Path) -> ReferenceValues:
    """Read a document from a file; see `parse`."""
    return parse(read_file(path, limit=MAX_DOCUMENT), what=str(path), source=str(path))


def _kind(content: dict[str, Any]) -> Kind | None:
    own = content.get("islet")
    kind = own.get("kind") if isinstance(own, dict) else None
    if kind == "pull":
        return "pull"
    return "running" if kind == "running" else None


def _has_structure(values: Any) -> bool:
    return (
        isinstance(values, dict)
        and isinstance(values.get("rim"), str)
        and isinstance(values.get("hash-algo"), str)
        and isinstance(values.get("rems"), list)
        and all(isinstance(rems, list) and all(isinstance(rem, str) for rem in rems) for rems in values["rems"])
    )


def _rim(text: str, size: int, what: str) -> bytes:
    if len(text) < 2 * size:
        raise InputError(f"{what}: rim has {len(text)} characters, not {2 * size}", code="refval-rim-short")
    if len(text) > 2 * size or not _HEX.fullmatch(text):
        raise InputError(f"{what}: rim is not {2 * size} hexadecimal digits", code="refval-rim")
    return bytes.fromhex(text)


def _rem_set(rems: list[str], size: int, what: str) -> RemSet:
    if len(rems) != 4:
        raise InputError(f"{what}: a set has {len(rems)} REMs, not 4", code="refval-rems-count")
    for rem in rems:
        if len(rem) != 2 * size:
            raise InputError(f"{what}: a REM has {len(rem)} characters, not {2 * size}", code="refval-rem-length")
        if not _HEX.fullmatch(rem):
            raise InputError(f"{what}: a REM is not hexadecimal", code="refval-rem")
    first, second, third, fourth = (bytes.fromhex(rem) for rem in rems)
    return first, second, third, fourth


def match(realm: RealmToken, references: Sequence[ReferenceValues]) -> ReferenceValues:
    """Find the reference values that a realm token meets: RIM, then one set of REMs, then the hash algorithm.

    Raises:
        TokenError: `no-reference` (nothing to compare with), `rim`, `rems`, `hash-algo`.
    """
    if not references:
        raise TokenError(
            "there are no reference values to compare with", code="no-reference", hint="publish or name some"
        )
    with_rim = [reference for reference in references if reference.rim == realm.rim]
    if not with_rim:
        raise TokenError(f"RIM {realm.rim.hex()} is not among the reference values of {_names(references)}", code="rim")
    with_rems = [reference for reference in with_rim if realm.rems in reference.rems]
    if not with_rems:
        shown = ", ".join(f"REM{index} {rem.hex()}" for index, rem in enumerate(realm.rems) if any(rem))
        raise TokenError(
            f"{shown or 'all REMs zero'}: no such set among the reference values of {_names(with_rim)}", code="rems"
        )
    for reference in with_rems:
        if reference.hash_algo == realm.hash_algo:
            return reference
    raise TokenError(
        f"the realm measures with {realm.hash_algo}, the reference values of {_names(with_rems)} with another",
        code="hash-algo",
    )


def _names(references: Sequence[ReferenceValues]) -> str:
    names = list(dict.fromkeys(f"{ref.name} ({ref.kind})" if ref.kind else ref.name for ref in references))
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
