"""A published realm as a directory: made aside and put in place in one step."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from islet_cli.errors import InputError
from islet_cli.fsutil import fsync_directory, os_error, write_atomic
from islet_cli.launch.manifest import Manifest

RIM_NAME = "rim"
MANIFEST_NAME = "realm.toml"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def place(directory: Path, contents: Mapping[str, bytes | Path], *, aside: Path) -> None:
    """Make `directory` hold exactly `contents`: bytes, or files to link or copy.

    Args:
        directory: May exist when it is an earlier bundle.
        contents: By file name.
        aside: Directory on the same file system, where the new one is prepared.

    Raises:
        InputError: `directory` exists and is no bundle (`exists`).
        OperationError: The disk is full.
    """
    if directory.exists() and any(directory.iterdir()) and not (directory / RIM_NAME).is_file():
        raise InputError(
            f"{directory}: exists and is not a published realm", code="exists", hint="name a new directory with -o"
        )
    fresh = aside / f".{directory.name}.{secrets.token_hex(4)}.tmp"
    try:
        fresh.mkdir(mode=0o755)
        for name, content in contents.items():
            if isinstance(content, bytes):
                write_atomic(fresh / name, content, mode=0o644)
            else:
                _link(content, fresh / name)
        fsync_directory(fresh)
        _put(fresh, directory)
    except OSError as error:
        raise os_error(error, directory) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    """A hard link, since builds replace files and never change them; a copy on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _put(fresh: Path, directory: Path) -> None:
    """Move `fresh` to `directory`; when that exists, exchange the two, so that readers always find one of them."""
    if not directory.exists():
        fresh.rename(directory)
    else:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(_AT_FDCWD, os.fsencode(fresh), _AT_FDCWD, os.fsencode(directory), _RENAME_EXCHANGE) != 0:
            # A file system without the exchange: there is a moment without the directory.
            old = fresh.with_suffix(".old")
            directory.rename(old)
            fresh.rename(directory)
            shutil.rmtree(old)
    fsync_directory(directory.parent)


def manifest_text(manifest: Manifest, image: Mapping[str, str]) -> str:
    """The manifest with every default written out, and with `image` instead of its own paths."""
    value: dict[str, Any] = msgspec.to_builtins(manifest, enc_hook=str)
    value.pop("path")
    value["image"] = {**value["image"], **image}
    sections = {name: item for name, item in value.items() if isinstance(item, dict)}
    lines = [f"{name} = {_toml(item)}" for name, item in value.items() if name not in sections]
    for name, section in sections.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(item)}" for key, item in section.items() if item is not None)]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items() if item is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # JSON's strings, numbers and booleans are TOML's as well.
    return json.dumps(value, ensure_ascii=False)
