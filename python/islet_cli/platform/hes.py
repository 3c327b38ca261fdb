"""The HES of an emulated platform, and the directory that keeps its identity.

The identity is made once and never replaced silently: every sealed volume depends on it.

Source: docs/formats.md; the derivations are those of the Islet HES.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from functools import cached_property
from pathlib import Path

from islet_cli.errors import InputError
from islet_cli.fsutil import fsync_directory, make_private_directory, os_error, read_file, write_atomic
from islet_cli.keys.ecc import PrivateKey, private_from_scalar
from islet_cli.platform import derivation, evidence
from islet_cli.platform.identity import Identity, damaged, new_identity, parse_identity

HES_FILE, CPAK_FILE, CPAK_PEM_FILE = "hes.json", "cpak.bin", "cpak.pem"
FILES = (HES_FILE, CPAK_FILE, CPAK_PEM_FILE)


class Hes:
    """Hardware enforced security of one boot: keys, slots, platform tokens."""

    def __init__(self, identity: Identity, *, allow_default_secrets: bool = False) -> None:
        """Boot.

        Args:
            identity: Secrets and boot measurements.
            allow_default_secrets: For tests: take the published secrets of upstream's emulator.

        Raises:
            InputError: `default-secrets`.
        """
        if identity.uses_published_secrets() and not allow_default_secrets:
            raise InputError(
                "the platform's secrets are the published ones of the upstream emulator",
                code="default-secrets",
                hint="make a new identity: islet platform reset --yes",
            )
        self.identity = identity
        self.slots = identity.boot_slots()
        self._delegated: PrivateKey | None = None

    @cached_property
    def cpak(self) -> PrivateKey:
        """The platform attestation key."""
        return private_from_scalar(derivation.cpak_scalar(self.identity.bl_hash, self.identity.guk))

    @property
    def instance_id(self) -> bytes:
        """33 bytes."""
        return derivation.instance_id(self.cpak.public.sec1)

    def delegated_key(self) -> PrivateKey:
        """The realm attestation key for the measurements of this moment."""
        own = self.identity
        scalar = derivation.dak_scalar(own.bl_hash, own.guk, own.lifecycle, self.slots.measurements())
        self._delegated = private_from_scalar(scalar)
        return self._delegated

    def platform_token(self, key_claim: bytes) -> bytes:
        """Vouch for the delegated key.

        Args:
            key_claim: The bytes of the realm token's key claim, SEC1 or COSE_Key of the delegated key.

        Raises:
            InputError: `InvalidArgument`: no delegated key was asked for before, or another key is named.
        """
        from islet_cli.attestation.cose import key_to_cose

        point = self._delegated.public.sec1 if self._delegated else None
        if point is None or key_claim not in (point, key_to_cose(point)):
            raise InputError("the platform token is for the delegated key only", code="InvalidArgument")
        own = self.identity
        content = evidence.PlatformClaims(
            challenge=hashlib.sha256(key_claim).digest(),
            instance_id=self.instance_id,
            profile=own.profile,
            lifecycle=own.lifecycle,
            implementation_id=own.implementation_id,
            measurements=self.slots.measurements(),
            verification_service=own.verification_service,
            configuration=own.configuration,
            hash_algo="sha-256",
        )
        return evidence.sign(content.encode(), self.cpak)

    def vhuks(self) -> tuple[bytes, bytes]:
        """(VHUK_A, VHUK_M), 32 bytes each."""
        own, measured = self.identity, self.slots.measurements()
        return (
            derivation.vhuk_a(own.huk, own.lifecycle, measured),
            derivation.vhuk_m(own.huk, own.lifecycle, measured),
        )


def create_identity(directory: Path) -> Hes:
    """Make a new identity in `directory` (missing or empty); all of it appears at once or nothing.

    Raises:
        InputError: `exists`: there is one, or a part of one.
    """
    present = _present(directory)
    if present:
        raise InputError(f"{directory}: already holds {present[0]}", code="exists")
    hes = Hes(new_identity())
    aside = directory.with_name(f".{directory.name}.{secrets.token_hex(6)}.tmp")
    try:
        make_private_directory(aside)
        _write(hes, aside)
        # Renaming over an empty directory is atomic, over any other it is refused.
        aside.rename(directory)
        fsync_directory(directory.parent)
    except OSError as error:
        raise os_error(error, directory) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return hes


def _present(directory: Path) -> list[str]:
    return [name for name in FILES if (directory / name).exists() or (directory / name).is_symlink()]


def _write(hes: Hes, directory: Path) -> None:
    content = json.dumps(hes.identity.to_json(), indent=1).encode() + b"\n"
    write_atomic(directory / HES_FILE, content)
    write_atomic(directory / CPAK_FILE, hes.cpak.public.sec1, mode=0o644)
    write_atomic(directory / CPAK_PEM_FILE, hes.cpak.public.pem(), mode=0o644)


def load(directory: Path, *, allow_default_secrets: bool = False) -> Hes:
    """Boot the platform whose identity is in `directory`.

    Raises:
        InputError: `damaged`: a file is missing or malformed, or the three do not belong together;
            `default-secrets`.
    """
    for name in FILES:
        if not (directory / name).is_file():
            raise damaged(directory / name, "missing")
    identity = parse_identity(read_file(directory / HES_FILE, limit=64 << 10), directory / HES_FILE)
    hes = Hes(identity, allow_default_secrets=allow_default_secrets)
    for name, expected in ((CPAK_FILE, hes.cpak.public.sec1), (CPAK_PEM_FILE, hes.cpak.public.pem())):
        if read_file(directory / name, limit=64 << 10) != expected:
            raise damaged(directory / name, f"not the key that {HES_FILE} gives")
    return hes


def load_or_create(directory: Path) -> tuple[Hes, bool]:
    """Boot the platform in `directory`, making its identity when there is no trace of one.

    Returns:
        The HES, and whether it is new.
    """
    if _present(directory):
        return load(directory), False
    return create_identity(directory), True


def reset(directory: Path) -> Hes:
    """Throw the identity away and make a new one. Whatever was sealed under the old one is lost.

    Raises:
        InputError: `exists`: files of someone else stand in the directory.
    """
    if directory.exists():
        strangers = sorted(entry.name for entry in directory.iterdir() if entry.name not in FILES)
        if strangers:
            raise InputError(f"{directory / strangers[0]}: not a file of the platform", code="exists")
        for name in _present(directory):
            (directory / name).unlink()
        fsync_directory(directory)
    return create_identity(directory)
