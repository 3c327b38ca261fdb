"""Loading an OCI image layout, with everything checked before it is used.

Source: OCI image-spec 1.1, image-layout.md.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from islet_cli import strictjson
from islet_cli.errors import InputError, VerificationError
from islet_cli.fsutil import read_file
from islet_cli.oci import blobs
from islet_cli.oci.descriptor import (
    ABSENT_ALLOWED,
    ANNOTATION_REF_NAME,
    MAX_DOCUMENT,
    Descriptor,
)
from islet_cli.oci.digest import Digest, digest_of
from islet_cli.oci.documents import Index, Manifest, parse_index, parse_manifest
from islet_cli.oci.names import check_tag
from islet_cli.progress import Report, silent

MAX_DEPTH = 8
"""Indexes below `index.json` on one path."""


class HashCache:
    """Remembers which files had which digest, by device, inode, size and both times.

    Whoever loads the same layout again and again (a registry that reloads) shares one of these; a
    changed file has another change time and is hashed again.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], Digest] = {}

    @staticmethod
    def _key(status: os.stat_result) -> tuple[int, ...]:
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def knows(self, file: int, digest: Digest) -> bool:
        """Whether the open file is known to have `digest`."""
        return self._known.get(self._key(os.fstat(file))) == digest

    def remember(self, root: Path, descriptor: Descriptor) -> None:
        """Note that the blob was just found to have its digest."""
        with blobs.open_blob(root, descriptor) as file:
            self.note(file, descriptor.digest)

    def note(self, file: int, digest: Digest) -> None:
        """Note that the open file has `digest`, as its state is now."""
        self._known[self._key(os.fstat(file))] = digest


@dataclass
class Layout:
    """A layout in which everything reachable was found to be right.

    Attributes:
        path: The directory.
        index: `index.json`.
        index_digest: SHA-256 of `index.json`, to notice a change.
        tags: Descriptors of `index.json` by tag.
        blobs: Every reachable blob by digest, that of a nondistributable layer only when it is there.
        manifests: Every reachable manifest by digest.
        warnings: `orphan_blob: …` lines.
    """

    path: Path
    index: Index
    index_digest: Digest
    tags: dict[str, Descriptor] = field(default_factory=dict)
    blobs: dict[Digest, Descriptor] = field(default_factory=dict)
    manifests: dict[Digest, Manifest] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def resolve(self, reference: str) -> Descriptor:
        """Find a tag of `index.json`, or the digest of a reachable index or manifest.

        Raises:
            InputError: `reference_unknown`.
        """
        if reference in self.tags:
            return self.tags[reference]
        for digest, descriptor in self.blobs.items():
            if digest == reference and (descriptor.is_index or descriptor.is_manifest):
                return descriptor
        raise unknown_reference(self.path, reference, list(self.tags))

    def read(self, descriptor: Descriptor, limit: int = MAX_DOCUMENT) -> bytes:
        """Read a blob; size and digest are checked once more."""
        return blobs.read_blob(self.path, descriptor, limit)

    def blob_path(self, digest: Digest) -> Path:
        """The file of a blob."""
        return blobs.blob_path(self.path, digest)


def unknown_reference(path: Path, reference: str, tags: list[str]) -> InputError:
    """The error for a reference that the layout does not have."""
    return InputError(
        f"{path}: no image {reference[:200]!r}",
        code="reference_unknown",
        hint="tags: " + ", ".join(sorted(tags)) if tags else "it has no tags: use a digest",
    )


def read_marker(path: Path) -> None:
    """Check the file `oci-layout`.

    Raises:
        InputError: `layout_missing`, `layout_invalid`, `layout_version`.
    """
    data = _read_plain(path / "oci-layout", "layout_missing", "layout_invalid")
    value = strictjson.loads(data, what=f"{path}: oci-layout", code="layout_invalid")
    version = value.get("imageLayoutVersion") if isinstance(value, dict) else None
    if not isinstance(version, str):
        raise InputError(f"{path}: oci-layout has no imageLayoutVersion", code="layout_invalid")
    if version != "1.0.0":
        raise InputError(f"{path}: image layout version {version[:40]!r} is unknown", code="layout_version")


def _read_plain(path: Path, missing: str, invalid: str) -> bytes:
    """Read a small regular file that must not be a symbolic link."""
    try:
        status = path.lstat()
    except OSError:
        status = None
    if status is None or not stat.S_ISREG(status.st_mode):
        hint = "an OCI image layout holds oci-layout, index.json and blobs/"
        raise InputError(f"{path.parent}: there is no file {path.name}", code=missing, hint=hint)
    if status.st_size > MAX_DOCUMENT:
        raise InputError(f"{path}: more than {MAX_DOCUMENT} bytes", code=invalid)
    return read_file(path, limit=MAX_DOCUMENT)


def read_index(path: Path) -> tuple[Index, bytes]:
    """Read and parse `index.json`; also returns its bytes.

    Raises:
        InputError: `index_missing`, `index_invalid`, or an error of a descriptor.
    """
    data = _read_plain(path / "index.json", "index_missing", "index_invalid")
    return parse_index(data, what=f"{path}: index.json"), data


def load(path: Path, *, report: Report = silent, cache: HashCache | None = None, index: bytes | None = None) -> Layout:
    """Load a layout: every document parsed strictly, every reachable blob hashed.

    Args:
        path: The layout directory.
        report: Progress in bytes hashed.
        cache: Spares hashing what is known not to have changed.
        index: Load as if `index.json` held this, to see whether it may be written.

    Raises:
        InputError: The layout or one of its documents is malformed.
        VerificationError: A blob is missing or is not what its descriptor says.
    """
    read_marker(path)
    data = index if index is not None else read_index(path)[1]
    parsed = parse_index(data, what=f"{path}: index.json")
    layout = Layout(path, parsed, digest_of(data))
    for descriptor in parsed.manifests:
        _add_tag(layout, descriptor)
    _Walk(layout, report, cache).run()
    layout.warnings.extend(f"orphan_blob: {name}" for name in _orphans(layout))
    return layout


