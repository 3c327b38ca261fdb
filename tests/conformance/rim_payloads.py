"""The payload files of the RIM vectors: kernels, initrds, disks.

Every byte follows from the file's name through SHAKE-256, so that the files are the same on every
machine and need not be kept. ISLET_VECTORS_RIM_PAYLOADS names a directory that has them already.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

_SEED = b"islet-rim-vectors-v1:"
_BLOCK = 1 << 20
_MIB = 1 << 20

# name -> file size, text_offset, image_size of a file with an arm64 Image header
IMAGES = {
    "k_plain.img": (1234567, 0, 1500000),
    "k_aligned.img": (2 * _MIB, 0, 2 * _MIB),
    "k_toff.img": (700001, 0x80000, 0x100000),
    "k_zeroisz.img": (300000, 0x200000, 0),
    "k_shortisz.img": (500000, 0, 4096),
    "k_oddtoff.img": (40000, 0x1234, 90000),
    "k_hdronly.img": (64, 0, 0x3000),
    "k_pagetail.img": (8191, 0, 8193),
    "k_samepage.img": (8193, 0, 12288),
    "k_large.img": (11 * _MIB + 77, 0, 12 * _MIB + 5),
    "k_bigbss.img": (65536, 0x400000, 40 * _MIB),
    "k_hugeisz.img": (4096, 0, 300 * _MIB),
    "k_share.img": (8448, 0xFDF0000, 8448),
    "k_overlap.img": (12288, 0xFDF0000, 12288),
    "k_hitfdt.img": (4096, 0xFDFF800, 4096),
    "k_faroff.img": (4096, 300 * _MIB, 4096),
    "fw_hdr.img": (30001, 0x80000, 70000),
}

# name -> file size; the content is noise
BLOBS = {
    "k_nomagic.bin": 100000,
    "k_short63.bin": 63,
    "initrd_a.cpio": 54321,
    "initrd_b.cpio": 65536,
    "initrd_c.cpio": 12289,
    "initrd_0.cpio": 0,
    "initrd_1.cpio": 1,
    "initrd_4092.cpio": 4092,
    "initrd_4093.cpio": 4093,
    "initrd_large.cpio": 5 * _MIB - 3,
    "disk_a.img": 4096,
    "disk_b.img": 1000,
    "disk_c.img": 65536,
    "disk_d.img": 512,
    "disk_e.img": 512,
    "disk_empty.img": 0,
    "fw.bin": 20001,
    "flash_100k.bin": 100000,
    "flash_64k.bin": 65536,
    "meta_512.bin": 512,
    "meta_4096.bin": 4096,
    "meta_4097.bin": 4097,
}

DIRECTORIES = ("rootdir", "rootdir2")


def noise(name: str, size: int) -> bytes:
    """`size` bytes that follow from `name`, in blocks of 1 MiB."""
    blocks = []
    for number, start in enumerate(range(0, size, _BLOCK)):
        shake = hashlib.shake_256(_SEED + name.encode() + struct.pack("<I", number))
        blocks.append(shake.digest(min(_BLOCK, size - start)))
    return b"".join(blocks)


def arm64_image(name: str, size: int, text_offset: int, image_size: int) -> bytes:
    """An arm64 Image: its 64-byte header, then noise."""
    header = struct.pack(
        "<IIQQQQQQ4sI", 0x91005A4D, 0x14000010, text_offset, image_size, 0xA, 0, 0, 0, b"ARM\x64", 0x40
    )
    return header[:size] + noise(name, size)[len(header) :]


def write(directory: Path) -> None:
    """Write every payload file into `directory`."""
    for name, (size, text_offset, image_size) in IMAGES.items():
        (directory / name).write_bytes(arm64_image(name, size, text_offset, image_size))
    for name, size in BLOBS.items():
        (directory / name).write_bytes(noise(name, size))
    for name in DIRECTORIES:
        (directory / name).mkdir()
        (directory / name / "hello.txt").write_bytes(b"hello\n")
