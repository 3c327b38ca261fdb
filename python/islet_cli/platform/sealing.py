"""Realm sealing keys.

Source: Islet RMM, vendor RSI call 0xC7000191; TF-RMM's variant differs in one byte of SHA-512 realms.
"""

from __future__ import annotations

import struct

from islet_cli.errors import InputError
from islet_cli.metadata.block import MetadataBlock
from islet_cli.platform.derivation import hkdf

FLAG_KEY, FLAG_RIM, FLAG_REALM_ID, FLAG_SVN = 1, 2, 4, 8
KEY_SIZE = 32
RIM_SLOT = RPV_SIZE = 64
_U64_MAX = 2**64 - 1
_SALT = bytes.fromhex("d5775f524ace3221ce771ed274bb74a460ce3fb9749ce37d0ae6d2e907f8b54b")
_INFO = struct.Struct("<96s128s64sQ64sBQ")
_FILLERS = (b"\xaa" * 32, b"\x33" * 32)


def sealing_info(
    *,
    rpv: bytes,
    rim: bytes,
    flags: int,
    svn: int,
    metadata: MetadataBlock | None,
    hash_algo_byte: int = 0,
    strict_svn: bool = False,
) -> bytes:
    """The 369 bytes that say what the key is bound to.

    Args:
        rpv: Realm personalization value, 64 bytes.
        rim: The RIM slot, 64 bytes, zero padded.
        flags: Any 64-bit value; bits beyond the four known ones enter the key as they are.
        svn: Used with `FLAG_SVN` and metadata only.
        metadata: The realm's block, or None: then the RIM is always mixed in.
        hash_algo_byte: Written where the RIM is; the Islet RMM never writes it (0).
        strict_svn: Refuse svn 0 under `FLAG_SVN`, as the written design does and the code does not.

    Raises:
        InputError: `svn` (above that of the metadata), `size`.
    """
    if len(rpv) != RPV_SIZE or len(rim) != RIM_SLOT or not 0 <= flags <= _U64_MAX or not 0 <= svn <= _U64_MAX:
        raise InputError("malformed input of the sealing key", code="size")
    uses_svn = metadata is not None and bool(flags & FLAG_SVN)
    if metadata is not None and uses_svn and (svn > metadata.svn or (strict_svn and svn == 0)):
        raise InputError(f"svn {svn} is not within the metadata's svn {metadata.svn}", code="svn")
    uses_rim = metadata is None or bool(flags & FLAG_RIM)
    return _INFO.pack(
        metadata.public_key if metadata else b"",
        metadata.realm_id_field if metadata and flags & FLAG_REALM_ID else b"",
        rpv,
        flags,
        rim if uses_rim else b"",
        hash_algo_byte if uses_rim else 0,
        svn if uses_svn else 0,
    )


def sealing_key(
    vhuk_a: bytes,
    vhuk_m: bytes,
    *,
    rpv: bytes,
    rim: bytes,
    flags: int,
    svn: int,
    metadata: MetadataBlock | None,
    hash_algo_byte: int = 0,
    strict_svn: bool = False,
    allow_fillers: bool = False,
) -> bytes:
    """Derive a sealing key of 32 bytes; see `sealing_info` for what it is bound to.

    Args:
        vhuk_a: Used without `FLAG_KEY`.
        vhuk_m: Used with `FLAG_KEY`.
        allow_fillers: For tests: take the constants that upstream's monitor falls back to.

    Raises:
        InputError: `svn`, `size`, `default-secrets`.
    """
    ikm = vhuk_m if flags & FLAG_KEY else vhuk_a
    if ikm in _FILLERS and not allow_fillers:
        raise InputError("the virtual HUK is a constant known to everyone", code="default-secrets")
    info = sealing_info(
        rpv=rpv,
        rim=rim,
        flags=flags,
        svn=svn,
        metadata=metadata,
        hash_algo_byte=hash_algo_byte,
        strict_svn=strict_svn,
    )
    return hkdf(ikm, info, KEY_SIZE, _SALT)
