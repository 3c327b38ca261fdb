"""Record area, slots, partitions, data volumes: on files instead of block devices."""

from __future__ import annotations

import struct
import uuid
import zlib
from pathlib import Path

import pytest

from islet_cli.appmanager import devicemapper, filesystem, record, volumes
from islet_cli.appmanager.config import Crypto
from islet_cli.appmanager.container import identity_files
from islet_cli.appmanager.partitions import PartitionError, PartitionFinder, parse_table
from islet_cli.appmanager.record import AREA_SIZE, COPY_SIZE, Record, RecordArea, RecordError, Slot, choose_slot
from islet_cli.appmanager.volumes import MARKER, DataState, VolumeState, is_fresh, recognise, write_block
from islet_cli.errors import InputError, OperationError
from islet_cli.volumes.disk import SharedDisk

MIB = 1 << 20


def a_record(**changes: object) -> Record:
    members: dict[str, object] = {
        "name": "one",
        "reference": "latest",
        "manifest_digest": "sha256:" + "0" * 64,
        "config": b'{"os":"linux"}',
        "annotations": {"a": "b"},
        "security_version": 1,
        "highest_security_version": 2,
        "slot": Slot(MIB, MIB),
    }
    return Record(**(members | changes))  # type: ignore[arg-type]


@pytest.fixture
def area(tmp_path: Path) -> Path:
    path = tmp_path / "mapping"
    path.write_bytes(bytes(range(256)) * (AREA_SIZE // 256))
    return path


# -- the record ---------------------------------------------------------------------------------------------


def test_noise_is_no_record(area: Path) -> None:
    assert RecordArea(area).read() is None


def test_the_newest_record_counts_and_copies_alternate(area: Path) -> None:
    for number in range(5):
        RecordArea(area).write(a_record(reference=str(number)))
        assert RecordArea(area).read() == a_record(reference=str(number))
    data = area.read_bytes()
    sequences = [record.decode(data[at : at + COPY_SIZE]) for at in (0, COPY_SIZE)]
    assert sorted(copy[0] for copy in sequences if copy) == [4, 5]


@pytest.mark.parametrize("torn_at", [0, 1, 8, 60, 100, 112, 150, 300, 4095])
def test_a_torn_write_leaves_the_other_copy(area: Path, torn_at: int) -> None:
    RecordArea(area).write(a_record(reference="old"))
    before = area.read_bytes()
    RecordArea(area).write(a_record(reference="new"))
    after = bytearray(area.read_bytes())
    changed = [at for at in (0, COPY_SIZE) if before[at : at + COPY_SIZE] != after[at : at + COPY_SIZE]]
    assert len(changed) == 1
    # Only the first bytes of the new copy reached the disk.
    start = changed[0]
    torn = after[:start] + after[start : start + torn_at] + before[start + torn_at : start + COPY_SIZE]
    torn += after[start + COPY_SIZE :]
    area.write_bytes(torn)
    assert RecordArea(area).read() in (a_record(reference="old"), a_record(reference="new"))
    if torn_at < 400:
        assert RecordArea(area).read() == a_record(reference="old")
    RecordArea(area).write(a_record(reference="next"))
    assert RecordArea(area).read() == a_record(reference="next")


def test_a_record_that_does_not_fit_is_refused_and_nothing_changes(area: Path) -> None:
    RecordArea(area).write(a_record())
    before = area.read_bytes()
    with pytest.raises(RecordError) as caught:
        RecordArea(area).write(a_record(config=b" " * COPY_SIZE))
    assert caught.value.code == "record-too-large" and area.read_bytes() == before


def test_a_record_from_a_later_format_is_none() -> None:
    data = bytearray(record.encode(a_record(), 1))
    struct.pack_into("<I", data, 8, 2)
    assert record.decode(bytes(data)) is None


def test_slots_alternate_and_never_touch_the_live_one() -> None:
    total = 65 * MIB
    first = choose_slot(total, None)
    second = choose_slot(total, first)
    assert first == Slot(MIB, 32 * MIB) and second == Slot(33 * MIB, 32 * MIB)
    assert choose_slot(total, second) == first


def test_a_grown_partition_uses_its_new_room() -> None:
    live = choose_slot(65 * MIB, choose_slot(65 * MIB, None))
    bigger = choose_slot(257 * MIB, live)
    assert not bigger.overlaps(live) and bigger.size >= 128 * MIB
    across = Slot(60 * MIB, 130 * MIB)
    chosen = choose_slot(257 * MIB, across)
    assert not chosen.overlaps(across)


def test_a_partition_without_room_is_refused() -> None:
    for total, live in ((MIB, None), (2 * MIB, Slot(MIB, MIB)), (3 * MIB - 1, Slot(MIB, MIB))):
        with pytest.raises(RecordError):
            choose_slot(total, live)


# -- partitions ---------------------------------------------------------------------------------------------


class Machine:
    """A sysfs and a /dev with one disk."""

    def __init__(self, root: Path) -> None:
        self.sysfs, self.dev = root / "block", root / "dev"
        self.dev.mkdir()
        self.disk = SharedDisk.create(self.dev / "vda")
        self.application = uuid.uuid4()
        self.parts = self.disk.create_application(self.application, 4, 2)
        self.show("vda")

    def show(self, name: str) -> None:
        """What the kernel would show of a disk."""
        entry = self.sysfs / name
        (entry / "queue").mkdir(parents=True)
        (entry / "queue" / "logical_block_size").write_text("512\n")
        (entry / "size").write_text(f"{(self.dev / name).stat().st_size // 512}\n")
        for number, part in enumerate((self.parts.image, self.parts.data), start=1):
            child = entry / f"{name}{number}"
            child.mkdir()
            values = {"partition": number, "start": part.first, "size": part.last - part.first + 1}
            for key, value in values.items():
                (child / key).write_text(f"{value}\n")
            (child / "dev").write_text(f"254:{number}\n")

    def finder(self) -> PartitionFinder:
        return PartitionFinder(self.sysfs, self.dev)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_partition_is_found_by_guid(machine: Machine) -> None:
    found = machine.finder().find(str(machine.parts.data.guid))
    assert found.device.name == "vda2" and found.number == "254:2" and found.sectors == 4096


def test_a_missing_partition_is_named(machine: Machine) -> None:
    missing = str(uuid.uuid4())
    with pytest.raises(PartitionError, match=missing):
        machine.finder().find(missing)


def test_a_guid_on_two_disks_is_refused(machine: Machine) -> None:
    (machine.dev / "vdb").write_bytes((machine.dev / "vda").read_bytes())
    machine.show("vdb")
    with pytest.raises(PartitionError, match="more than once"):
        machine.finder().find(str(machine.parts.image.guid))


@pytest.mark.parametrize("member", ["start", "size"])
def test_the_kernels_view_must_agree(machine: Machine, member: str) -> None:
    (machine.sysfs / "vda" / "vda1" / member).write_text("77\n")
    with pytest.raises(PartitionError, match="elsewhere"):
        machine.finder().find(str(machine.parts.image.guid))


def test_a_damaged_primary_table_is_replaced_by_its_backup(machine: Machine) -> None:
    path = machine.dev / "vda"
    data = bytearray(path.read_bytes())
    data[512 + 40] ^= 1
    path.write_bytes(data)
    assert machine.finder().find(str(machine.parts.image.guid)).number == "254:1"


def sealed(table: bytearray) -> bytearray:
    """The same table with both checksums made right again."""
    struct.pack_into("<I", table, 512 + 88, zlib.crc32(bytes(table[1024 : 1024 + 128 * 128])))
    struct.pack_into("<I", table, 512 + 16, 0)
    struct.pack_into("<I", table, 512 + 16, zlib.crc32(bytes(table[512 : 512 + 92])))
    return table


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (1024 + 32, struct.pack("<Q", 1), "outside"),
        (1024 + 40, struct.pack("<Q", 1 << 60), "outside"),
        (1024 + 128 + 32, struct.pack("<Q", 2048), "overlap"),
        (512 + 80, struct.pack("<I", 1 << 31), "unusual"),
        (512 + 84, struct.pack("<I", 64), "unusual"),
        (512 + 72, struct.pack("<Q", 1 << 62), "overlap|entries"),
        (512 + 24, struct.pack("<Q", 5), "stand"),
    ],
)
def test_a_hostile_table_with_right_checksums_is_refused(
    machine: Machine, offset: int, value: bytes, reason: str
) -> None:
    data = bytearray((machine.dev / "vda").read_bytes())
    data[offset : offset + len(value)] = value
    data[-512:] = bytes(512)  # and no backup
    table = sealed(data)
    with pytest.raises(InputError, match=reason):
        parse_table(lambda lba, count: bytes(table[lba * 512 : (lba + count) * 512]), len(table) // 512)


# -- device mapper ------------------------------------------------------------------------------------------


def test_the_crypt_line_names_the_key_and_never_holds_it() -> None:
    crypto = Crypto("aes-xts-plain64", 64, 0)
    target = devicemapper.crypt_target(2048, crypto, "app-manager:guid", "254:1")
    assert target.parameters == "aes-xts-plain64 :64:logon:app-manager:guid 0 254:1 0"
    with_options = Crypto("aes-cbc-plain", 32, 8, ("allow_discards", "sector_size:4096"))
    line = devicemapper.crypt_target(2048, with_options, "app-manager:guid", "254:1").parameters
    assert line == "aes-cbc-plain :32:logon:app-manager:guid 8 254:1 0 2 allow_discards sector_size:4096"


def test_targets_are_laid_out_as_the_kernel_reads_them() -> None:
    line = devicemapper.linear_target(8, "254:1", 2048)
    data = devicemapper.encode_targets([line, line])
    first, sectors, _status, following = struct.unpack_from("=QQiI", data)
    assert (first, sectors) == (0, 8) and following % 8 == 0 and len(data) == 2 * following
    assert data[24:40].rstrip(b"\0") == b"linear" and data[40:following].rstrip(b"\0") == b"254:1 2048"


@pytest.mark.parametrize("name", ["", "a/b", "x" * 128])
def test_impossible_device_names_are_refused(name: str) -> None:
    with pytest.raises(devicemapper.DeviceMapperError):
        devicemapper.DeviceMapper().remove(name)


# -- data volumes -------------------------------------------------------------------------------------------


def test_only_zeros_are_fresh(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(2 * MIB))
    assert is_fresh(path)
    for offset, expected in ((0, False), (MIB - 1, False), (MIB, True)):
        path.write_bytes(bytes(offset) + b"\1" + bytes(2 * MIB - offset - 1))
        assert is_fresh(path) is expected
    path.write_bytes(bytes(4096))
    assert is_fresh(path)
    path.write_bytes(b"")
    assert not is_fresh(path)


def test_what_a_mapping_shows(tmp_path: Path) -> None:
    node, size = tmp_path / "mapping", 16 * MIB
    node.write_bytes(b"noise" * 1000 + bytes(size - 5000))
    assert recognise(node, size) is DataState.FOREIGN
    filesystem.make(node, "ext4", "data", size - 4096, journal=True)
    assert recognise(node, size) is DataState.FILE_SYSTEM
    # A kill while formatting leaves the marker: formatting starts again.
    write_block(node, size - 4096, MARKER)
    assert recognise(node, size) is DataState.UNFINISHED
    write_block(node, size - 4096, bytes(4096))
    assert recognise(node, size) is DataState.FILE_SYSTEM


def test_a_file_system_of_others_is_foreign(tmp_path: Path) -> None:
    node, size = tmp_path / "mapping", 16 * MIB
    node.write_bytes(bytes(size))
    filesystem.make(node, "ext4", "theirs", size - 4096, journal=True)
    assert recognise(node, size) is DataState.FOREIGN


def test_the_file_system_does_not_use_the_markers_place(tmp_path: Path) -> None:
    node, size = tmp_path / "mapping", 16 * MIB + 512
    node.write_bytes(bytes(size))
    filesystem.make(node, "ext4", "data", volumes._marker_at(size), journal=True)
    superblock = filesystem.read_superblock(node)
    assert superblock is not None and superblock.size <= volumes._marker_at(size)
    assert volumes._marker_at(size) + volumes.MARKER_SIZE <= size and not superblock.has_errors


def test_a_damaged_file_system_is_noticed_and_mended(tmp_path: Path) -> None:
    node = tmp_path / "mapping"
    node.write_bytes(bytes(16 * MIB))
    filesystem.make(node, "ext4", "data", 16 * MIB, journal=True)
    data = bytearray(node.read_bytes())
    struct.pack_into("<H", data, 1024 + 58, 2)
    node.write_bytes(data)
    found = filesystem.read_superblock(node)
    assert found is not None and found.has_errors
    # The checksum of the superblock no longer holds either: e2fsck -p takes a backup or gives up aloud.
    try:
        filesystem.repair(node)
    except filesystem.FileSystemError as error:
        assert "e2fsck" in error.message


def test_a_failing_tool_is_reported_with_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(filesystem.FileSystemError, match="mke2fs ended with code"):
        filesystem.make(tmp_path / "none" / "disk", "ext4", "data", MIB, journal=True)


def test_a_volumes_state_is_kept(tmp_path: Path) -> None:
    assert volumes.read_state(tmp_path) == VolumeState(0, fresh=True)
    for state in (VolumeState(0, fresh=True), VolumeState((1 << 64) - 1, fresh=False)):
        volumes.write_state(tmp_path, state)
        assert volumes.read_state(tmp_path) == state
    for damaged in ("", "[]", '{"highest_security_version":-1,"fresh":true}', '{"highest_security_version":1}'):
        (tmp_path / "rollback.json").write_text(damaged)
        with pytest.raises(OperationError):
            volumes.read_state(tmp_path)


def test_files_that_every_application_gets(tmp_path: Path) -> None:
    files = identity_files(tmp_path / "files", "host-1", fresh=True)
    inside = {target: source for source, target in files}
    assert set(inside) == {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/islet/volume.json"}
    assert inside["/etc/hostname"].read_text() == "host-1\n"
    assert "host-1" in inside["/etc/hosts"].read_text()
