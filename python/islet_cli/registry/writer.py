"""Changes to the repositories of a store, as clients of the push listener make them.

Every change takes the store's lock, is tried out by loading the layout as it would be, and becomes visible
by one rename: of a blob's file, or of `index.json`. So whatever instant a kill comes, the layout on disk is
whole, upstream's server can load it and `islet sign` can work on it in place.

Something that is deleted while something else still names it cannot leave the disk without breaking the
layout. It is noted on `index.json` and served no more; the garbage collection removes it in time.

Source: OCI image-spec 1.1 image-layout.md; docs/registry.md.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from islet_cli.errors import InputError, VerificationError
from islet_cli.fsutil import fsync_directory, os_error, write_atomic
from islet_cli.oci import blobs, jsonform
from islet_cli.oci.descriptor import ABSENT_ALLOWED, ANNOTATION_REF_NAME, MEDIA_INDEX, Descriptor
from islet_cli.oci.digest import Digest
from islet_cli.oci.layout import Layout, is_layout, load, read_index
from islet_cli.registry import store
from islet_cli.registry.answers import Refused
from islet_cli.registry.catalogue import ANNOTATION_DELETED, MAX_COMPONENTS, Catalogue, deleted_of
from islet_cli.registry.pushed import Pushed
from islet_cli.registry.uploads import Upload

OCTETS = "application/octet-stream"
_TOUCH_S = 60.0

Entries = list[dict[str, Any]]


class _CannotLink(Exception):  # noqa: N818 (an outcome, not a fault)
    """Too many links, or a file system without any."""


class Writer:
    """Writes to one store; safe for several threads and beside other processes.

    Args:
        catalogue: The store as it is served; its knowledge of hashed files is shared.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._root = catalogue.root

    def unlisted(self, name: str, digest: Digest) -> Descriptor | None:
        """A blob file of `name` that is whole, whether or not a manifest names it. Makes it young again."""
        path = self._root / name
        try:
            size = blobs.blob_path(path, digest).lstat().st_size
        except OSError:
            return None
        descriptor = Descriptor(OCTETS, digest, size)
        try:
            with blobs.open_blob(path, descriptor) as file:
                if self._catalogue.cache.knows(file, digest):
                    self._touch(file, digest)
                    return descriptor
            blobs.check_blob(path, descriptor)
            self._catalogue.cache.remember(path, descriptor)
        except VerificationError:
            # A file that was damaged, or that somebody put there, is not what its name says.
            return None
        return descriptor

    def _touch(self, file: int, digest: Digest) -> None:
        """Keep the garbage collection off what a client was just told is there."""
        if time.time() - os.fstat(file).st_mtime > _TOUCH_S:
            os.utime(file)
            self._catalogue.cache.note(file, digest)

    def land(self, upload: Upload, claim: object, digest: Digest) -> None:
        """Make a finished upload a blob of its repository. The caller has checked its digest.

        Raises:
            Refused: The repository's name cannot be used.
            IsletError: The disk refused.
        """
        self._place(upload.name, digest, lambda goal: upload.move(claim, goal))
        self._catalogue.cache.note(upload.file(), digest)

    def mount(self, name: str, digest: Digest, source: str | None) -> bool:
        """Make a blob of another repository one of `name` too; without `source`, one of any repository."""
        for other in [source] if source is not None else self._catalogue.names():
            if self._mount_from(name, digest, other):
                return True
        return False

    def _mount_from(self, name: str, digest: Digest, source: str) -> bool:
        application = self._catalogue.find(source)
        if application is None or digest in application.deleted:
            return False
        known = application.layout.blobs.get(digest)
        if (known is not None and application.blob(digest) is None) or self.unlisted(source, digest) is None:
            return False
        if source == name:
            return True
        size = blobs.blob_path(self._root / source, digest).lstat().st_size
        with blobs.open_blob(self._root / source, Descriptor(OCTETS, digest, size)) as file:
            if not self._catalogue.cache.knows(file, digest):
                return False
            try:
                self._place(name, digest, lambda goal: self._link(file, goal))
            except _CannotLink:
                # The client uploads the blob instead.
                return False
            self._catalogue.cache.note(file, digest)
        return True

    def _link(self, file: int, goal: Path) -> None:
        """Make an open file `goal` too: by its descriptor, so that what was checked is what is mounted."""
        aside = self._root / f".add-{secrets.token_hex(6)}"
        try:
            # With a directory's descriptor, though it does not count here, Python follows the link as it is told to.
            os.link(f"/proc/self/fd/{file}", aside, src_dir_fd=file, follow_symlinks=True)
        except OSError as error:
            raise _CannotLink from error
        # Nothing happens when both are links to one file already, hence the second step.
        aside.replace(goal)
        aside.unlink(missing_ok=True)

    def _place(self, name: str, digest: Digest, rename: Any) -> None:
        """Let `rename(goal)` put a blob's file in place, durably; a deleted blob is there again afterwards."""
        path = self._root / name
        goal = blobs.blob_path(path, digest)
        with self._errors(path), store.locked(self._root):
            self._ensure(name)
            goal.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            rename(goal)
            fsync_directory(goal.parent)
            fsync_directory(goal.parent.parent)
            if self._catalogue.problem(name) is not None:
                # Perhaps this very blob was what it lacked.
                self._catalogue.forget(name)
                return
            index = read_index(path)[0]
            if digest in deleted_of(index.raw):
                entries = [item.to_json() for item in index.manifests]
                self._write(path, index.raw, entries, deleted_of(index.raw) - {digest})

    def put_manifest(self, name: str, pushed: Pushed, tags: Iterable[str]) -> None:
        """Store a manifest and point tags at it.

        Raises:
            Refused: 400 `MANIFEST_BLOB_UNKNOWN`: something that it names is not there; `MANIFEST_INVALID`:
                the repository would not load with it.
        """
        path = self._root / name
        digest = pushed.descriptor.digest
        with self._errors(path), store.locked(self._root):
            self._ensure(name)
            layout = self._load(path)
            gone = deleted_of(layout.index.raw)
            for needed in pushed.needed:
                self._require(name, layout, needed, gone)
            fresh = digest not in layout.blobs
            if fresh:
                blobs.write_blob(path, digest, pushed.data)
            entries = _tagged(layout, pushed.descriptor, list(tags))
            try:
                self._write(path, layout.index.raw, entries, gone - {digest})
            except Refused:
                if fresh:
                    blobs.blob_path(path, digest).unlink(missing_ok=True)
                raise

    def _require(self, name: str, layout: Layout, needed: Descriptor, gone: frozenset[str]) -> None:
        found = None if needed.digest in gone else layout.blobs.get(needed.digest) or self.unlisted(name, needed.digest)
        if found is None:
            if needed.media_type in ABSENT_ALLOWED:
                return
            raise Refused(400, "MANIFEST_BLOB_UNKNOWN", f"{name} has no {needed.digest}")
        if found.size != needed.size:
            raise Refused(
                400, "MANIFEST_INVALID", f"{needed.digest} has {found.size} bytes, the manifest says {needed.size}"
            )

    def delete_tag(self, name: str, tag: str) -> None:
        """Remove a tag; its manifest stays.

        Raises:
            Refused: 404 `NAME_UNKNOWN`, `MANIFEST_UNKNOWN`.
        """
        with self._change(name) as (path, layout):
            if tag not in layout.tags:
                raise Refused(404, "MANIFEST_UNKNOWN", f"{name} has no such tag")
            self._write(path, layout.index.raw, _untagged(layout, {tag}), deleted_of(layout.index.raw))

    def delete_manifest(self, name: str, digest: Digest) -> None:
        """Remove a manifest with all its tags.

        Raises:
            Refused: 404 `NAME_UNKNOWN`, `MANIFEST_UNKNOWN`.
        """
        with self._change(name) as (path, layout):
            gone = deleted_of(layout.index.raw)
            there = layout.blobs.get(digest)
            listed = any(item.digest == digest for item in layout.index.manifests)
            if there is None or digest in gone or not (listed or there.is_manifest or there.is_index):
                raise Refused(404, "MANIFEST_UNKNOWN", f"{name} has no such manifest")
            entries = [item.to_json() for item in layout.index.manifests if item.digest != digest]
            after = self._write(path, layout.index.raw, entries, gone | {digest})
            if digest not in after.blobs:
                blobs.blob_path(path, digest).unlink(missing_ok=True)

    def delete_blob(self, name: str, digest: Digest) -> None:
        """Remove a blob.

        Raises:
            Refused: 404 `NAME_UNKNOWN`, `BLOB_UNKNOWN`.
        """
        with self._change(name) as (path, layout):
            gone = deleted_of(layout.index.raw)
            there = layout.blobs.get(digest)
            if there is None:
                if self.unlisted(name, digest) is None:
                    raise Refused(404, "BLOB_UNKNOWN", f"{name} has no such blob")
                blobs.blob_path(path, digest).unlink(missing_ok=True)
                return
            if digest in gone or there.is_manifest or there.is_index:
                raise Refused(404, "BLOB_UNKNOWN", f"{name} has no such blob")
            entries = [item.to_json() for item in layout.index.manifests]
            self._write(path, layout.index.raw, entries, gone | {digest})

    @contextlib.contextmanager
    def _change(self, name: str) -> Iterator[tuple[Path, Layout]]:
        """Hold the lock on an application that must be there."""
        path = self._root / name
        with self._errors(path), store.locked(self._root):
            if not is_layout(path):
                raise Refused(404, "NAME_UNKNOWN", f"there is no repository {name}")
            yield path, self._load(path)

    def _load(self, path: Path) -> Layout:
        """The layout as it is on disk, which must be sound: nothing is built upon a damaged one.

        Raises:
            IsletError: What is wrong with it.
        """
        return load(path, cache=self._catalogue.cache)

    def _ensure(self, name: str) -> None:
        """Make the application, empty, unless it is there. The store is locked."""
        path = self._root / name
        if is_layout(path):
            return
        if len(Path(name).parts) > MAX_COMPONENTS:
            raise Refused(400, "NAME_INVALID", f"the name has more than {MAX_COMPONENTS} components")
        try:
            store.require_free(self._root, name)
        except InputError as error:
            raise Refused(400, "NAME_INVALID", "another repository is in the way of this name") from error
        aside = self._root / f".add-{secrets.token_hex(6)}"
        try:
            (aside / "blobs").mkdir(mode=0o755, parents=True)
            aside.chmod(0o755)
            write_atomic(aside / "oci-layout", store.MARKER, mode=0o644)
            write_atomic(aside / "index.json", _index({}, [], frozenset()), mode=0o644)
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.rename(path)
            fsync_directory(path.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _write(self, path: Path, old: dict[str, Any], entries: Entries, gone: frozenset[str]) -> Layout:
        """Replace `index.json` if the layout loads with the new one; return it as it is then.

        Raises:
            Refused: 400 `MANIFEST_INVALID`: it would not.
        """
        try:
            after = load(path, cache=self._catalogue.cache, index=_index(old, entries, gone))
        except (InputError, VerificationError) as error:
            raise Refused(400, "MANIFEST_INVALID", error.message.replace(f"{path}: ", "")) from error
        data = _index(old, entries, frozenset(digest for digest in gone if digest in after.blobs))
        write_atomic(path / "index.json", data, mode=0o644)
        return after

    @contextlib.contextmanager
    def _errors(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise os_error(error, path) from error


def _index(old: dict[str, Any], entries: Entries, gone: Iterable[str]) -> bytes:
    """The bytes of an `index.json`; members that the old one had besides stay."""
    index = {"schemaVersion": 2, "mediaType": MEDIA_INDEX, **old, "manifests": entries}
    annotations = {key: value for key, value in (old.get("annotations") or {}).items() if key != ANNOTATION_DELETED}
    if marked := sorted(gone):
        annotations[ANNOTATION_DELETED] = " ".join(marked)
    index.pop("annotations", None)
    if annotations:
        index["annotations"] = annotations
    return jsonform.dumps(index)


def _untagged(layout: Layout, tags: set[str]) -> Entries:
    """The entries of `index.json` without some tags; what loses its last entry thereby keeps one without a tag."""
    entries = [item for item in layout.index.manifests if item.annotations.get(ANNOTATION_REF_NAME) not in tags]
    kept = [item.to_json() for item in entries]
    named = {item.digest for item in entries}
    for item in layout.index.manifests:
        if item.digest not in named:
            named.add(item.digest)
            kept.append(_entry(item, None))
    return kept


def _tagged(layout: Layout, descriptor: Descriptor, tags: list[str]) -> Entries:
    """The entries of `index.json` with a manifest added: once for each tag, once at all without any."""
    entries = _untagged(layout, set(tags))
    own = [entry for entry in entries if entry["digest"] == descriptor.digest]
    if not tags:
        return entries if own else [*entries, _entry(descriptor, None)]
    with_tag = [entry for entry in own if ANNOTATION_REF_NAME in (entry.get("annotations") or {})]
    others = [entry for entry in entries if entry["digest"] != descriptor.digest]
    return [*others, *with_tag, *(_entry(descriptor, tag) for tag in dict.fromkeys(tags))]


def _entry(descriptor: Descriptor, tag: str | None) -> dict[str, Any]:
    """A descriptor for `index.json` with this tag, or with none."""
    entry = dict(descriptor.to_json())
    annotations = {key: value for key, value in descriptor.annotations.items() if key != ANNOTATION_REF_NAME}
    if tag is not None:
        annotations[ANNOTATION_REF_NAME] = tag
    entry.pop("annotations", None)
    if annotations:
        entry["annotations"] = annotations
    return entry
