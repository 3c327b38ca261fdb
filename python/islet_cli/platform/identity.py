"""What an emulated platform is made of: its secrets, its facts, and their form in `hes.json`.

Source: docs/formats.md, "Emulated platform identity".
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from islet_cli import strictjson
from islet_cli.attestation.token import PLATFORM_PROFILE_1_0
from islet_cli.attestation.verify import EMULATED_IMPLEMENTATION_ID
from islet_cli.errors import InputError, IsletError
from islet_cli.platform.slots import Measurement, MeasurementSlots

SCHEMA = 1
LIFECYCLE_DEBUG = 0x4000

DEFAULT_HUK = bytes(range(16)) * 2
DEFAULT_GUK = bytes.fromhex("0123456789" * 6 + "0123")
DEFAULT_BL_HASH = bytes.fromhex("f15f953be50dad92c3b2aa3297e6a4a8d66d33638449ec1922b4a7924a7b3022")

_SIGNER = hashlib.sha256(b"islet emulated platform").digest()
_MEMBERS = {
    "schema",
    "huk",
    "guk",
    "bl_hash",
    "lifecycle",
    "implementation_id",
    "profile",
    "verification_service",
    "configuration",
    "boot",
}


@dataclass(frozen=True)
class Identity:
    """The secrets and facts of one emulated platform. Secrets appear in no representation."""

    huk: bytes = field(repr=False)
    guk: bytes = field(repr=False)
    bl_hash: bytes = field(repr=False)
    lifecycle: int
    implementation_id: bytes
    profile: str
    verification_service: str
    configuration: bytes
    boot: tuple[Measurement, ...]

    def uses_published_secrets(self) -> bool:
        """Whether a secret is one of the published ones of upstream's emulator."""
        known = (DEFAULT_HUK, DEFAULT_GUK, DEFAULT_BL_HASH)
        return any(own == default for own, default in zip((self.huk, self.guk, self.bl_hash), known, strict=True))

    def boot_slots(self) -> MeasurementSlots:
        """The measurement slots as they stand after boot.

        Raises:
            SlotError: A boot measurement is malformed.
        """
        slots = MeasurementSlots()
        for index, entry in enumerate(self.boot):
            slots.extend(index, entry)
        return slots

    def to_json(self) -> dict[str, Any]:
        """The content of `hes.json`, secrets included."""
        return {
            "schema": SCHEMA,
            "huk": self.huk.hex(),
            "guk": self.guk.hex(),
            "bl_hash": self.bl_hash.hex(),
            "lifecycle": self.lifecycle,
            "implementation_id": self.implementation_id.hex(),
            "profile": self.profile,
            "verification_service": self.verification_service,
            "configuration": self.configuration.hex(),
            "boot": [
                {
                    "type": entry.sw_type,
                    "version": entry.sw_version,
                    "algorithm": entry.algorithm,
                    "signer_id": entry.signer_id.hex(),
                    "value": entry.value.hex(),
                }
                for entry in self.boot
            ],
        }


def new_identity() -> Identity:
    """A fresh identity: random secrets, and values that do not follow islet's version."""
    boot = tuple(
        Measurement(name, "1", "sha-256", _SIGNER, hashlib.sha256(name.encode()).digest())
        for name in ("EMU-BL", "EMU-RMM")
    )
    return Identity(
        huk=secrets.token_bytes(32),
        guk=secrets.token_bytes(32),
        bl_hash=secrets.token_bytes(32),
        lifecycle=LIFECYCLE_DEBUG,
        implementation_id=EMULATED_IMPLEMENTATION_ID,
        profile=PLATFORM_PROFILE_1_0,
        verification_service="urn:islet:emulated",
        configuration=bytes(4),
        boot=boot,
    )


def damaged(path: Path, problem: str) -> InputError:
    """The error for an identity that is there and cannot be used."""
    return InputError(
        f"{path}: {problem}",
        code="damaged",
        hint="restore it from a backup; `islet platform reset --yes` gives a new identity and loses what is sealed",
    )


def parse_identity(data: bytes, path: Path) -> Identity:
    """Read the content of `hes.json`, which stands at `path`.

    Raises:
        InputError: `damaged`.
    """
    try:
        content = strictjson.loads(data, what=str(path))
        if not isinstance(content, dict) or set(content) != _MEMBERS or content["schema"] != SCHEMA:
            raise ValueError("unknown, missing or extra members, or another schema")
        lifecycle = content["lifecycle"]
        if type(lifecycle) is not int or not 0 <= lifecycle < 2**32:
            raise ValueError("lifecycle is not a 32-bit number")
        identity = Identity(
            huk=_hex(content["huk"], (32,)),
            guk=_hex(content["guk"], (32,)),
            bl_hash=_hex(content["bl_hash"], (32, 48, 64)),
            lifecycle=lifecycle,
            implementation_id=_hex(content["implementation_id"], (32,)),
            profile=_text(content["profile"]),
            verification_service=_text(content["verification_service"]),
            configuration=_hex(content["configuration"], range(33)),
            boot=tuple(_boot_entry(entry) for entry in content["boot"]),
        )
        identity.boot_slots()
    except (ValueError, TypeError, KeyError) as error:
        raise damaged(path, f"damaged: {error}") from error
    except IsletError as error:
        raise damaged(path, f"damaged: {error.message}") from error
    return identity


def _hex(value: Any, sizes: Sequence[int]) -> bytes:
    data = bytes.fromhex(_text(value))
    if len(data) not in sizes:
        raise ValueError(f"a value of {len(data)} bytes")
    return data


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a value is not text")
    return value


def _boot_entry(entry: Any) -> Measurement:
    return Measurement(
        _text(entry["type"]),
        _text(entry["version"]),
        _text(entry["algorithm"]),
        bytes.fromhex(_text(entry["signer_id"])),
        bytes.fromhex(_text(entry["value"])),
    )
