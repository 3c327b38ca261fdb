"""Verify a metadata block file, with the pins that the format itself lacks."""

from __future__ import annotations

from dataclasses import dataclass

from islet_cli.errors import InputError, VerificationError
from islet_cli.metadata import block as blocks
from islet_cli.metadata import monitor


@dataclass(frozen=True)
class VerifiedBlock:
    """A block whose signature holds, and what a monitor would answer to it (`RMI_SUCCESS` or the refusal)."""

    block: blocks.MetadataBlock
    monitor_result: str


def verify_block(
    data: bytes, *, public_key: bytes | None = None, min_svn: int | None = None, what: str = "metadata block"
) -> VerifiedBlock:
    """Verify a block file.

    Args:
        data: The file: exactly 432 bytes (a padded page is not a file of this format).
        public_key: The signer that is expected, X || Y (96 bytes). The block itself has no trust anchor.
        min_svn: The lowest security version that is acceptable. Nothing else keeps old blocks out.
        what: Names the input in errors.

    Raises:
        InputError: `length`.
        VerificationError: `signature`, `public-key`, `svn`.
    """
    if len(data) != blocks.BLOCK_SIZE:
        raise InputError(f"{what}: {len(data)} bytes long, a block has {blocks.BLOCK_SIZE}", code="length")
    block = blocks.verify(data, what=what)
    if public_key is not None and block.public_key != public_key:
        raise VerificationError(
            f"{what}: signed by {block.public_key[:8].hex()}…, not by the expected key {public_key[:8].hex()}…",
            code="public-key",
        )
    if min_svn is not None and block.svn < min_svn:
        raise VerificationError(f"{what}: its svn {block.svn} is below {min_svn}", code="svn")
    result = monitor.set_result(data)
    assert result is not None
    return VerifiedBlock(block, result)
