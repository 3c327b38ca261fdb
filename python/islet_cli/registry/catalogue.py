"""Which applications a store holds, loaded and kept true to what is on disk.

A directory with a file `oci-layout` is an application; its path below the root is the repository name. Each
is loaded when it is first asked for, and again when its `index.json` changes. One that does not load is
reported and not served; one that no longer loads keeps its last good state.

Source: OCI image-spec 1.1 image-layout.md; OCI distribution-spec 1.1 (repository names).
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from islet_cli.errors import IsletError, VerificationError
from islet_cli.fsutil import os_error
from islet_cli.oci import blobs
from islet_cli.oci.descriptor import Descriptor
from islet_cli.oci.digest import Digest
from islet_cli.oci.layout import HashCache, Layout, is_layout, load
from islet_cli.oci.names import is_repository

logger = logging.getLogger(__name__)

MAX_COMPONENTS = 8
"""Directories inside one another that are looked into for applications."""

ANNOTATION_DELETED = "io.islet.registry.deleted"
"""On `index.json`: digests, separated by spaces, that are still on disk only because something names them."""

Stamp = tuple[int, int, int, int]


def deleted_of(index: dict[str, Any]) -> frozenset[str]:
    """The digests that an `index.json` calls deleted."""
    annotations = index.get("annotations")
    value = annotations.get(ANNOTATION_DELETED, "") if isinstance(annotations, dict) else ""
    return frozenset(str(value).split())


def without_deleted(index: dict[str, Any], digests: Collection[str]) -> dict[str, Any]:
    """An `index.json` that no longer calls these digests deleted."""
    left = deleted_of(index) - set(digests)
    if left == deleted_of(index):
        return index
    annotations = {key: value for key, value in index["annotations"].items() if key != ANNOTATION_DELETED}
    if left:
        annotations[ANNOTATION_DELETED] = " ".join(sorted(left))
    return {**index, "annotations": annotations or None}


@dataclass(frozen=True)
class Application:
    """One application in its last good state."""

    name: str
    layout: Layout

    @cached_property
    def tags(self) -> list[str]:
        """All tags in code point order."""
        return sorted(self.layout.tags)

    @cached_property
    def deleted(self) -> frozenset[str]:
        """Digests that were deleted while something still named them; nobody is served these."""
        return deleted_of(self.layout.index.raw)

    def blob(self, digest: Digest) -> Descriptor | None:
        """A configuration, layer or other blob that is no manifest."""
        descriptor = self.layout.blobs.get(digest)
        if descriptor is None or descriptor.is_index or descriptor.is_manifest or digest in self.deleted:
            return None
        return descriptor

    def manifest(self, digest: Digest) -> Descriptor | None:
        """A manifest or index, or what `index.json` itself names, whatever its type."""
        if digest in self.deleted:
            return None
        descriptor = self.layout.blobs.get(digest)
        if descriptor is not None and (descriptor.is_index or descriptor.is_manifest):
            return descriptor
        return next((item for item in self.layout.index.manifests if item.digest == digest), None)

    @cached_property
    def referrers(self) -> dict[str, list[dict[str, Any]]]:
        """Descriptors of manifests and indexes by the digest of their subject, each list sorted by digest."""
        found: dict[str, list[dict[str, Any]]] = {}
        for digest in sorted(self.layout.blobs):
            descriptor = self.layout.blobs[digest]
            document = self._document(descriptor) if digest not in self.deleted else None
            subject = document.get("subject") if document is not None else None
            if document is not None and isinstance(subject, dict) and isinstance(subject.get("digest"), str):
                found.setdefault(subject["digest"], []).append(_referrer(descriptor, document))
        return found

    def _document(self, descriptor: Descriptor) -> dict[str, Any] | None:
        if descriptor.is_manifest:
            manifest = self.layout.manifests.get(descriptor.digest)
            return manifest.raw if manifest is not None else None
        if descriptor.is_index:
            return dict(json.loads(self.layout.read(descriptor)))
        return None


def _referrer(descriptor: Descriptor, document: dict[str, Any]) -> dict[str, Any]:
    """The entry of a referrers list; an image without artifactType is known by its configuration's type."""
    entry: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    artifact_type = document.get("artifactType")
    if not artifact_type and descriptor.is_manifest:
        artifact_type = document["config"]["mediaType"]
    if artifact_type:
        entry["artifactType"] = artifact_type
    if document.get("annotations"):
        entry["annotations"] = document["annotations"]
    return entry


@dataclass
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    stamp: Stamp | None = None
    application: Application | None = None
    error: IsletError | None = None


