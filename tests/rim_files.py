"""Kernels, initial file systems and a manifest for tests of the RIM."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

PAGE = 4096
BASE = ["--realm", "-c", "2", "-m", "256", "-k", "kernel", "-i", "initrd", "--irqchip=gicv3"]
MANIFEST = 'schema = 1\nname = "a"\nid = "a"\n[image]\nkernel = "kernel"\ninitramfs = "initrd"\n'


def noise(name: str, size: int) -> bytes:
    """Bytes that follow from `name`."""
    return hashlib.shake_256(name.encode()).digest(size)


def pe_kernel(size: int = 40960) -> bytes:
    """An arm64 Image with an EFI stub: `.text` from 4096 to 24576, `.data` behind it."""
    image = bytearray(noise("kernel", size))
    struct.pack_into("<2s6xQQ", image, 0, b"MZ", 0, size + 8192)
    struct.pack_into("<4sI", image, 0x38, b"ARM\x64", 0x40)
    struct.pack_into("<4sHH12xHH", image, 0x40, b"PE\0\0", 0xAA64, 2, 0, 0)
    sections = ((b".text", 4096, 20480), (b".data", 24576, max(0, size - 24576)))
    for number, (name, start, length) in enumerate(sections):
        struct.pack_into("<8sIIII16x", image, 0x58 + 40 * number, name, length, start, length, start)
    return bytes(image)


def cpio(members: dict[str, bytes]) -> bytes:
    """A newc archive."""
    out = bytearray()
    for name, content in [*members.items(), ("TRAILER!!!", b"")]:
        fields = [0, 0o100644, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + content
        out += bytes(-len(out) % 4)
    return bytes(out)


def write(directory: Path) -> Path:
    """Write `kernel`, `initrd`, `realm.toml` into `directory`."""
    (directory / "kernel").write_bytes(pe_kernel())
    (directory / "initrd").write_bytes(cpio({"init": noise("init", 9000), "etc/passwd": b"root\n" * 100}))
    (directory / "realm.toml").write_text(MANIFEST)
    return directory
