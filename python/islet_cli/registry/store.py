"""The store's contents: add, list, remove, check. Works on files, whether or not a registry serves them.

`ROOT/NAME` is an OCI image layout. A change becomes visible by one rename: of the whole directory for a new
application, of `index.json` for another tag of one that is there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from islet_cli.errors import InputError, IsletError, VerificationError
from islet_cli.fsutil import exclusive_lock, fsync_directory, os_error, write_atomic
from islet_cli.oci import blobs, jsonform
from islet_cli.oci.descriptor import ANNOTATION_REF_NAME, LABEL_APPLICATION, MEDIA_INDEX, Descriptor
from islet_cli.oci.documents import Index, parse_config, parse_index
from islet_cli.oci.layout import Layout, is_layout, load, read_index, unknown_reference
from islet_cli.oci.names import is_repository
from islet_cli.progress import Report, silent
from islet_cli.registry.catalogue import Catalogue, describe, require_sound, without_deleted

MARKER = b'{"imageLayoutVersion": "1.0.0"}'
"""The content of `oci-layout`."""


@dataclass(frozen=True)
class Added:
    """What `add` put into the store."""

    name: str
    tags: dict[str, str]
    path: Path

    def to_json(self) -> dict[str, Any]:
        """`{"name", "tags": {tag: digest}, "path"}`."""
        return {"name": self.name, "tags": dict(self.tags), "path": str(self.path)}


def add(root: Path, source: Path, name: str | None = None, *, tag: str | None = None, report: Report = silent) -> Added:
    """Copy the images of a layout into the store, every byte checked on the way.

    Tags that the application has already move to the new images; its other tags stay.

    Args:
        root: The store, made when missing.
        source: An OCI image layout.
        name: Repository name; the default is the signed label `io.islet.application`.
        tag: Only this tag of `source`.
        report: Progress in bytes.

    Raises:
        InputError: A malformed layout, `reference_unknown`, `name_missing`, `name_invalid`, `no-tags`.
        VerificationError: A blob is missing or damaged; `name_mismatch`: the label names another application.
    """
    layout = load(source)
    chosen = _choose(layout, tag)
    name = _name(layout, chosen, name)
    goal = root / name
    with locked(root):
        require_free(root, name)
        wanted = _reachable(layout, chosen)
        if is_layout(goal):
            _merge(layout, goal, chosen, wanted, report)
        else:
            _create(layout, root, goal, chosen, wanted, report)
    return Added(name, {one: str(descriptor.digest) for one, descriptor in chosen.items()}, goal)


def list_applications(root: Path) -> list[dict[str, Any]]:
    """Every application with its tags, and the error of each that does not load."""
    catalogue = Catalogue(root)
    return [describe(catalogue, name) for name in catalogue.names()]


def remove(root: Path, name: str, *, tag: str | None = None) -> None:
    """Remove a whole application, or one of its tags (its blobs stay until the application goes).

    Raises:
        InputError: There is no such application or tag (`name_unknown`, `reference_unknown`).
    """
    path = root / name
    if not is_repository(name) or not is_layout(path):
        raise InputError(f"{root}: no application {name[:200]!r}", code="name_unknown", hint="see: islet registry list")
    with locked(root):
        if tag is None:
            # Out of sight with one rename; what is left after a kill is hidden and swept up by the next add.
            aside = root / f".removed-{secrets.token_hex(6)}"
            path.rename(aside)
            fsync_directory(path.parent)
            shutil.rmtree(aside, ignore_errors=True)
            return
        layout = load(path)
        if tag not in layout.tags:
            raise unknown_reference(path, tag, list(layout.tags))
        kept = [item for item in layout.index.manifests if item.annotations.get(ANNOTATION_REF_NAME) != tag]
        write_index(path, layout.index.raw, kept)


def check(root: Path) -> list[tuple[str, IsletError | None, list[str]]]:
    """Load every application from scratch: name, what is wrong with it, warnings."""
    catalogue = Catalogue(root)
    found: list[tuple[str, IsletError | None, list[str]]] = []
    for name in catalogue.names():
        try:
            found.append((name, None, require_sound(catalogue, name).layout.warnings))
        except IsletError as error:
            found.append((name, error, []))
    return found


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """One writer at a time; leftovers of killed ones are swept up."""
    try:
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        with exclusive_lock(root / ".lock"):
            for left in (*root.glob(".add-*"), *root.glob(".removed-*")):
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)
            yield
    except OSError as error:
        raise os_error(error, root) from error


def _choose(layout: Layout, tag: str | None) -> dict[str, Descriptor]:
    if tag is not None:
        if tag not in layout.tags:
            raise unknown_reference(layout.path, tag, list(layout.tags))
        return {tag: layout.tags[tag]}
    if not layout.tags:
        raise InputError(f"{layout.path}: has no tagged image", code="no-tags", hint="build or sign it with --tag")
    return dict(layout.tags)


def _name(layout: Layout, chosen: dict[str, Descriptor], name: str | None) -> str:
    """The repository name: as given, and as the images' own labels say."""
    labels = set()
    for digest, _descriptor in _reachable(layout, chosen).items():
        manifest = layout.manifests.get(digest)
        if manifest is not None and manifest.config.media_type.endswith("config.v1+json"):
            labels.add(parse_config(layout.read(manifest.config)).labels.get(LABEL_APPLICATION))
    named = sorted(label for label in labels if label is not None)
    if name is None:
        if len(named) != 1:
            raise InputError(
                f"{layout.path}: " + ("its images name several applications" if named else "no label names it"),
                code="name_missing",
                hint="pass --name NAME, or sign with --app NAME",
            )
        name = named[0]
    if not is_repository(name):
        raise InputError(
            f"{name[:200]!r} is not the name of a repository",
            code="name_invalid",
            hint="lower-case letters and digits, joined by '.', '_', '-' or '/'",
        )
    other = next((label for label in named if label != name), None)
    if other is not None:
        raise VerificationError(
            f"{layout.path}: the image is signed as {other[:200]!r}, not as {name!r}; realms would refuse it",
            code="name_mismatch",
            hint=f"add it as {other[:200]}",
        )
    return name


