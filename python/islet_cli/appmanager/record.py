"""The record area of an image partition: which image is installed, and where.

The first MiB inside the dm-crypt mapping holds two copies of one record, at offsets 0 and 512 KiB. A copy is written
over the older one and flushed; a torn write leaves the other copy as it was. What the area holds before the first
installation is noise, since the partition was never written through this key.

    offset  size  one copy (integers little-endian)
    0       8     "ISLETREC"
    8       4     version, 1
    12      4     length of the JSON text
    16      4     length of the configuration
    20      4     zero
    24      8     sequence number, from 1
    32      48    reserved for an authentication code, zero in version 1
    80      32    SHA-256 over the whole copy with this field zero
    112           the JSON text (UTF-8), then the image's exact configuration bytes

The JSON text: `{"schema":1,"name","reference","manifest_digest","annotations":{…},"security_version",
"highest_security_version","slot":{"offset","size"},"tree_bytes"}`; offsets and sizes in bytes from the mapping's
start.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from islet_cli import strictjson
from islet_cli.errors import InputError, OperationError

AREA_SIZE = 1 << 20
COPY_SIZE = AREA_SIZE // 2
COPIES = 2
VERSION = 1
SLOT_ALIGNMENT = 1 << 20

_MAGIC = b"ISLETREC"
_HEADER = struct.Struct("<8sIIIIQ48s32s")
MAX_CONTENT = COPY_SIZE - _HEADER.size
_MAX_U64 = (1 << 64) - 1


@dataclass(frozen=True)
class Slot:
    """A part of the mapping, in bytes."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        """First byte after it."""
        return self.offset + self.size

    def overlaps(self, other: Slot) -> bool:
        """Whether a byte belongs to both."""
        return self.offset < other.end and other.offset < self.end


@dataclass(frozen=True)
class Record:
    """The installed image.

    Attributes:
        name: The application's name.
        reference: Tag or digest under which it was fetched.
        manifest_digest: Digest of its manifest.
        config: The exact configuration bytes.
        annotations: The manifest's annotations, the signature chain among them.
        security_version: The image's own.
        highest_security_version: The highest that was ever installed here.
        slot: Where its file system is.
    """

    name: str
    reference: str
    manifest_digest: str
    config: bytes
    annotations: dict[str, str]
    security_version: int
    highest_security_version: int
    slot: Slot


class RecordError(OperationError):
    """A record cannot be written (`record`)."""

    default_code = "record"


def encode(record: Record, sequence: int) -> bytes:
    """One copy, without padding.

    Raises:
        RecordError: It does not fit (`record-too-large`).
    """
    text = strictjson.dumps(
        {
            "schema": 1,
            "name": record.name,
            "reference": record.reference,
            "manifest_digest": record.manifest_digest,
            "annotations": record.annotations,
            "security_version": record.security_version,
            "highest_security_version": record.highest_security_version,
            "slot": {"offset": record.slot.offset, "size": record.slot.size},
        }
    )
    if len(text) + len(record.config) > MAX_CONTENT:
        raise RecordError(
            f"the image's configuration and annotations exceed {MAX_CONTENT} bytes", code="record-too-large"
        )
    content = text + record.config
    header = [_MAGIC, VERSION, len(text), len(record.config), 0, sequence, bytes(48), bytes(32)]
    header[-1] = hashlib.sha256(_HEADER.pack(*header) + content).digest()
    return _HEADER.pack(*header) + content


def decode(copy: bytes) -> tuple[int, Record] | None:
    """Read one copy: (sequence number, record), or None when there is no intact record."""
    if len(copy) < _HEADER.size:
        return None
    magic, version, text_size, config_size, zero, sequence, reserved, digest = _HEADER.unpack_from(copy)
    end = _HEADER.size + text_size + config_size
    if magic != _MAGIC or version != VERSION or zero or reserved != bytes(48) or not sequence or end > len(copy):
        return None
    blank = _HEADER.pack(magic, version, text_size, config_size, zero, sequence, reserved, bytes(32))
    content = copy[_HEADER.size : end]
    if hashlib.sha256(blank + content).digest() != digest:
        return None
    try:
        return sequence, _parse(strictjson.loads(content[:text_size], what="record"), content[text_size:])
    except InputError:
        return None


def _parse(value: Any, config: bytes) -> Record:
    wanted = {
        "schema": int,
        "name": str,
        "reference": str,
        "manifest_digest": str,
        "annotations": dict,
        "security_version": int,
        "highest_security_version": int,
        "slot": dict,
    }
    if not isinstance(value, dict) or value.keys() != wanted.keys():
        raise InputError("record: unexpected members")
    if any(type(value[key]) is not kind for key, kind in wanted.items()) or value["schema"] != 1:
        raise InputError("record: a member has the wrong type")
    annotations = value["annotations"]
    if not all(isinstance(one, str) for one in annotations.values()):
        raise InputError("record: an annotation is not a text")
    versions = (value["security_version"], value["highest_security_version"])
    if not all(0 <= one <= _MAX_U64 for one in versions):
        raise InputError("record: a version is out of range")
    return Record(
        value["name"],
        value["reference"],
        value["manifest_digest"],
        config,
        dict(annotations),
        *versions,
        _slot(value["slot"]),
    )


def _slot(value: dict[str, Any]) -> Slot:
    if value.keys() != {"offset", "size"} or not all(type(one) is int for one in value.values()):
        raise InputError("record: malformed slot")
    slot = Slot(value["offset"], value["size"])
    if slot.offset < AREA_SIZE or slot.size <= 0 or slot.offset % 4096 or slot.size % 4096:
        raise InputError("record: a slot is misplaced")
    return slot


class RecordArea:
    """The record area of an open mapping (or of a plain file, in tests)."""

    def __init__(self, node: Path) -> None:
        self._node = node

    def _copies(self) -> list[tuple[int, Record] | None]:
        with self._node.open("rb", buffering=0) as file:
            out = []
            for index in range(COPIES):
                file.seek(index * COPY_SIZE)
                out.append(decode(_read_full(file, COPY_SIZE)))
            return out

    def read(self) -> Record | None:
        """The newest intact record, or None when nothing is installed."""
        intact = [copy for copy in self._copies() if copy is not None]
        return max(intact, key=lambda copy: copy[0])[1] if intact else None

    def write(self, record: Record) -> None:
        """Replace the older copy and flush it to the disk.

        Raises:
            RecordError: It does not fit, or the device refused.
        """
        sequences = [copy[0] if copy else 0 for copy in self._copies()]
        target = sequences.index(min(sequences))
        data = encode(record, max(sequences) + 1)
        # Whole 4 KiB blocks, so that no part of an older record shines through.
        data = data.ljust(-(-len(data) // 4096) * 4096, b"\0")
        try:
            descriptor = os.open(self._node, os.O_WRONLY | os.O_CLOEXEC)
            try:
                view, at = memoryview(data), target * COPY_SIZE
                while view:
                    count = os.pwrite(descriptor, view, at)
                    view, at = view[count:], at + count
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise RecordError(f"{self._node}: {error.strerror}") from error


def _read_full(file: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = file.read(size - len(data))
        if not part:
            break
        data += part
    return data


def choose_slot(total: int, live: Slot | None) -> Slot:
    """The slot for a new image: half of the mapping after the record area, away from the live slot.

    When the partition grew, the live slot may lie across both halves; then the largest free part is taken.

    Args:
        total: Bytes of the mapping.
        live: The slot that must stay as it is, None when nothing is installed.

    Raises:
        RecordError: Nothing usable is free.
    """
    end = total // SLOT_ALIGNMENT * SLOT_ALIGNMENT
    half = (end - AREA_SIZE) // 2 // SLOT_ALIGNMENT * SLOT_ALIGNMENT
    middle = AREA_SIZE + half
    candidates = [Slot(AREA_SIZE, half), Slot(middle, end - middle)]
    if live is not None and all(live.overlaps(one) for one in candidates):
        candidates = [Slot(AREA_SIZE, live.offset - AREA_SIZE), Slot(live.end, end - live.end)]
        candidates.sort(key=lambda one: -one.size)
    for candidate in candidates:
        if candidate.size >= SLOT_ALIGNMENT and (live is None or not live.overlaps(candidate)):
            return candidate
    raise RecordError(f"an image partition of {total} bytes has no room for another image", code="no-room")
