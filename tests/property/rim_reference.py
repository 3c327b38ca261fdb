"""A slow, obvious measurement and a small device-tree reader, independent of the product's.

Both are written from the public specifications: the RMM specification 1.0-EAC5 (A7.1, B4.4) and the
Devicetree Specification v0.4 (chapter 5).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field

PAGE = 4096


@dataclass
class Node:
    """A device-tree node: properties in order, children in order."""

    name: str
    properties: dict[str, bytes] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)

    def child(self, name: str) -> Node:
        (found,) = [child for child in self.children if child.name == name]
        return found

    def cells(self, name: str) -> list[int]:
        data = self.properties[name]
        return list(struct.unpack(f">{len(data) // 4}I", data))

    def numbers(self, name: str) -> list[int]:
        data = self.properties[name]
        return list(struct.unpack(f">{len(data) // 8}Q", data))


def read_tree(area: bytes) -> Node:
    """Read a blob at the start of `area`, checking what the specification demands of it."""
    header = struct.unpack(">10I", area[:40])
    magic, total, struct_at, strings_at, reserved_at, version, compatible, cpu, strings_size, struct_size = header
    assert (magic, version, compatible, cpu) == (0xD00DFEED, 17, 16, 0)
    assert area[reserved_at : reserved_at + 16] == bytes(16)
    assert struct_at + struct_size == strings_at
    assert strings_at + strings_size == total
    reader = _Reader(area[struct_at:strings_at], area[strings_at:total])
    assert reader.word() == 1
    root = reader.node()
    assert reader.word() == 9
    assert not reader.structure[reader.position :]
    return root


@dataclass
class _Reader:
    structure: bytes
    names: bytes
    position: int = 0

    def word(self) -> int:
        (value,) = struct.unpack_from(">I", self.structure, self.position)
        self.position += 4
        return int(value)

    def text(self, data: bytes, start: int) -> str:
        return data[start : data.index(b"\0", start)].decode("ascii")

    def skip(self, size: int) -> None:
        padding = -size % 4
        assert not any(self.structure[self.position + size : self.position + size + padding])
        self.position += size + padding

    def node(self) -> Node:
        """Read a node whose BEGIN_NODE token is already consumed."""
        node = Node(self.text(self.structure, self.position))
        self.skip(len(node.name) + 1)
        while (token := self.word()) != 2:
            if token == 1:
                node.children.append(self.node())
                continue
            assert token == 3
            assert not node.children, "properties come before sub-nodes"
            size, name_at = self.word(), self.word()
            name = self.text(self.names, name_at)
            assert name not in node.properties
            node.properties[name] = self.structure[self.position : self.position + size]
            self.skip(size)
        return node


@dataclass
class ReferenceLaunch:
    """What the reference measurement needs; addresses are the caller's."""

    algorithm: str
    debug_points: int
    entry: int
    kernel: bytes
    memory_size: int
    initrd_at: int
    initrd: bytes
    dtb_at: int
    dtb: bytes
    vcpus: int


def reference_rim(launch: ReferenceLaunch) -> bytes:
    """Replay the launch granule by granule."""

    def digest(data: bytes) -> bytes:
        return hashlib.new(launch.algorithm, data).digest()

    def extend(kind: int, body: bytes) -> None:
        nonlocal rim
        descriptor = bytes([kind]).ljust(8, b"\0") + struct.pack("<Q", 256) + rim.ljust(64, b"\0") + body
        rim = digest(descriptor.ljust(256, b"\0"))

    def blob(address: int, content: bytes) -> int:
        """Measure a file in otherwise empty memory; returns the end of its last page."""
        lead = address % PAGE
        pages = bytes(lead) + content
        pages += bytes(-len(pages) % PAGE)
        for offset in range(0, len(pages), PAGE):
            content_digest = digest(pages[offset : offset + PAGE]).ljust(64, b"\0")
            extend(0, struct.pack("<QQ", address - lead + offset, 1) + content_digest)
        return address - lead + len(pages)

    params = bytearray(PAGE)
    params[0x08] = 33
    params[0x18] = params[0x20] = launch.debug_points
    params[0x30] = {"sha256": 0, "sha512": 1}[launch.algorithm]
    rim = digest(bytes(params))
    page = blob(launch.entry, launch.kernel)
    while page < launch.entry + launch.memory_size:
        extend(2, struct.pack("<QQ", page, page + PAGE))
        page += PAGE
    blob(launch.initrd_at, launch.initrd)
    blob(launch.dtb_at, launch.dtb)
    for vcpu in range(launch.vcpus):
        rec = bytearray(PAGE)
        if vcpu == 0:
            struct.pack_into("<Q", rec, 0x000, 1)
            struct.pack_into("<Q", rec, 0x200, launch.entry)
            struct.pack_into("<Q", rec, 0x300, launch.dtb_at)
        extend(1, digest(bytes(rec)).ljust(64, b"\0"))
    return rim