def _reachable(layout: Layout, chosen: dict[str, Descriptor]) -> dict[Any, Descriptor]:
    """All blobs of the chosen images that are there (a nondistributable layer need not be)."""
    wanted: dict[Any, Descriptor] = {}
    pending = list(chosen.values())
    while pending:
        descriptor = pending.pop()
        if descriptor.digest in wanted or descriptor.digest not in layout.blobs:
            continue
        wanted[descriptor.digest] = descriptor
        manifest = layout.manifests.get(descriptor.digest)
        if manifest is not None:
            pending.extend((manifest.config, *manifest.layers))
        elif descriptor.is_index:
            pending.extend(index_document(layout, descriptor).manifests)
    return wanted


def index_document(layout: Layout, index: Descriptor) -> Index:
    """A nested index."""
    data = layout.read(index)
    return parse_index(data, what=f"{layout.path}: {index.digest}", media_type=index.media_type, nested=True)


def require_free(root: Path, name: str) -> None:
    """No application may lie inside another."""
    parents = [root / parent for parent in Path(name).parents if parent.parts]
    goal = root / name
    inside = next((parent for parent in parents if is_layout(parent)), None)
    if inside is not None:
        raise InputError(f"{inside}: is an application itself, {name!r} cannot be inside", code="name_taken")
    if goal.exists() and not is_layout(goal) and any(goal.iterdir()):
        raise InputError(f"{goal}: holds other applications or files", code="name_taken")


