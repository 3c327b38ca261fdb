"""Manifests and blobs of a registry, checked against their digests.

Source: OCI distribution-spec 1.1 "Pulling manifests" and "Pulling blobs"; OCI image-spec 1.1 image-index.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from islet_cli.errors import InputError, OperationError, VerificationError
from islet_cli.oci.descriptor import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_DOCUMENT,
    MEDIA_INDEX,
    MEDIA_MANIFEST,
    Descriptor,
)
from islet_cli.oci.digest import Digest, digest_of, parse_digest
from islet_cli.oci.documents import Manifest, parse_index, parse_manifest, parse_object
from islet_cli.oci.names import check_tag, is_repository
from islet_cli.progress import Report, silent
from islet_cli.registry.client import blobs
from islet_cli.registry.client.address import Credentials, TlsOptions
from islet_cli.registry.client.http import Backoff, RetryableError, Transport

MAX_NESTING = 8
_OK = frozenset((200,))
_ACCEPT = ", ".join((MEDIA_INDEX, MEDIA_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST))
_ARCHITECTURES = {"aarch64": "arm64", "x86_64": "amd64"}


@dataclass(frozen=True)
class Fetched:
    """An image manifest as it came, with what led to it.

    Attributes:
        name: Repository name.
        reference: The tag or digest that was asked for.
        descriptor: Type, digest and size of the manifest.
        manifest: Its bytes.
        document: Its parsed form.
        indexes: The indexes passed on the way, outermost first, with their bytes.
        config: Bytes of the image configuration; empty until `fetch_config` was called.
    """

    name: str
    reference: str
    descriptor: Descriptor
    manifest: bytes
    document: Manifest
    indexes: list[tuple[Descriptor, bytes]] = field(default_factory=list)
    config: bytes = b""


class RegistryClient:
    """Pulls from one registry. Safe for several threads.

    Args:
        address: `HOST[:PORT]`; the host is also the TLS server name.
        tls: How the transport is secured.
        credentials: User and password, where the registry wants them.
        backoff, sleep: Replaced in tests.
    """

    def __init__(
        self,
        address: str,
        tls: TlsOptions,
        *,
        credentials: Credentials | None = None,
        backoff: Backoff | None = None,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        options: dict[str, Any] = {} if sleep is None else {"sleep": sleep}
        self._transport = Transport(address, tls, backoff=backoff, credentials=credentials, **options)

    @property
    def address(self) -> str:
        """`HOST:PORT`."""
        return str(self._transport.address)

    @property
    def warnings(self) -> list[str]:
        """What the server sent in Warning headers, escaped, each once."""
        return self._transport.warnings

    def close(self) -> None:
        """Close idle connections; the client may still be used."""
        self._transport.close()

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fetch_manifest(self, name: str, reference: str, platform: str | None = None) -> Fetched:
        """Fetch the image manifest that `reference` names, choosing by platform when it is an index.

        Args:
            name: Repository name.
            reference: Tag or digest.
            platform: `OS/ARCHITECTURE[/VARIANT]`; the default is Linux on this machine's architecture.

        Raises:
            InputError: `name_invalid`, `tag_invalid`, `digest_invalid`, `http_status` (unknown),
                `manifest_invalid`, `index_invalid`, `platform_not_found`, `nesting_too_deep`.
            VerificationError: `digest_mismatch`, `size_mismatch`, `media_type_mismatch`, a refusal of RA-TLS.
            UnavailableError: `registry_unreachable`.
        """
        check_name(name)
        wanted = parse_platform(platform)
        digest = parse_digest(reference) if ":" in reference else None
        if digest is None:
            check_tag(reference)
        descriptor, data = self._document(name, reference, digest)
        indexes: list[tuple[Descriptor, bytes]] = []
        while descriptor.is_index:
            if len(indexes) == MAX_NESTING:
                raise InputError(f"{name}: more than {MAX_NESTING} indexes inside one another", code="nesting_too_deep")
            indexes.append((descriptor, data))
            index = parse_index(data, what=f"{name}: index", media_type=descriptor.media_type, nested=True)
            child = choose(index.manifests, wanted, name)
            got, data = self._document(name, child.digest, child.digest)
            if got.size != child.size:
                raise VerificationError(
                    f"{name}: {child.digest} has {got.size} bytes, not {child.size}", code="size_mismatch"
                )
            if got.media_type != child.media_type:
                raise VerificationError(
                    f"{name}: {child.digest} is a {got.media_type}, not a {child.media_type}",
                    code="media_type_mismatch",
                )
            descriptor = child
        what = f"{name}: manifest"
        document = parse_manifest(data, what=what, media_type=descriptor.media_type)
        return Fetched(name, reference, descriptor, data, document, indexes)

    def _document(self, name: str, reference: str, digest: Digest | None) -> tuple[Descriptor, bytes]:
        """Fetch one index or manifest and check it against every digest that is known."""
        path = f"/v2/{name}/manifests/{reference}"

        def once() -> tuple[bytes, str, str]:
            with self._transport.get(path, {"Accept": _ACCEPT}, accept=_OK) as response:
                length = response.length
                data = response.read(MAX_DOCUMENT + 1)
                if length is not None and len(data) < min(length, MAX_DOCUMENT + 1):
                    raise RetryableError("the answer was cut short")
                kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
                return data, kind, response.headers.get("Docker-Content-Digest", "")

        data, kind, announced = self._transport.attempt(once)
        if len(data) > MAX_DOCUMENT:
            raise InputError(f"{name}: {reference} is larger than {MAX_DOCUMENT} bytes", code="manifest_invalid")
        told = parse_digest(announced, what=f"{name}: Docker-Content-Digest") if announced else None
        for expected in (digest, told):
            if expected is not None and not expected.matches(data):
                raise VerificationError(f"{name}: what came for {reference} is not {expected}", code="digest_mismatch")
        own = digest or told or digest_of(data)
        return Descriptor(_media_type(data, kind, f"{name}: {reference}"), own, len(data)), data

    def fetch_config(self, fetched: Fetched) -> Fetched:
        """Fetch the image configuration of a manifest (at most 4 MiB) into memory.

        Raises:
            InputError: `limit_exceeded`.
            VerificationError: `size_mismatch`, `digest_mismatch`.
        """
        descriptor = fetched.document.config
        if descriptor.size > MAX_DOCUMENT:
            raise InputError(
                f"{fetched.name}: the configuration has {descriptor.size} bytes, more than {MAX_DOCUMENT}",
                code="limit_exceeded",
            )
        path = f"/v2/{fetched.name}/blobs/{descriptor.digest}"

        def once() -> bytes:
            with self._transport.get(path, {}, accept=_OK) as response:
                data = response.read(descriptor.size + 1)
                if len(data) < descriptor.size and response.length:
                    raise RetryableError("the answer was cut short")
                return data

        data = self._transport.attempt(once)
        what = f"{fetched.name}: configuration {descriptor.digest}"
        if len(data) != descriptor.size:
            raise VerificationError(f"{what} does not have {descriptor.size} bytes", code="size_mismatch")
        if not descriptor.digest.matches(data):
            raise VerificationError(f"{what}: what came has another digest", code="digest_mismatch")
        return Fetched(**{**fetched.__dict__, "config": data})

    def fetch_blob(self, name: str, descriptor: Descriptor, directory: Path, report: Report = silent) -> Path:
        """Fetch a blob into `directory/HEX`, resuming what a broken transfer left in `HEX.part`.

        Raises:
            VerificationError: `size_mismatch`, `digest_mismatch`; nothing of the blob stays.
            UnavailableError: `registry_unreachable`; what came so far stays for the next call.
        """
        check_name(name)
        return blobs.download(self._transport, f"/v2/{name}/blobs/{descriptor.digest}", descriptor, directory, report)


def check_name(name: str) -> str:
    """Return `name`, which must be a repository name.

    Raises:
        InputError: `name_invalid`.
    """
    if not is_repository(name):
        raise InputError(
            f"{name[:300]!r} is not the name of a repository",
            code="name_invalid",
            hint="lower-case letters and digits, joined by '.', '_', '-' or '/'",
        )
    return name


def _media_type(data: bytes, content_type: str, what: str) -> str:
    """The type of a document: what the header and the document itself say must agree."""
    own = parse_object(data, what=what, code="manifest_invalid").get("mediaType")
    if own is not None and not isinstance(own, str):
        raise InputError(f"{what}: mediaType is not a string", code="manifest_invalid")
    if own and content_type and own != content_type:
        raise VerificationError(f"{what}: served as {content_type!r}, calls itself {own!r}", code="media_type_mismatch")
    media_type = own or content_type
    if media_type not in INDEX_TYPES | MANIFEST_TYPES:
        raise InputError(f"{what}: {media_type[:200]!r} is no image and no index", code="media_type_unsupported")
    return media_type


def parse_platform(text: str | None) -> tuple[str, str, str | None]:
    """Read `OS/ARCHITECTURE[/VARIANT]`; None is Linux on this machine.

    Raises:
        InputError: `platform_invalid`.
    """
    if text is None:
        return "linux", _architecture(os.uname().machine), None
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise InputError(f"{text[:100]!r} is not a platform", code="platform_invalid", hint="use OS/ARCHITECTURE")
    return parts[0], _architecture(parts[1]), parts[2] if len(parts) == 3 else None


def _architecture(name: str) -> str:
    return _ARCHITECTURES.get(name, name)


def choose(entries: tuple[Descriptor, ...], wanted: tuple[str, str, str | None], name: str) -> Descriptor:
    """The first entry of an index for the wanted platform.

    Raises:
        InputError: `platform_not_found`.
    """
    images = tuple(entry for entry in entries if entry.is_index or entry.is_manifest)
    if len(images) == 1 and images[0].platform is None:
        return images[0]
    for entry in images:
        platform = entry.platform
        if platform is None:
            continue
        there = (platform.get("os"), _architecture(str(platform.get("architecture"))))
        if there == wanted[:2] and wanted[2] in (None, platform.get("variant")):
            return entry
    has = sorted({f"{e.platform.get('os')}/{e.platform.get('architecture')}" for e in images if e.platform})
    raise InputError(
        f"{name}: no image for {'/'.join(part for part in wanted if part)}",
        code="platform_not_found",
        hint=f"there are: {', '.join(has)[:300]}" if has else None,
    )


__all__ = ["Fetched", "OperationError", "RegistryClient", "check_name", "choose", "parse_platform"]
