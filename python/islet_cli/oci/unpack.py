"""Unpacking image layers: the work is done, and every rule held, by the Rust crate `islet-layers`.

Source: OCI image-spec 1.1, layer.md.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from islet_cli import _native
from islet_cli.errors import InputError, OperationError, VerificationError
from islet_cli.fsutil import fsync_directory, os_error

Ownership = Literal["auto", "apply", "none"]
Devices = Literal["error", "skip"]
Report = Callable[[int, int], None]
"""`report(done, total)` in bytes read, every pass counted."""

_REPORT_INTERVAL_S = 0.25


@dataclass(frozen=True)
class Limits:
    """What an image may use; exceeding any of it is `limit_exceeded`. Sizes in bytes, decompressed."""

    max_layer_bytes: int = 8 << 30
    max_image_bytes: int = 16 << 30
    max_entries: int = 1_000_000
    max_layers: int = 500
    max_extended_bytes: int = 1 << 20
    max_held_bytes: int = 64 << 20


@dataclass(frozen=True)
class LayerInput:
    """One layer: its blob's file and what descriptor (digest, size) and configuration (diff_id) say of it."""

    path: Path
    media_type: str
    digest: str
    size: int
    diff_id: str


@dataclass(frozen=True)
class Warning:
    """Something odd that is no reason to refuse: stable code and the escaped name of the entry."""

    code: str
    entry: str


class _Descriptor(Protocol):
    @property
    def media_type(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def size(self) -> int: ...


def pair_layers(
    descriptors: Sequence[_Descriptor], diff_ids: Sequence[str], blob: Callable[[str], Path]
) -> list[LayerInput]:
    """Join the manifest's layers with the configuration's diff_ids.

    Args:
        descriptors: Layer descriptors, lowest first.
        diff_ids: `rootfs.diff_ids` of the image configuration.
        blob: Gives the file of the blob with a digest.

    Raises:
        VerificationError: There are not as many diff_ids as layers (`diff_id_count_mismatch`).
    """
    if len(descriptors) != len(diff_ids):
        raise VerificationError(
            f"the image has {len(descriptors)} layers and its configuration {len(diff_ids)} diff_ids",
            code="diff_id_count_mismatch",
        )
    return [
        LayerInput(blob(str(layer.digest)), layer.media_type, str(layer.digest), layer.size, diff_id)
        for layer, diff_id in zip(descriptors, diff_ids, strict=True)
    ]


def apply_layers(
    root: Path,
    layers: Sequence[LayerInput],
    *,
    limits: Limits | None = None,
    ownership: Ownership = "auto",
    devices: Devices = "error",
    progress: Report | None = None,
) -> list[Warning]:
    """Apply layers, lowest first, to the directory `root` and nowhere else.

    No byte of a layer is written before the digest of the whole layer was found right. When this raises,
    `root` holds an unusable part of the image: the caller removes it (or uses `unpack_to`). Nothing is
    flushed: the caller does that once.

    Args:
        root: An existing directory; links on the way to it are followed, links in it never lead out.
        layers: The layers with what was promised of them.
        limits: Limits other than the defaults.
        ownership: `apply` sets owners (needs root), `none` drops set-id bits instead; `auto`: as privileged.
        devices: Refuse device entries, or skip them with a warning.
        progress: Called from this thread a few times a second.

    Raises:
        VerificationError: A rule refused the image; the code is the rule's name.
        OperationError: The file system refused (`disk-full`, `io`).
    """
    counter = _native.layers.Progress()
    apply = os.geteuid() == 0 if ownership == "auto" else ownership == "apply"

    def work() -> list[tuple[str, str]]:
        return _native.layers.apply(root, layers, limits or Limits(), apply, devices == "skip", counter)

    return [Warning(code, entry) for code, entry in _watched(work, counter, progress)]


def _watched(
    work: Callable[[], list[tuple[str, str]]], counter: _native.layers.Progress, report: Report | None
) -> list[tuple[str, str]]:
    """Run `work` in a thread, so that progress can be shown and an interrupt ends it at once."""
    outcome: list[list[tuple[str, str]]] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # carried to the thread that waits
            failure.append(error)

    thread = threading.Thread(target=run, name="unpack", daemon=True)
    thread.start()
    try:
        alive = True
        while alive:
            thread.join(_REPORT_INTERVAL_S)
            alive = thread.is_alive()
            # Also when it is over at once: whoever draws a bar learns that it is full.
            if report is not None:
                report(counter.done, counter.total)
    except BaseException:
        counter.cancel()
        thread.join()
        raise
    if failure:
        raise failure[0]
    return outcome[0]


def unpack_to(
    directory: Path,
    layers: Sequence[LayerInput],
    *,
    limits: Limits | None = None,
    ownership: Ownership = "auto",
    devices: Devices = "error",
    progress: Report | None = None,
) -> list[Warning]:
    """Unpack an image into `directory`, which must not exist or be empty: it appears whole or not at all.

    Raises:
        InputError: `directory` holds something (`exists`), or its parent cannot be written.
        VerificationError, OperationError: As `apply_layers`.
    """
    if directory.is_symlink() or (directory.exists() and not _is_empty_directory(directory)):
        raise InputError(f"{directory}: already exists", code="exists", hint="choose an empty or new directory")
    parent = directory.absolute().parent
    # The tree is built inside a closed directory: other users must not meet set-id files half-made.
    private = parent / f".{directory.name}.{secrets.token_hex(6)}.tmp"
    try:
        private.mkdir(mode=0o700)
    except OSError as error:
        raise os_error(error, parent) from error
    try:
        tree = private / "tree"
        tree.mkdir(mode=0o755)
        warnings = apply_layers(tree, layers, limits=limits, ownership=ownership, devices=devices, progress=progress)
        tree.replace(directory)
        fsync_directory(parent)
    except OperationError as error:
        if error.code == "disk-full":
            error.hint = f"free some space for {directory} and try again"
        raise
    except OSError as error:
        raise os_error(error, directory) from error
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return warnings


def _is_empty_directory(path: Path) -> bool:
    return path.is_dir() and next(path.iterdir(), None) is None
