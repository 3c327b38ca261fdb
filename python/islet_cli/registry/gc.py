"""Garbage collection: removing blobs that nothing refers to.

A push uploads blobs first and their manifest last, so that young blobs are left alone, and a blob that the
registry was just asked for counts as young. Each application is looked at under the store's lock, in which
pushes store their manifests: nothing that a stored manifest names is ever removed.

Source: docs/registry.md, "Pushing".
"""

from __future__ import annotations

import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from islet_cli.errors import IsletError
from islet_cli.fsutil import os_error
from islet_cli.oci.descriptor import ANNOTATION_REF_NAME, Descriptor
from islet_cli.oci.layout import HashCache, Layout, load
from islet_cli.registry import store
from islet_cli.registry.catalogue import Catalogue, deleted_of, without_deleted
from islet_cli.registry.uploads import sweep

GRACE_S = 24 * 3600.0


@dataclass
class Collected:
    """What was found in one application.

    Attributes:
        removed: Names below its directory.
        bytes: Their sizes together.
        problem: Why nothing was touched.
    """

    name: str
    removed: list[str] = field(default_factory=list)
    bytes: int = 0
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """`{"name", "removed", "bytes"}`, with `problem` when the application does not load."""
        out: dict[str, Any] = {"name": self.name, "removed": self.removed, "bytes": self.bytes}
        return out | ({"problem": self.problem} if self.problem else {})


def collect(
    root: Path, *, older_than_s: float = GRACE_S, untagged: bool = False, dry_run: bool = False
) -> list[Collected]:
    """Remove unreferenced blobs of every application, and silent uploads.

    Args:
        root: The store.
        older_than_s: Age below which a blob is left alone.
        untagged: Also drop manifests without a tag that neither an index nor a kept subject holds.
        dry_run: Change nothing.

    Raises:
        IsletError: The store cannot be read or changed. An application that does not load is reported instead.
    """
    names = Catalogue(root).names()
    if not dry_run:
        sweep(root)
    cache = HashCache()
    return [_collect_one(root, name, cache, older_than_s, untagged, dry_run) for name in names]


def _collect_one(
    root: Path, name: str, cache: HashCache, older_than_s: float, untagged: bool, dry_run: bool
) -> Collected:
    path, found = root / name, Collected(name)
    try:
        # Hashing takes a while and happens before the lock; loading again is quick then.
        load(path, cache=cache)
        with store.locked(root):
            layout = load(path, cache=cache)
            if untagged:
                layout = _drop_untagged(layout, cache, dry_run)
            _remove(layout, found, older_than_s, dry_run)
            gone = deleted_of(layout.index.raw)
            if not dry_run and (stale := [digest for digest in gone if digest not in layout.blobs]):
                store.write_index(path, without_deleted(layout.index.raw, stale), list(layout.index.manifests))
    except IsletError as error:
        found.problem = f"{error.code}: {error.message}"
    return found


def _remove(layout: Layout, found: Collected, older_than_s: float, dry_run: bool) -> None:
    for warning in layout.warnings:
        relative = warning.removeprefix("orphan_blob: ")
        file = layout.path / relative
        try:
            status = file.lstat()
            if not stat.S_ISREG(status.st_mode) or time.time() - status.st_mtime <= older_than_s:
                continue
            if not dry_run:
                file.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise os_error(error, file) from error
        found.removed.append(relative)
        found.bytes += status.st_size


def _drop_untagged(layout: Layout, cache: HashCache, dry_run: bool) -> Layout:
    """The layout without the entries that nobody can name by a tag, written unless `dry_run`."""
    kept = list(layout.index.manifests)
    while True:
        after = load(layout.path, cache=cache, index=store.index_bytes(layout.index.raw, kept))
        fewer = [item for item in kept if ANNOTATION_REF_NAME in item.annotations or _holds(after, item)]
        if len(fewer) == len(kept):
            break
        kept = fewer
    if len(kept) < len(layout.index.manifests) and not dry_run:
        store.write_index(layout.path, layout.index.raw, kept)
    return after


def _holds(layout: Layout, item: Descriptor) -> bool:
    """Whether an entry says something about a manifest that is there."""
    manifest = layout.manifests.get(item.digest)
    subject = manifest.subject.digest if manifest is not None and manifest.subject is not None else None
    if item.is_index:
        raw = store.index_document(layout, item).raw.get("subject")
        subject = raw.get("digest") if isinstance(raw, dict) else None
    return subject is not None and subject in layout.blobs and subject != item.digest
