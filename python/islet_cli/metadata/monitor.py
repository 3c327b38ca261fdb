"""What the realm management monitor says to a metadata block.

The emulated platform enforces these rules; `islet metadata verify` reports them, because a block may carry
a valid signature and still be refused at launch.

Source: Islet RMM, vendor RMI calls 0xC7000150 (set metadata) and realm activate.
"""

from __future__ import annotations

from islet_cli.errors import IsletError
from islet_cli.metadata.block import (
    BLOCK_SIZE,
    FORMAT_VERSION,
    HASH_NAMES,
    HASH_NUMBERS,
    PAGE_SIZE,
    RIM_SIZE,
    MetadataBlock,
    verify,
)

SUCCESS = "RMI_SUCCESS"


def refusal_at_set(block_or_page: bytes) -> str | None:
    """Why a monitor would refuse to attach the block: `signature`, `format`, `svn`, `hash-algo`, `realm-id` or None.

    Args:
        block_or_page: At least 432 bytes; a monitor reads a page and ignores what follows the block.
    """
    try:
        block = verify(block_or_page[:BLOCK_SIZE])
    except IsletError:
        return "signature"
    if block.fmt_version != FORMAT_VERSION:
        return "format"
    if block.svn == 0:
        return "svn"
    if block.hash_algo not in HASH_NAMES:
        return "hash-algo"
    identifier = block.realm_id_field.partition(b"\0")[0]
    if not all(0x20 <= byte <= 0x7E for byte in identifier):
        return "realm-id"
    return None


def refusal_at_activation(block: MetadataBlock, rim: bytes, hash_algo: str) -> str | None:
    """Why a monitor would refuse to activate a realm with this block: `rim`, `hash-algo` or None.

    Args:
        block: The block set before.
        rim: The realm's initial measurement, without padding.
        hash_algo: The realm's measurement algorithm (`sha256`, `sha512`).
    """
    if block.rim != rim.ljust(RIM_SIZE, b"\0"):
        return "rim"
    if block.hash_algo != HASH_NUMBERS[hash_algo]:
        return "hash-algo"
    return None


def set_result(data: bytes) -> str | None:
    """The monitor's result name for a file handed to it, padded to its page; None when it is no block at all."""
    if not BLOCK_SIZE <= len(data) <= PAGE_SIZE:
        return None
    reason = refusal_at_set(data)
    return SUCCESS if reason is None else f"RMI_ERROR_INPUT:{reason}"


def activation_result(block: MetadataBlock, rim: bytes, hash_algo: str) -> str:
    """The monitor's result name for activation."""
    reason = refusal_at_activation(block, rim, hash_algo)
    return SUCCESS if reason is None else f"RMI_ERROR_REALM:{reason}"
