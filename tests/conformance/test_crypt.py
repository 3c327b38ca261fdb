"""Sector encryption, regions, partition tables and one whole encrypted disk, as Linux and upstream write them."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
import vectors

from islet_cli import _native
from islet_cli.volumes import disk
from islet_cli.volumes.crypt import CryptOptions, Volume
from islet_cli.volumes.gpt import application_table

CASES: dict[str, Any] = vectors.load("ISLET_VECTORS_CRYPT")


def mapping(case: dict[str, Any]) -> Any:
    return _native.blockcrypt.Mapping(
        case["spec"],
        bytes.fromhex(case["key_hex"]),
        sector_size=case["sector_size"],
        iv_offset=case["iv_offset"],
        iv_large_sectors=case["iv_large_sectors"],
    )


@pytest.mark.parametrize("case", CASES.get("vectors", []), ids=lambda case: case["id"])
def test_sector(case: dict[str, Any]) -> None:
    crypt = mapping(case)
    clear, cipher = bytes.fromhex(case["plaintext_hex"]), bytes.fromhex(case["ciphertext_hex"])
    assert crypt.iv(case["sector"]).hex() == case["iv_hex"]
    assert crypt.encrypt(case["sector"], clear) == cipher
    assert crypt.decrypt(case["sector"], cipher) == clear


@pytest.mark.parametrize("case", CASES.get("regions", []), ids=lambda case: case["id"])
def test_region(case: dict[str, Any], tmp_path: Path) -> None:
    clear, cipher = bytes.fromhex(case["plaintext_hex"]), bytes.fromhex(case["ciphertext_hex"])
    first = case["first_sector"]
    assert mapping(case).encrypt(first, clear) == cipher
    file = tmp_path / "region"
    file.write_bytes(bytes(first * 512) + cipher)
    options = CryptOptions(case["spec"], case["sector_size"], case["iv_offset"], case["iv_large_sectors"])
    volume = Volume(file, bytes.fromhex(case["key_hex"]), 0, first * 512 + len(cipher), options)
    assert volume.read(first * 512, len(clear)) == clear
    volume.write(first * 512 + 100, clear[100:700])
    assert file.read_bytes()[first * 512 :] == cipher


@pytest.mark.parametrize("case", CASES.get("gpt", []), ids=lambda case: f"{case['image_mb']}-{case['data_mb']}")
def test_partition_table(case: dict[str, Any]) -> None:
    table = application_table(
        case["image_mb"],
        case["data_mb"],
        disk_guid=uuid.UUID(case["disk_guid"]),
        image_guid=uuid.UUID(case["image_partition_guid"]),
        data_guid=uuid.UUID(case["data_partition_guid"]),
    )
    primary, backup = table.encode_primary(), table.encode_backup()
    image, data = table.partitions
    assert (image.first, image.last) == (case["image_first_lba"], case["image_last_lba"])
    assert (data.first, data.last) == (case["data_first_lba"], case["data_last_lba"])
    assert (table.first_usable, table.last_usable) == (case["first_usable_lba"], case["last_usable_lba"])
    assert table.sectors * 512 == case["total_bytes"]
    assert primary[446:462].hex() == case["protective_mbr_entry_hex"]
    assert primary[512 : 512 + 92].hex() == case["primary_header_hex"]
    assert backup[-512 : -512 + 92].hex() == case["backup_header_hex"]
    assert hashlib.sha256(primary).hexdigest() == case["first_17408_bytes_sha256"]
    assert hashlib.sha256(backup).hexdigest() == case["last_16896_bytes_sha256"]


@pytest.mark.skipif("encrypted_disk" not in CASES, reason="the vector file has no disk")
@pytest.mark.parametrize("name", ["image", "data"])
def test_encrypted_disk(name: str, tmp_path: Path) -> None:
    case = CASES["encrypted_disk"]
    raw = gzip.decompress((vectors.path("ISLET_VECTORS_CRYPT").parent / case["file"]).read_bytes())
    assert hashlib.sha256(raw).hexdigest() == case["raw_sha256"]
    path = tmp_path / "disk.raw"
    path.write_bytes(raw)
    expected = case["partitions"][name]
    found = getattr(disk.read_application_disk(path, 1, 1), name)
    assert str(found.guid) == expected["partuuid"]
    assert (found.first, found.sectors) == (expected["first_lba"], expected["sectors"])
    options = CryptOptions(case["spec"], case["sector_size"], case["iv_offset"])
    volume = Volume.of_partition(path, found, bytes.fromhex(case["key_hex"]), options)
    clear = volume.read(0, found.size_bytes)
    assert hashlib.sha256(clear).hexdigest() == expected["decrypted_sha256"]
    debugfs = shutil.which("debugfs", path="/usr/sbin:/sbin:/usr/bin")
    if debugfs:
        (tmp_path / "fs").write_bytes(clear)
        shown = subprocess.run(
            [debugfs, "-R", f"cat {expected['file']['path']}", tmp_path / "fs"], capture_output=True, check=True
        )
        assert shown.stdout.decode() == expected["file"]["content"]
