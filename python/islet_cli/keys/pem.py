"""PEM envelopes.

Source: RFC 7468 (strict textual encoding, with any line length accepted).
"""

from __future__ import annotations

import base64
import binascii
import re

from islet_cli.keys.der import DerError

_BLOCK = re.compile(
    rb"\s*-----BEGIN ([A-Z0-9 ]{1,64})-----[ \t]*\r?\n([^-]*)-----END ([A-Z0-9 ]{1,64})-----[ \t]*(?:\r?\n|\Z)"
)


def looks_like_pem(data: bytes) -> bool:
    """Whether `data` starts like a PEM file; DER never does, its first byte being a tag."""
    return data.lstrip().startswith(b"-----BEGIN")


def encode(label: str, data: bytes) -> bytes:
    """Wrap `data` in 64-character lines with LF ends."""
    text = base64.b64encode(data)
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return b"\n".join((f"-----BEGIN {label}-----".encode(), *lines, f"-----END {label}-----".encode(), b""))


def decode_single(data: bytes) -> tuple[str, bytes]:
    """The label and content of the one block of a file; an `EC PARAMETERS` block before it is skipped.

    Raises:
        DerError: Anything else stands in the file, or a block is malformed or encrypted.
    """
    blocks: list[tuple[str, bytes]] = []
    rest = data
    while rest.strip():
        match = _BLOCK.match(rest)
        if match is None or match[1] != match[3]:
            raise DerError("malformed PEM, or text around its blocks")
        blocks.append((match[1].decode("ascii"), _body(match[2])))
        rest = rest[match.end() :]
    if len(blocks) == 2 and blocks[0][0] == "EC PARAMETERS":
        del blocks[0]
    if len(blocks) != 1:
        raise DerError("the PEM file holds more than one key")
    label, body = blocks[0]
    if label == "ENCRYPTED PRIVATE KEY":
        raise DerError("the key is encrypted")
    return label, body


def _body(text: bytes) -> bytes:
    if b":" in text:
        # RFC 1421 headers: Proc-Type 4,ENCRYPTED of traditional OpenSSL files.
        raise DerError("the key is encrypted")
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error:
        raise DerError("malformed base64 in PEM") from None
