"""Partition tables under any sequence of operations, any crash and any hostile bytes."""

from __future__ import annotations

import os
import tempfile
import uuid
import zlib
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from islet_cli.errors import IsletError
from islet_cli.volumes import disk
from islet_cli.volumes.disk import SharedDisk, require_consistent
from islet_cli.volumes.gpt import DiskError, application_table

APPS = [uuid.UUID(int=n + 1) for n in range(4)]
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["create", "remove", "grow", "image"]), st.sampled_from(APPS), st.integers(1, 5)),
    max_size=10,
)


def apply(shared: SharedDisk, known: dict[uuid.UUID, int], step: tuple[str, uuid.UUID, int]) -> None:
    """Run one operation and keep `known` (application -> data size in MiB) as it must be."""
    what, app, size = step
    if what == "create" and app not in known:
        found = shared.create_application(app, size, size)
        fill(shared.path, found.image.start_bytes, b"I" + app.bytes)
        fill(shared.path, found.data.start_bytes, b"D" + app.bytes)
        known[app] = size
    elif what == "remove" and app in known:
        shared.remove_application(app)
        del known[app]
    elif what == "grow" and app in known:
        shared.resize(shared.find(app).data.guid, known[app] + size, keep=True)
        known[app] += size
    elif what == "image" and app in known:
        shared.resize(shared.find(app).image.guid, size, keep=False)


def fill(path: Path, offset: int, mark: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(mark)


def peek(path: Path, offset: int, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(count)


@settings(max_examples=40, deadline=None)
@given(OPERATIONS)
def test_every_sequence_keeps_the_others_in_place(steps: list[tuple[str, uuid.UUID, int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        shared = SharedDisk.create(Path(directory) / "disk.raw")
        known: dict[uuid.UUID, int] = {}
        for step in steps:
            before = shared.applications()
            apply(shared, known, step)
            table = require_consistent(shared.path)
            after = shared.applications()
            assert after.keys() == known.keys()
            assert len(table.partitions) == 2 * len(known)
            for app, size in known.items():
                assert after[app].data.sectors == size * 2048
                assert after[app].data.first % 2048 == after[app].image.first % 2048 == 0
                assert peek(shared.path, after[app].data.start_bytes, 17) == b"D" + app.bytes
                if app != step[1] and app in before:
                    assert after[app] == before[app]


class _Crash(Exception):
    pass


@settings(max_examples=60, deadline=None)
@given(OPERATIONS, st.integers(0, 30), st.booleans())
def test_a_kill_at_any_write_leaves_the_old_or_the_new_table(
    steps: list[tuple[str, uuid.UUID, int]], crash_at: int, torn: bool
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        shared = SharedDisk.create(Path(directory) / "disk.raw")
        known: dict[uuid.UUID, int] = {}
        write, count = disk._write, 0

        def dying(descriptor: int, data: bytes, offset: int) -> None:
            nonlocal count
            count += 1
            if count > crash_at:
                if torn:
                    write(descriptor, data[: len(data) // 2], offset)
                raise _Crash
            write(descriptor, data, offset)

        before = shared.table().partitions
        step = None
        with mock.patch.object(disk, "_write", dying):
            try:
                for step in steps:
                    before = shared.table().partitions
                    apply(shared, known, step)
            except _Crash:
                pass
        shared.repair()
        after = require_consistent(shared.path).partitions
        untouched = [entry for entry in before if step is None or not entry.name.endswith(step[1].hex)]
        assert [entry for entry in after if entry in untouched] == untouched
        for app in known:
            if step is None or app != step[1]:
                assert peek(shared.path, shared.find(app).data.start_bytes, 17) == b"D" + app.bytes


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 17407), st.integers(0, 255)), min_size=1, max_size=8), st.booleans())
def test_hostile_headers_raise_nothing_but_islet_errors(changes: list[tuple[int, int]], fix_sums: bool) -> None:
    table = application_table(1, 1, disk_guid=APPS[0], image_guid=APPS[1], data_guid=APPS[2])
    primary = bytearray(table.encode_primary())
    for offset, value in changes:
        primary[offset] = value
    if fix_sums:
        primary[512 + 88 : 512 + 92] = zlib.crc32(primary[1024:]).to_bytes(4, "little")
        primary[512 + 16 : 512 + 20] = bytes(4)
        primary[512 + 16 : 512 + 20] = zlib.crc32(primary[512 : 512 + 92]).to_bytes(4, "little")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "disk.raw"
        path.write_bytes(bytes(primary))
        os.truncate(path, table.sectors * 512)
        try:
            disk.load(path).table.validate()
        except IsletError:
            assert path.read_bytes()[: len(primary)] == bytes(primary)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=4096))
def test_noise_is_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "disk.raw"
        path.write_bytes(data)
        with pytest.raises(DiskError):
            disk.load(path)
        assert path.read_bytes() == data