def _create(
    layout: Layout,
    root: Path,
    goal: Path,
    chosen: dict[str, Descriptor],
    wanted: dict[Any, Descriptor],
    report: Report,
) -> None:
    aside = root / f".add-{secrets.token_hex(6)}"
    aside.mkdir(mode=0o755)
    try:
        _copy(layout, aside, wanted, report)
        write_atomic(aside / "oci-layout", MARKER, mode=0o644)
        write_index(aside, {}, [_tagged(descriptor, tag) for tag, descriptor in chosen.items()])
        load(aside)
        goal.parent.mkdir(parents=True, exist_ok=True)
        # An empty directory may stand there; rename replaces it.
        aside.rename(goal)
        fsync_directory(goal.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _merge(
    layout: Layout, goal: Path, chosen: dict[str, Descriptor], wanted: dict[Any, Descriptor], report: Report
) -> None:
    there = load(goal)
    missing = {digest: item for digest, item in wanted.items() if not blobs.blob_path(goal, digest).exists()}
    try:
        # What lies there unreferenced (of a removed tag perhaps) is written anew: its bytes may be wrong.
        _copy(layout, goal, {digest: item for digest, item in wanted.items() if digest not in there.blobs}, report)
        kept = [item for item in there.index.manifests if item.annotations.get(ANNOTATION_REF_NAME) not in chosen]
        added = [_tagged(descriptor, tag) for tag, descriptor in chosen.items()]
        # What was deleted of these images is there again.
        raw = without_deleted(there.index.raw, wanted)
        write_index(goal, raw, [*kept, *added])
    except BaseException:
        if read_index(goal)[0].raw == there.index.raw:
            for digest in missing:
                blobs.blob_path(goal, digest).unlink(missing_ok=True)
        raise


def _tagged(descriptor: Descriptor, tag: str) -> Descriptor:
    raw = dict(descriptor.to_json())
    raw["annotations"] = {**descriptor.annotations, ANNOTATION_REF_NAME: tag}
    return Descriptor(descriptor.media_type, descriptor.digest, descriptor.size, raw["annotations"], None, raw)


def index_bytes(old: dict[str, Any], manifests: list[Descriptor]) -> bytes:
    """An `index.json` with these entries; members that the old one had besides its list stay."""
    index = {"schemaVersion": 2, "mediaType": MEDIA_INDEX, **old, "manifests": [item.to_json() for item in manifests]}
    return jsonform.dumps(index)


def write_index(path: Path, old: dict[str, Any], manifests: list[Descriptor]) -> None:
    """Replace `index.json` atomically; see `index_bytes`."""
    write_atomic(path / "index.json", index_bytes(old, manifests), mode=0o644)


def _copy(layout: Layout, goal: Path, wanted: dict[Any, Descriptor], report: Report) -> None:
    """Copy blobs, hashing what is written."""
    total = sum(descriptor.size for descriptor in wanted.values())
    done = 0
    for descriptor in wanted.values():
        _copy_blob(layout, goal, descriptor)
        done += descriptor.size
        report(done, total)
    for directory in {blobs.blob_path(goal, descriptor.digest).parent for descriptor in wanted.values()}:
        fsync_directory(directory)


def _copy_blob(layout: Layout, goal: Path, descriptor: Descriptor) -> None:
    target = blobs.blob_path(goal, descriptor.digest)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{descriptor.digest.hex[:16]}.{secrets.token_hex(6)}.tmp")
    hasher = descriptor.digest.hasher()
    try:
        with blobs.open_blob(layout.path, descriptor) as source, temporary.open("xb") as file:
            for piece in blobs.chunks(source, descriptor.size):
                hasher.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if hasher.hexdigest() != descriptor.digest.hex:
            raise VerificationError(
                f"{layout.path}: blob {descriptor.digest} changed while it was copied", code="digest_mismatch"
            )
        temporary.chmod(0o644)
        temporary.replace(target)
    except OSError as error:
        raise os_error(error, target) from error
    finally:
        temporary.unlink(missing_ok=True)
