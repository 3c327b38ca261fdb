"""Disk files: restore, growth, holes, limits, and what must never be overwritten."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from islet_cli.errors import IsletError
from islet_cli.volumes import disk
from islet_cli.volumes.disk import SharedDisk, load, require_consistent
from islet_cli.volumes.gpt import DiskError, Table

APP = uuid.UUID("8952b9e2-36ae-42b7-80f4-ebff7092ad2e")
OTHER = uuid.UUID("210078bb-e048-40b3-8c74-bf7042b7c18f")


@pytest.fixture
def shared(tmp_path: Path) -> SharedDisk:
    return SharedDisk.create(tmp_path / "disk.raw")


def write(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def read(path: Path, offset: int, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(count)


def test_new_disk_has_an_empty_table(shared: SharedDisk) -> None:
    assert require_consistent(shared.path).partitions == ()
    assert shared.path.stat().st_mode & 0o777 == 0o600


def test_names_and_alignment(shared: SharedDisk) -> None:
    found = shared.create_application(APP, 3, 2)
    assert found.image.name == "i-8952b9e236ae42b780f4ebff7092ad2e"
    assert found.data.name == "d-8952b9e236ae42b780f4ebff7092ad2e"
    assert found.image.first % 2048 == found.data.first % 2048 == 0
    assert (found.image.sectors, found.data.sectors) == (3 * 2048, 2 * 2048)
    assert shared.find(APP) == found


def test_the_file_is_sparse(shared: SharedDisk) -> None:
    shared.create_application(APP, 2048, 2048)
    status = shared.path.stat()
    assert status.st_size > 4 << 30
    assert status.st_blocks * 512 < 1 << 20


def test_damaged_primary_is_restored_from_the_backup(shared: SharedDisk) -> None:
    shared.create_application(APP, 1, 1)
    before = shared.table()
    good = read(shared.path, 0, 34 * 512)
    write(shared.path, 600, b"\xff" * 4000)
    assert not load(shared.path).consistent
    assert shared.repair()
    assert require_consistent(shared.path) == before
    assert read(shared.path, 0, 34 * 512) == good
    assert not shared.repair()


def test_lost_backup_is_restored_from_the_primary(shared: SharedDisk) -> None:
    shared.create_application(APP, 1, 1)
    write(shared.path, shared.path.stat().st_size - 512, bytes(512))
    assert shared.repair()
    require_consistent(shared.path)


def test_without_any_valid_copy_nothing_is_written(shared: SharedDisk) -> None:
    write(shared.path, 512, bytes(512))
    write(shared.path, shared.path.stat().st_size - 512, bytes(512))
    before = shared.path.read_bytes()
    for operation in (shared.repair, lambda: shared.create_application(APP, 1, 1), shared.table):
        with pytest.raises(DiskError) as raised:
            operation()
        assert raised.value.code == "disk"
    assert shared.path.read_bytes() == before


def test_file_extended_by_a_crash_is_cut_back(shared: SharedDisk) -> None:
    shared.create_application(APP, 1, 1)
    table = shared.table()
    os.truncate(shared.path, shared.path.stat().st_size + (5 << 20))
    assert shared.repair()
    assert require_consistent(shared.path) == table


def test_removed_and_reallocated_ranges_read_as_zero(shared: SharedDisk) -> None:
    first = shared.create_application(APP, 2, 2)
    write(shared.path, first.data.start_bytes, b"secret" * 1000)
    shared.remove_application(APP)
    assert read(shared.path, first.data.start_bytes, 6000) == bytes(6000)
    write(shared.path, first.image.start_bytes, b"left over")
    again = shared.create_application(OTHER, 2, 2)
    assert again.image.first == first.image.first
    assert read(shared.path, again.image.start_bytes, 9) == bytes(9)


def test_growth_covers_the_old_backup_table_with_zeros(shared: SharedDisk) -> None:
    shared.create_application(APP, 1, 1)
    found = shared.create_application(OTHER, 1, 1)
    for partition in (found.image, found.data):
        assert read(shared.path, partition.start_bytes, partition.size_bytes) == bytes(partition.size_bytes)


def test_larger_partition_keeps_its_content_and_guid(shared: SharedDisk) -> None:
    found = shared.create_application(APP, 1, 2)
    shared.create_application(OTHER, 1, 1)
    write(shared.path, found.data.start_bytes + (1 << 20), b"kept")
    shared.resize(found.data.guid, 7, keep=True)
    moved = shared.find(APP).data
    assert (moved.guid, moved.name, moved.sectors) == (found.data.guid, found.data.name, 7 * 2048)
    assert read(shared.path, moved.start_bytes + (1 << 20), 4) == b"kept"
    assert read(shared.path, moved.start_bytes + (2 << 20), 5 << 20) == bytes(5 << 20)
    assert read(shared.path, found.data.start_bytes + (1 << 20), 4) == bytes(4)
    with pytest.raises(DiskError) as raised:
        shared.resize(found.data.guid, 1, keep=True)
    assert raised.value.code == "data-at-risk"


def test_sixty_four_applications_fit_and_no_more(shared: SharedDisk) -> None:
    for number in range(64):
        shared.create_application(uuid.UUID(int=number + 1), 1, 1)
    before = shared.table()
    with pytest.raises(DiskError, match="64 applications"):
        shared.create_application(APP, 1, 1)
    assert require_consistent(shared.path) == before


@pytest.mark.parametrize(("image", "data"), [(0, 1), (1, 0), (102401, 1), (1, 4294967295)])
def test_impossible_sizes_are_refused(shared: SharedDisk, image: int, data: int) -> None:
    with pytest.raises(DiskError, match="1 to 102400"):
        shared.create_application(APP, image, data)
    assert shared.table().partitions == ()


def test_symbolic_links_are_not_followed(shared: SharedDisk, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(shared.path)
    with pytest.raises(DiskError):
        load(tmp_path / "link")


def test_failed_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "_write", full)
    with pytest.raises(DiskError, match="No space left") as raised:
        SharedDisk.create(tmp_path / "disk.raw")
    assert raised.value.hint
    assert list(tmp_path.iterdir()) == []


def test_application_disk_grows_with_its_guids_and_data(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    table = disk.create_application_disk(path, 2, 1)
    image, data = table.partitions
    write(path, data.start_bytes + 1000, b"kept")
    disk.resize_application_disk(path, 1, 3)
    found = disk.read_application_disk(path, 1, 3)
    assert (found.image.guid, found.data.guid) == (image.guid, data.guid)
    assert read(path, found.data.start_bytes + 1000, 4) == b"kept"
    with pytest.raises(DiskError) as raised:
        disk.resize_application_disk(path, 1, 2)
    assert raised.value.code == "data-at-risk"
    with pytest.raises(DiskError):
        disk.read_application_disk(path, 1, 2)


def test_overlapping_partitions_are_refused() -> None:
    from islet_cli.volumes.gpt import Partition

    table = Table(APP, 9000, (Partition(APP, 34, 100, "a"), Partition(OTHER, 100, 200, "b")))
    with pytest.raises(IsletError, match="overlaps"):
        table.validate()
