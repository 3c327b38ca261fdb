"""Encrypted volumes in user space: what the kernel refuses is refused, offsets and neighbours."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from islet_cli import _native
from islet_cli.errors import InputError, IsletError, OperationError
from islet_cli.volumes.crypt import CryptOptions, Volume
from islet_cli.volumes.gpt import Partition

KEY = bytes(range(64))


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        *(("aes-cbc-plain", size) for size in (0, 15, 33, 48, 64)),
        *(("aes-xts-plain64", size) for size in (16, 24, 33, 65)),
        *(
            (spec, 32)
            for spec in ("aes-ctr-plain", "des-cbc-plain", "aes-cbc", "", "aes-cbc-essiv:md5", "aes-cbc-null")
        ),
    ],
)
def test_refused_tables(spec: str, size: int) -> None:
    with pytest.raises(InputError) as raised:
        _native.blockcrypt.Mapping(spec, bytes(size))
    assert raised.value.code == "bad-cipher"
    assert "00000" not in raised.value.message, "no key bytes in messages"


@pytest.mark.parametrize("offset", [1, 4, 7])
def test_large_sectors_need_an_aligned_iv_offset(offset: int) -> None:
    with pytest.raises(InputError):
        _native.blockcrypt.Mapping("aes-xts-plain64", KEY, sector_size=4096, iv_offset=offset)


def test_negative_iv_offset_is_refused() -> None:
    with pytest.raises(OverflowError):
        _native.blockcrypt.Mapping("aes-xts-plain64", KEY, iv_offset=-1)


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("spec", ["aes-xts-plain64", "serpent-cbc-essiv:sha256", "twofish-xts-plain"])
def test_partial_writes_spare_their_neighbours(tmp_path: Path, spec: str, sector_size: int) -> None:
    key = KEY if "xts" in spec else KEY[:32]
    file = tmp_path / "disk"
    file.write_bytes(bytes(65536))
    partition = Partition(uuid.UUID(int=1), 8, 8 + 63, "data")
    volume = Volume.of_partition(file, partition, key, CryptOptions(spec, sector_size))
    volume.write(0, b"a" * 32768)
    volume.write(4000, b"b" * 5000)
    assert volume.read(0, 32768) == b"a" * 4000 + b"b" * 5000 + b"a" * (32768 - 9000)
    raw = file.read_bytes()
    assert raw[:4096] == bytes(4096)
    assert raw[4096 + 32768 :] == bytes(65536 - 4096 - 32768)
    assert b"aaaa" not in raw


def test_outside_and_missing_files(tmp_path: Path) -> None:
    file = tmp_path / "disk"
    file.write_bytes(bytes(1024))
    volume = Volume(file, KEY, 0, 1024)
    for call in (lambda: volume.read(1000, 25), lambda: volume.write(1024, b"x"), lambda: volume.read(0, 1 << 60)):
        with pytest.raises(IsletError):
            call()
    with pytest.raises(OperationError) as raised:
        Volume(tmp_path / "none", KEY, 0, 1024).read(0, 1)
    assert raised.value.code == "disk"
