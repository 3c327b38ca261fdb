"""The directory form of an installed image survives a kill at every step."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from islet_cli import _native
from islet_cli.appmanager.compat import STEPS, ImagePartition
from islet_cli.appmanager.compat_metadata import Metadata
from islet_cli.errors import OperationError

OLD = Metadata((b"key", b"certificate"), b"\x01" * 48, {"rootfs": {"type": "layers", "diff_ids": []}})
NEW = Metadata((b"key", b"certificate"), b"\x02" * 48, {"rootfs": {"type": "layers", "diff_ids": []}})


def _fill(content: str) -> Callable[[Path, Path], None]:
    def fill(temp: Path, unpack: Path) -> None:
        (temp / "blob").write_text("blob")
        (unpack / "sub").mkdir()
        (unpack / "sub" / "file").write_text(content)

    return fill


def _content(partition: ImagePartition) -> str:
    return (partition.image / "sub" / "file").read_text()


def _killed_at(partition: ImagePartition, at: str) -> None:
    """Run the installation in a child that kills itself with SIGKILL after the step `at`."""
    child = os.fork()
    if child == 0:

        def step(name: str) -> None:
            if name == at:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            partition.install(NEW, _fill("new"), step=step)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.fixture(params=["exchange", "rename"])
def partition(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ImagePartition:
    if request.param == "rename":
        monkeypatch.setattr(_native.layers, "exchange", lambda _one, _other: False)
    elif not _native.layers.exchange(_directory(tmp_path / "a"), _directory(tmp_path / "b")):
        pytest.skip("this file system cannot exchange names")
    return ImagePartition(_directory(tmp_path / "partition"))


def _directory(path: Path) -> Path:
    path.mkdir()
    return path


def _names(partition: ImagePartition) -> list[str]:
    return sorted(item.name for item in partition.directory.iterdir())


@pytest.mark.parametrize("at", STEPS)
def test_a_kill_leaves_old_or_new(partition: ImagePartition, at: str) -> None:
    partition.install(OLD, _fill("old"))
    _killed_at(partition, at)
    found = partition.recover()
    assert (found, _content(partition)) == (
        (NEW, "new") if STEPS.index(at) >= STEPS.index("switched") else (OLD, "old")
    )
    assert _names(partition) == ["img", "metadata.json"]
    partition.install(NEW, _fill("newer"))
    assert _content(partition) == "newer"


@pytest.mark.parametrize("at", STEPS)
def test_a_kill_of_the_first_installation(partition: ImagePartition, at: str) -> None:
    _killed_at(partition, at)
    found = partition.recover()
    if STEPS.index(at) >= STEPS.index("switched"):
        assert (found, _content(partition), _names(partition)) == (NEW, "new", ["img", "metadata.json"])
    else:
        assert (found, _names(partition)) == (None, [])


def test_a_kill_between_the_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partition = ImagePartition(tmp_path)
    partition.install(OLD, _fill("old"))
    monkeypatch.setattr(_native.layers, "exchange", lambda _one, _other: False)
    rename = Path.rename

    class Killed(BaseException):
        pass

    def half(self: Path, target: Path) -> Path:
        if self.name == "unpack":
            raise Killed
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", half)
    with pytest.raises(Killed):
        partition.install(NEW, _fill("new"))
    monkeypatch.setattr(Path, "rename", rename)
    assert "img" not in _names(partition)
    assert (partition.recover(), _content(partition)) == (OLD, "old")


def test_a_failed_installation_changes_nothing(partition: ImagePartition) -> None:
    partition.install(OLD, _fill("old"))

    def fail(_temp: Path, unpack: Path) -> NoReturn:
        (unpack / "half").touch()
        raise OperationError("disk full", code="disk-full")

    with pytest.raises(OperationError):
        partition.install(NEW, fail)
    assert (_names(partition), _content(partition)) == (["img", "metadata.json"], "old")


def test_leftovers_of_a_crash_are_not_merged(partition: ImagePartition) -> None:
    (partition.directory / "unpack").mkdir()
    (partition.directory / "unpack" / "stale").touch()
    (partition.directory / ".metadata.json.new.0.tmp").touch()
    partition.install(NEW, _fill("new"))
    assert [item.name for item in partition.image.iterdir()] == ["sub"]
    assert _names(partition) == ["img", "metadata.json"]


@pytest.mark.parametrize("broken", ["img", "metadata.json", "journal"])
def test_what_does_not_fit_together_is_removed(partition: ImagePartition, broken: str) -> None:
    partition.install(OLD, _fill("old"))
    if broken == "img":
        partition.image.rename(partition.directory / "elsewhere")
    else:
        (partition.directory / broken).write_bytes(b"{")
    assert partition.recover() is None
    assert set(_names(partition)) <= {"elsewhere"}


def test_links_in_place_of_directories_are_not_followed(partition: ImagePartition, tmp_path: Path) -> None:
    outside = _directory(tmp_path / "outside")
    (outside / "kept").touch()
    for name in ("unpack", "temp", "img"):
        (partition.directory / name).symlink_to(outside)
    assert partition.recover() is None
    assert (outside / "kept").exists()
