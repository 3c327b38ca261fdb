"""Keys that sign metadata blocks: P-384, SEC1 or PKCS#8, PEM or DER."""

from __future__ import annotations

from pathlib import Path

from islet_cli.errors import InputError
from islet_cli.fsutil import read_file
from islet_cli.keys import ecc


def parse_signing_key(data: bytes, *, what: str = "signing key") -> ecc.PrivateKey:
    """Read a signing key.

    Raises:
        InputError: `key-format` (not a private key in a form that is read here) or `key-curve` (another
            curve or key type).
    """
    try:
        return ecc.parse_private(data, what=what)
    except InputError as error:
        code = "key-curve" if error.details.get("reason") == "curve" else "key-format"
        raise InputError(error.message, code=code, hint=error.hint) from error


def load_signing_key(path: Path) -> ecc.PrivateKey:
    """Read a signing key from a file; see `parse_signing_key`."""
    return parse_signing_key(read_file(path, limit=ecc.MAX_KEY_FILE), what=str(path))
