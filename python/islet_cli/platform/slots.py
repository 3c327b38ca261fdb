"""Measured boot: 32 slots of firmware measurements, and their encoding.

Source: Islet HES measured-boot service (PSA status names); CCA platform token, software components.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from islet_cli.errors import OperationError

SLOTS = 32
_HASHES = {"sha-256": "sha256", "sha-384": "sha384", "sha-512": "sha512"}


class SlotError(OperationError):
    """`code` is the PSA status: `InvalidArgument`, `NotPermitted`, `BadState` or `DoesNotExist`."""


@dataclass(frozen=True)
class Measurement:
    """One firmware measurement.

    Attributes:
        sw_type: At most 32 bytes of text.
        sw_version: At most 14 bytes of text.
        algorithm: `sha-256`, `sha-384` or `sha-512`.
        signer_id: 32 to 64 bytes.
        value: What is extended, or the slot's value.
    """

    sw_type: str
    sw_version: str
    algorithm: str
    signer_id: bytes
    value: bytes


@dataclass(frozen=True)
class Slot:
    """A populated slot."""

    measurement: Measurement
    locked: bool


class MeasurementSlots:
    """The slots of one boot."""

    def __init__(self) -> None:
        self._slots: dict[int, Slot] = {}

    def extend(self, index: int, new: Measurement, *, lock: bool = False) -> None:
        """Extend a slot: value = H(old || new), with zeros as the old value of an empty slot.

        Raises:
            SlotError: `InvalidArgument` (no such slot, malformed measurement), `BadState` (locked),
                `NotPermitted` (another signer or algorithm than before).
        """
        self._check(index, new)
        old = self._slots.get(index)
        name = _HASHES[new.algorithm]
        value = bytes(hashlib.new(name).digest_size)
        if old is not None:
            if old.locked:
                raise SlotError(f"slot {index} is locked", code="BadState")
            before = old.measurement
            if (before.signer_id, before.algorithm) != (new.signer_id, new.algorithm):
                raise SlotError(f"slot {index} has another signer or algorithm", code="NotPermitted")
            value = before.value
        value = hashlib.new(name, value + new.value).digest()
        self._slots[index] = Slot(replace(new, value=value), lock)

    @staticmethod
    def _check(index: int, new: Measurement) -> None:
        if not 0 <= index < SLOTS:
            raise SlotError(f"there is no slot {index}", code="InvalidArgument")
        well_formed = (
            new.algorithm in _HASHES
            and 32 <= len(new.signer_id) <= 64
            and len(new.sw_type.encode()) <= 32
            and len(new.sw_version.encode()) <= 14
            and 1 <= len(new.value) <= 64
        )
        if not well_formed:
            raise SlotError(f"malformed measurement for slot {index}", code="InvalidArgument")

    def read(self, index: int) -> Slot:
        """Read a slot.

        Raises:
            SlotError: `InvalidArgument`, `DoesNotExist`.
        """
        if not 0 <= index < SLOTS:
            raise SlotError(f"there is no slot {index}", code="InvalidArgument")
        slot = self._slots.get(index)
        if slot is None:
            raise SlotError(f"slot {index} is empty", code="DoesNotExist")
        return slot

    def measurements(self) -> list[Measurement]:
        """The populated slots, in slot order."""
        return [self._slots[index].measurement for index in sorted(self._slots)]


def components(measurements: Sequence[Measurement]) -> list[dict[int, str | bytes]]:
    """The software components claim. Its key order is part of the format, and input of key derivation."""
    return [
        {1: entry.sw_type, 6: entry.algorithm, 2: entry.value, 4: entry.sw_version, 5: entry.signer_id}
        for entry in measurements
    ]


def encode_measurements(measurements: Sequence[Measurement]) -> bytes:
    """The measurement list as CBOR: definite lengths, shortest heads, keys 1, 6, 2, 4, 5."""
    import cbor2

    return cbor2.dumps(components(measurements))
