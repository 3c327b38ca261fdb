"""The realm metadata block: its 432 bytes read and its signature checked. Runs inside realms.

    0x000    8  fmt_version      0x0D0    8  svn
    0x008  128  realm_id         0x0D8   24  version (major, minor, patch)
    0x088   64  rim              0x0F0   96  public_key (X || Y, P-384)
    0x0C8    8  hash_algo        0x150   96  signature (r || s over SHA-384 of the first 0x150 bytes)

Integers are unsigned, 64 bits, little-endian.

Source: realm-metadata-tool and Islet RMM of the Islet project.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from islet_cli.errors import InputError, IsletError, VerificationError

BLOCK_SIZE = 432
PAGE_SIZE = 4096
SIGNED_SIZE = 336
REALM_ID_SIZE = 128
RIM_SIZE = 64
FORMAT_VERSION = 1

LAYOUT = struct.Struct("<Q128s64sQQQQQ96s96s")
HASH_NAMES = {1: "SHA256", 2: "SHA512"}
HASH_NUMBERS = {"SHA256": 1, "SHA512": 2, "sha256": 1, "sha512": 2, "sha-256": 1, "sha-512": 2}
HASH_SIZES = {1: 32, 2: 64}


@dataclass(frozen=True)
class MetadataBlock:
    """A metadata block as its bytes say, whether or not a monitor would take it.

    Attributes:
        fmt_version: 1 in every block that a monitor takes.
        realm_id_field: The 128 bytes of the field; all of them enter sealing keys.
        rim: The 64-byte slot: hash left-aligned, zero padded.
        hash_algo: 1 SHA-256, 2 SHA-512.
        svn: Security version number.
        version: (major, minor, patch).
        public_key: P-384 point, X || Y, 96 bytes.
        signature: r || s, 96 bytes.
    """

    fmt_version: int
    realm_id_field: bytes
    rim: bytes
    hash_algo: int
    svn: int
    version: tuple[int, int, int]
    public_key: bytes
    signature: bytes

    @property
    def realm_id(self) -> str:
        """The identifier up to the first NUL; bytes beyond ASCII are shown as escapes."""
        return self.realm_id_field.partition(b"\0")[0].decode("ascii", "backslashreplace")

    @property
    def hash_name(self) -> str:
        """`SHA256`, `SHA512`, or `unknown (N)`."""
        return HASH_NAMES.get(self.hash_algo, f"unknown ({self.hash_algo})")

    def to_bytes(self) -> bytes:
        """The 432 bytes."""
        return LAYOUT.pack(
            self.fmt_version,
            self.realm_id_field,
            self.rim,
            self.hash_algo,
            self.svn,
            *self.version,
            self.public_key,
            self.signature,
        )

    def to_json(self) -> dict[str, object]:
        """Members named as in the layout, byte strings as lower-case hex."""
        return {
            "fmt_version": self.fmt_version,
            "realm_id": self.realm_id,
            "rim": self.rim.hex(),
            "hash_algo": self.hash_name,
            "version": ".".join(map(str, self.version)),
            "svn": self.svn,
            "public_key": self.public_key.hex(),
            "signature": self.signature.hex(),
        }


def parse(data: bytes, *, what: str = "metadata block") -> MetadataBlock:
    """Read a block of 432 bytes, or the 4096-byte page that a monitor returns (its tail is ignored).

    Raises:
        InputError: `length`.
    """
    if len(data) not in (BLOCK_SIZE, PAGE_SIZE):
        raise InputError(f"{what}: {len(data)} bytes long, a block has {BLOCK_SIZE}", code="length")
    version, realm_id, rim, algo, svn, major, minor, patch, key, signature = LAYOUT.unpack_from(data)
    return MetadataBlock(version, realm_id, rim, algo, svn, (major, minor, patch), key, signature)


def verify(data: bytes, *, what: str = "metadata block") -> MetadataBlock:
    """Read a block and check its signature under the key that it carries itself.

    That proves integrity, not authority: compare `public_key` with the signer you expect.

    Raises:
        InputError: `length`.
        VerificationError: `signature`: the key is no point of P-384, or the signature does not hold.
    """
    from islet_cli.keys.ecc import PublicKey

    block = parse(data, what=what)
    try:
        key = PublicKey.from_point(b"\x04" + block.public_key, what=f"{what}: embedded key")
        key.verify_raw(block.signature, data[:SIGNED_SIZE])
    except IsletError as error:
        raise VerificationError(f"{what}: signature does not hold: {error.message}", code="signature") from error
    return block