class Catalogue:
    """The applications below one root; safe for several threads.

    Args:
        root: The store.
    """

    def __init__(self, root: Path) -> None:
        try:
            self.root = root.resolve(strict=True)
        except OSError as error:
            raise os_error(error, root) from error
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.Lock()
        self.cache = HashCache()

    def find(self, name: str) -> Application | None:
        """The application `name`, read again if its `index.json` changed; None when there is none that loads."""
        if not is_repository(name) or (stamp := self._stamp(name)) is None:
            with self._lock:
                self._entries.pop(name, None)
            return None
        with self._lock:
            entry = self._entries.setdefault(name, _Entry())
        with entry.lock:
            if entry.stamp != stamp:
                self._load(name, entry)
                entry.stamp = stamp
            return entry.application

    def problem(self, name: str) -> IsletError | None:
        """Why `name` did not load the last time."""
        entry = self._entries.get(name)
        return entry.error if entry is not None else None

    def forget(self, name: str) -> None:
        """Read `name` again when it is next asked for, whether or not its index changes."""
        entry = self._entries.get(name)
        if entry is not None:
            with entry.lock:
                entry.stamp = None

    def names(self) -> list[str]:
        """Repository names of everything below the root that claims to be a layout, sorted."""
        return sorted(self._walk(self.root, ()))

    def preload(self) -> None:
        """Load everything; what does not load is logged."""
        for name in self.names():
            self.find(name)

    def open_blob(self, application: Application, descriptor: Descriptor) -> Path:
        """The file of a blob, hashed again when it is not the very file that was hashed at loading.

        Raises:
            VerificationError: It is gone or another one now.
        """
        layout = application.layout
        with blobs.open_blob(layout.path, descriptor) as file:
            known = self.cache.knows(file, descriptor.digest)
        if not known:
            blobs.check_blob(layout.path, descriptor)
            self.cache.remember(layout.path, descriptor)
        return layout.blob_path(descriptor.digest)

    def _load(self, name: str, entry: _Entry) -> None:
        try:
            layout = load(self.root / name, cache=self.cache)
        except IsletError as error:
            entry.error = error
            kept = "its last good state is served" if entry.application else "it is not served"
            logger.error("application %s does not load (%s): %s; %s", name, error.code, error.message, kept)
            return
        entry.application, entry.error = Application(name, layout), None
        for warning in layout.warnings:
            # Every push leaves blobs without a manifest for a while.
            logger.info("application %s: %s", name, warning)

    def _stamp(self, name: str) -> Stamp | None:
        """What tells one state of an application's index from another; None when there is no application.

        Links are not followed, and a layout inside a layout is none.
        """
        path = self.root / name
        try:
            if path.resolve(strict=True) != path:
                return None
            inside = any(is_layout(self.root / parent) for parent in Path(name).parents if parent.parts)
            if inside or not is_layout(path):
                return None
            status = (path / "index.json").stat(follow_symlinks=False)
        except OSError:
            # A layout without an index is loaded once, to be reported as what it is.
            return (0, 0, 0, 0) if is_layout(path) else None
        return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def _walk(self, directory: Path, parts: tuple[str, ...]) -> Iterator[str]:
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError as error:
            raise os_error(error, directory) from error
        for entry in entries:
            if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
                continue
            path, below = Path(entry.path), (*parts, entry.name)
            name = "/".join(below)
            if not is_layout(path):
                if len(below) < MAX_COMPONENTS:
                    yield from self._walk(path, below)
            elif is_repository(name):
                yield name
            else:
                logger.warning("directory %s: its name is not that of a repository; skipped", name)


def describe(catalogue: Catalogue, name: str) -> dict[str, Any]:
    """One application for a listing: `{"name", "tags": {tag: digest}}`, with `error` when it does not load."""
    application = catalogue.find(name)
    problem = catalogue.problem(name)
    tags: dict[str, Digest] = {}
    if application is not None:
        tags = {tag: application.layout.tags[tag].digest for tag in application.tags}
    out: dict[str, Any] = {"name": name, "tags": tags}
    if problem is not None:
        out["error"] = problem.to_json()
    return out


def require_sound(catalogue: Catalogue, name: str) -> Application:
    """The application `name`, which must load.

    Raises:
        IsletError: What loading it says.
    """
    application = catalogue.find(name)
    problem = catalogue.problem(name)
    if problem is not None:
        raise problem
    if application is None:
        raise VerificationError(f"{catalogue.root}: no application {name!r}", code="name_unknown")
    return application
