"""Whatever a host sends or a disk holds: no crash, one answer, nothing believed that does not agree with itself."""

from __future__ import annotations

import functools
import json
import struct
import tempfile
import uuid
import zlib
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from islet_cli.appmanager import config, messages, record
from islet_cli.appmanager.logring import LogRing
from islet_cli.appmanager.manager import Manager, Services
from islet_cli.appmanager.partitions import parse_table
from islet_cli.appmanager.record import AREA_SIZE, Record, Slot, choose_slot
from islet_cli.appmanager.tokens import Attester
from islet_cli.errors import InputError
from islet_cli.volumes.disk import SharedDisk
from realm_doubles import FakePower, Realm, document, info, uuid_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    (
        *("ProvisionInfo", "GetAttestationToken", "GetIfAddrs", "CheckStatus", "StartApp", "StopApp", "KillApp"),
        *("Reboot", "Shutdown", "AllowReformat", "ReadLog"),
    )
)


@given(st.dictionaries(NAMES, JSON, min_size=1, max_size=2) | JSON)
def test_any_json_is_a_request_or_a_request_error(value: Any) -> None:
    try:
        messages.parse_request(value)
    except messages.RequestError:
        return


IDS = st.sampled_from([uuid_of("one"), uuid_of("two")])
REQUESTS = st.one_of(
    st.lists(st.sampled_from([info("one"), info("two"), info("two", id=uuid_of("one"))]), max_size=2).map(
        lambda infos: messages.ProvisionInfo(tuple(infos))
    ),
    IDS.map(messages.CheckStatus),
    IDS.map(messages.StartApp),
    IDS.map(messages.StopApp),
    IDS.map(messages.KillApp),
    IDS.map(messages.AllowReformat),
    st.just(messages.GetIfAddrs()),
    st.binary(max_size=65).map(messages.GetAttestationToken),
    st.builds(messages.ReadLog, IDS, st.integers(0, 1 << 62), st.integers(0, 1 << 62)),
)
ANSWERS = {"Success", "Error", "ApplicationIsRunning", "ApplicationNotStarted", "ApplicationExited", "IfAddrs"} | {
    "AttestationToken",
    "LogData",
}


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(REQUESTS, max_size=8))
def test_every_sequence_of_requests_gets_one_answer_each(requests: list[messages.Request]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        realm = Realm(Path(directory))
        realm.publish("one")
        realm.publish("two")
        services = Services(
            connect=lambda: (_ for _ in ()).throw(AssertionError),
            provisioner=realm.provisioner,
            attester=Attester(realm.rsi),
            addresses=dict,
            power=FakePower(),
            forward_output=True,
            say=lambda _line: None,
        )
        manager = Manager(services)
        for request in requests:
            answer = manager.handle(request)
            assert answer is not None and len(answer) == 1 and set(answer) <= ANSWERS
            text = json.dumps(answer)
            assert "internal" not in text, text
        manager.close()
        assert realm.storage.open == []


@given(st.recursive(JSON, lambda inner: st.dictionaries(st.sampled_from(list(document())), inner), max_leaves=8))
def test_any_configuration_is_read_or_refused(value: Any) -> None:
    for candidate in (value, {**document(), **value} if isinstance(value, dict) else value):
        try:
            config.parse(candidate)
        except config.ConfigError:
            continue


# -- the record ---------------------------------------------------------------------------------------------

U64 = st.integers(0, (1 << 64) - 1)
SLOTS = st.builds(
    Slot, st.integers(256, 1 << 30).map(lambda n: n * 4096), st.integers(1, 1 << 30).map(lambda n: n * 4096)
)
RECORDS = st.builds(
    Record,
    st.text(max_size=20),
    st.text(max_size=20),
    st.text(max_size=20),
    st.binary(max_size=200),
    st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
    U64,
    U64,
    SLOTS,
)


def _utf8(one: Record) -> bool:
    try:
        json.dumps([one.name, one.reference, one.manifest_digest, one.annotations], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@given(RECORDS.filter(_utf8), st.integers(1, (1 << 64) - 1), st.binary(max_size=64))
def test_records_survive_the_round_trip(one: Record, sequence: int, padding: bytes) -> None:
    assert record.decode(record.encode(one, sequence) + padding) == (sequence, one)


@given(RECORDS.filter(_utf8), st.data())
def test_one_changed_byte_is_no_record(one: Record, data: st.DataObject) -> None:
    encoded = bytearray(record.encode(one, 7))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    assert record.decode(bytes(encoded)) is None


@given(st.binary(max_size=400))
def test_noise_is_no_record(noise: bytes) -> None:
    assert record.decode(noise) is None
    assert record.decode(b"ISLETREC" + noise) is None


@given(st.integers(0, 1 << 34), st.none() | SLOTS)
def test_a_slot_lies_inside_and_apart(total: int, live: Slot | None) -> None:
    try:
        slot = choose_slot(total, live)
    except record.RecordError:
        return
    assert slot.offset >= AREA_SIZE and slot.end <= total and slot.offset % 4096 == slot.size % 4096 == 0
    assert live is None or not slot.overlaps(live)


# -- partition tables ---------------------------------------------------------------------------------------


@functools.cache
def _disk() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        disk = SharedDisk.create(Path(directory) / "disk")
        disk.create_application(uuid.UUID(int=1), 1, 1)
        return disk.path.read_bytes()


def _parse(data: bytes) -> None:
    total = len(data) // 512
    try:
        entries = parse_table(lambda lba, count: data[lba * 512 : (lba + count) * 512], total)
    except InputError:
        return
    for entry in entries:
        assert entry.first > 0 and entry.first + entry.sectors <= total and entry.sectors > 0


@given(st.lists(st.tuples(st.integers(512, 512 * 40), st.integers(0, 255)), max_size=12), st.booleans())
def test_a_hostile_table_is_read_inside_the_disk_or_refused(changes: list[tuple[int, int]], reseal: bool) -> None:
    data = bytearray(_disk())
    for offset, value in changes:
        data[offset] = value
    if reseal:
        count = min(struct.unpack_from("<I", data, 512 + 80)[0], 1024)
        struct.pack_into("<I", data, 512 + 88, zlib.crc32(bytes(data[1024 : 1024 + count * 128])))
        struct.pack_into("<I", data, 512 + 16, 0)
        struct.pack_into("<I", data, 512 + 16, zlib.crc32(bytes(data[512 : 512 + 92])))
    _parse(bytes(data))


@given(st.binary(max_size=2048))
def test_noise_is_no_table(noise: bytes) -> None:
    _parse(noise + bytes(512 * 80))


@given(st.lists(st.binary(max_size=40), max_size=20), st.integers(1, 64))
def test_the_ring_equals_the_end_of_all_output(parts: list[bytes], capacity: int) -> None:
    ring = LogRing(capacity)
    for part in parts:
        ring.append(part)
    whole = b"".join(parts)
    offset, data = ring.read(0, 1 << 20)
    assert offset == max(0, len(whole) - capacity) and data == whole[offset:]
