"""Key files: writing them with the right modes, telling what one holds, detached signatures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from islet_cli.errors import InputError
from islet_cli.fsutil import read_file, write_atomic
from islet_cli.keys import ecc
from islet_cli.keys.ecc import MAX_KEY_FILE, PrivateKey, PublicKey

KeyFormat = Literal["der", "pem"]
MAX_SIGNATURE_FILE = 4096


def write_private(path: Path, key: PrivateKey, form: KeyFormat = "der", *, force: bool = False) -> None:
    """Write a private key as SEC1, mode 0600.

    Raises:
        InputError: The file exists and `force` is false (`exists`).
    """
    write_atomic(path, key.pem() if form == "pem" else key.sec1_der(), mode=0o600, overwrite=force)


def write_public(path: Path, key: PublicKey, form: KeyFormat = "der") -> None:
    """Write a public key as SPKI."""
    write_atomic(path, key.pem() if form == "pem" else key.spki, mode=0o644)


def load_any(path: Path) -> PrivateKey | PublicKey:
    """Read a key file of either kind.

    Raises:
        InputError: `key_invalid`: it holds neither.
    """
    data = read_file(path, limit=MAX_KEY_FILE)
    try:
        return ecc.parse_public(data, what=str(path))
    except InputError as public_error:
        try:
            return ecc.parse_private(data, what=str(path))
        except InputError as private_error:
            # Another curve is the more telling of the two reasons.
            telling = public_error if public_error.details.get("reason") == "curve" else private_error
            raise telling from None


def load_public_half(path: Path) -> PublicKey:
    """Read a public key, or the public half of a private one."""
    key = load_any(path)
    return key.public if isinstance(key, PrivateKey) else key


def describe(path: Path) -> dict[str, Any]:
    """Type, curve and fingerprint of a key file; nothing of the private part."""
    key = load_any(path)
    public = key.public if isinstance(key, PrivateKey) else key
    return {
        "file": str(path),
        "type": "private" if isinstance(key, PrivateKey) else "public",
        "curve": ecc.CURVE,
        "fingerprint": public.fingerprint,
    }


def load_signature(path: Path) -> bytes:
    """Read a DER signature; whether it is one, its verification tells."""
    return read_file(path, limit=MAX_SIGNATURE_FILE)