def _add_tag(layout: Layout, descriptor: Descriptor) -> None:
    tag = descriptor.annotations.get(ANNOTATION_REF_NAME)
    if tag is None:
        return
    check_tag(tag)
    if tag in layout.tags:
        raise InputError(f"{layout.path}: tag {tag!r} stands twice in index.json", code="tag_duplicate")
    layout.tags[tag] = descriptor


class _Walk:
    """Visits everything reachable from `index.json`, each blob once."""

    def __init__(self, layout: Layout, report: Report, cache: HashCache | None) -> None:
        self._layout = layout
        self._report = report
        self._cache = cache
        self._done = 0
        # Levels of indexes at and below a visited node: a shared index is not walked again, yet its
        # depth counts on every path to it.
        self._heights: dict[tuple[Digest, str, int], int] = {}

    def run(self) -> None:
        for descriptor in self._layout.index.manifests:
            self._visit(descriptor, 0)

    def _visit(self, descriptor: Descriptor, depth: int) -> int:
        """Check one node of the index tree `depth` indexes down; return the index levels from it on."""
        key = (descriptor.digest, descriptor.media_type, descriptor.size)
        if depth + (1 if descriptor.is_index else 0) > MAX_DEPTH or depth + self._heights.get(key, 0) > MAX_DEPTH:
            raise InputError(
                f"{self._layout.path}: more than {MAX_DEPTH} indexes inside one another", code="nesting_too_deep"
            )
        if key not in self._heights:
            self._heights[key] = self._enter(descriptor, depth)
        return self._heights[key]

    def _enter(self, descriptor: Descriptor, depth: int) -> int:
        what = f"{self._layout.path}: {descriptor.digest}"
        if descriptor.is_index:
            data = self._document(descriptor, "index_invalid")
            index = parse_index(data, what=what, media_type=descriptor.media_type, nested=True)
            return 1 + max((self._visit(child, depth + 1) for child in index.manifests), default=0)
        if descriptor.is_manifest:
            data = self._document(descriptor, "manifest_invalid")
            manifest = parse_manifest(data, what=what, media_type=descriptor.media_type)
            self._layout.manifests[descriptor.digest] = manifest
            for blob in (manifest.config, *manifest.layers):
                self._blob(blob)
            return 0
        self._blob(descriptor)
        return 0

    def _document(self, descriptor: Descriptor, code: str) -> bytes:
        """Read an index or manifest; one that is too large to be one is invalid, but only if it is there."""
        if descriptor.size > MAX_DOCUMENT:
            self._blob(descriptor)
            raise InputError(f"{self._layout.path}: {descriptor.digest} has more than {MAX_DOCUMENT} bytes", code=code)
        data = blobs.read_blob(self._layout.path, descriptor)
        self._layout.blobs.setdefault(descriptor.digest, descriptor)
        return data

    def _blob(self, descriptor: Descriptor) -> None:
        known = self._layout.blobs.get(descriptor.digest)
        if known is not None and known.size == descriptor.size:
            return
        try:
            self._check(descriptor)
        except VerificationError as error:
            if error.code == "blob_missing" and descriptor.media_type in ABSENT_ALLOWED:
                return
            raise
        self._layout.blobs.setdefault(descriptor.digest, descriptor)

    def _check(self, descriptor: Descriptor) -> None:
        root = self._layout.path
        if self._cache is not None:
            with blobs.open_blob(root, descriptor) as file:
                if self._cache.knows(file, descriptor.digest):
                    return
        blobs.check_blob(root, descriptor, self._progress)
        if self._cache is not None:
            self._cache.remember(root, descriptor)

    def _progress(self, count: int) -> None:
        self._done += count
        self._report(self._done, 0)


def _orphans(layout: Layout) -> Iterator[str]:
    """Names below `blobs/` that nothing refers to."""
    for algorithm in ("sha256", "sha512"):
        try:
            names = sorted(entry.name for entry in (layout.path / "blobs" / algorithm).iterdir())
        except OSError:
            continue
        for name in names:
            if f"{algorithm}:{name}" not in layout.blobs:
                yield f"blobs/{algorithm}/{name}"


def is_layout(path: Path) -> bool:
    """Whether `path` is a directory that claims to be an image layout."""
    return (path / "oci-layout").is_file()


def descriptors(path: Path, index: Index) -> Iterator[Descriptor]:
    """Yield every descriptor of `index` and of the indexes nested in it; manifests are not opened.

    Raises:
        IsletError: A nested index is missing, malformed or nested too deep.
    """
    pending = [(descriptor, 1) for descriptor in reversed(index.manifests)]
    seen: set[tuple[Digest, str]] = set()
    while pending:
        descriptor, depth = pending.pop()
        yield descriptor
        key = (descriptor.digest, descriptor.media_type)
        if not descriptor.is_index or key in seen:
            continue
        seen.add(key)
        if depth > MAX_DEPTH:
            raise InputError(f"{path}: more than {MAX_DEPTH} indexes inside one another", code="nesting_too_deep")
        data = blobs.read_blob(path, descriptor)
        nested = parse_index(data, what=f"{path}: {descriptor.digest}", media_type=descriptor.media_type, nested=True)
        pending.extend((child, depth + 1) for child in reversed(nested.manifests))
