"""Atomic writes and private directories."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from islet_cli import fsutil
from islet_cli.errors import InputError, OperationError, UnavailableError


def test_write_atomic_replaces_with_the_mode_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "file"
    fsutil.write_atomic(target, b"old", mode=0o644)
    fsutil.write_atomic(target, b"new")
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_write_atomic_keeps_an_existing_file_unless_told(tmp_path: Path) -> None:
    target = tmp_path / "key"
    fsutil.write_atomic(target, b"precious")
    with pytest.raises(InputError, match="already exists") as caught:
        fsutil.write_atomic(target, b"other", overwrite=False)
    assert caught.value.code == "exists"
    assert target.read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_a_full_disk_leaves_the_old_content_and_no_remnant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    fsutil.write_atomic(target, b"old")

    def full(*_args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fsutil.os, "write", full)
    with pytest.raises(OperationError) as caught:
        fsutil.write_atomic(target, b"new")
    assert caught.value.code == "disk-full"
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_directories_writable_by_others_are_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(InputError) as caught:
        fsutil.make_private_directory(shared)
    assert caught.value.code == "not-private"


@pytest.mark.root
def test_directories_of_other_users_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    os.chown(foreign, 12345, 12345)
    with pytest.raises(InputError, match="belongs to user 12345"):
        fsutil.require_private(foreign)


def test_a_held_lock_names_its_holder(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with (
        fsutil.exclusive_lock(lock),
        pytest.raises(UnavailableError, match=str(os.getpid())),
        fsutil.exclusive_lock(lock, blocking=False),
    ):
        pass


def test_read_file_refuses_what_is_too_large_or_missing(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 11)
    with pytest.raises(InputError, match="larger than 10 bytes"):
        fsutil.read_file(tmp_path / "big", limit=10)
    with pytest.raises(InputError, match="No such file"):
        fsutil.read_file(tmp_path / "none")
