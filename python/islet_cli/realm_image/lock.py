"""`realm.lock`: what a realm image is made of, pinned.

The first build of a realm writes it, later builds obey it. `created` is the time of locking and becomes the
image's build time and the time of every file in it.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from islet_cli.config import decode_toml
from islet_cli.errors import InputError
from islet_cli.fsutil import read_file, write_atomic

LOCK_LIMIT = 1 << 20
_Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
# Package names and versions reach the command line of apt.
_Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9+.-]{0,127}\Z")]
_Version = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+:~-]{0,127}\Z")]
_Plain = Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]{1,512}\Z")]


class _Strict(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    pass


class Package(_Strict, frozen=True):
    """One Debian package: `size` in bytes, `path` is its place in the archive."""

    name: _Name
    version: _Version
    architecture: _Name
    size: Annotated[int, msgspec.Meta(ge=1, le=1 << 30)]
    sha256: _Sha256
    path: _Plain


class Distribution(_Strict, frozen=True):
    """One installed Python distribution whose files are in the image."""

    name: _Plain
    version: _Plain


class IsletFiles(_Strict, frozen=True):
    """This package's own files: `files` is the digest over all files that enter the image, or make it."""

    version: _Plain
    files: _Sha256


class KernelFiles(_Strict, frozen=True, kw_only=True):
    """A kernel given with `--kernel` and `--modules`: digests of the file and over the modules."""

    image: _Sha256
    modules: _Sha256


class RealmLock(_Strict, frozen=True, kw_only=True):
    """`realm.lock`. `kernel` is None when the kernel is one of the packages."""

    schema: Literal[1] = 1
    created: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    arch: Literal["x86_64", "aarch64"]
    islet: IsletFiles
    kernel: KernelFiles | None = None
    distribution: list[Distribution] = msgspec.field(default_factory=list)
    package: list[Package] = msgspec.field(default_factory=list)

    def to_toml(self) -> str:
        """The file's text."""
        lines = [
            "# What the realm image is made of. Written by `islet realm build`; renew it with --update-lock.",
            f"schema = {self.schema}",
            f"created = {self.created}",
            f"arch = {json.dumps(self.arch)}",
        ]
        lines += _table("[islet]", self.islet)
        if self.kernel is not None:
            lines += _table("[kernel]", self.kernel)
        for distribution in self.distribution:
            lines += _table("[[distribution]]", distribution)
        for package in self.package:
            lines += _table("[[package]]", package)
        return "\n".join(lines) + "\n"


def _table(title: str, value: _Strict) -> list[str]:
    return ["", title, *(f"{key} = {json.dumps(item)}" for key, item in msgspec.structs.asdict(value).items())]


def load(path: Path) -> RealmLock | None:
    """Read a lock file; None when there is none yet.

    Raises:
        InputError: It is malformed (`bad-config`).
    """
    if not path.exists():
        return None
    return parse(read_file(path, limit=LOCK_LIMIT), what=str(path))


def parse(data: bytes, *, what: str) -> RealmLock:
    """Parse the text of a lock file.

    Raises:
        InputError: It is malformed, or names a package twice (`bad-config`).
    """
    lock = decode_toml(data, RealmLock, what=what)
    names = [package.name for package in lock.package]
    if len(set(names)) != len(names):
        raise InputError(
            f"{what}: lists a package twice", code="bad-config", hint="run: islet realm build --update-lock"
        )
    return lock


def save(path: Path, lock: RealmLock) -> None:
    """Write the lock file atomically."""
    write_atomic(path, lock.to_toml().encode(), mode=0o644)


def locking_time() -> int:
    """Now, or SOURCE_DATE_EPOCH when that is set.

    Raises:
        InputError: SOURCE_DATE_EPOCH is not a number of seconds that fits (`bad-time`).
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        return int(time.time())
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) >= 1 << 32:
        raise InputError(f"SOURCE_DATE_EPOCH={text!r}: not seconds since 1970 in 32 bits", code="bad-time")
    return int(text)
