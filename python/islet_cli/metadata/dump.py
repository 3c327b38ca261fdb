"""The text form of a metadata block, line for line that of the upstream tool."""

from __future__ import annotations

from islet_cli.metadata.block import MetadataBlock


def dump_text(block: MetadataBlock) -> str:
    """Eight lines, keys padded to 12 columns, hex in upper case. The signature is not checked."""
    rows = {
        "fmt": str(block.fmt_version),
        "realm_id": f"'{block.realm_id}'",
        "rim": block.rim.hex().upper(),
        "hash_algo": block.hash_name,
        "version": ".".join(map(str, block.version)),
        "svn": str(block.svn),
        "public_key": block.public_key.hex().upper(),
        "signature": block.signature.hex().upper(),
    }
    return "".join(f"{name + ':':<12}{value}\n" for name, value in rows.items())


def hexdump(data: bytes) -> str:
    """Offset, 16 bytes in hex, and the printable characters, one line each."""
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        text = "".join(chr(byte) if 0x20 <= byte <= 0x7E else "." for byte in row)
        lines.append(f"{at:08x}  {row.hex(' '):<47}  {text}\n")
    return "".join(lines)
