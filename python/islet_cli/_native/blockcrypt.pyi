from os import PathLike

class Mapping:
    """A keyed dm-crypt mapping in user space.

    Args:
        spec: `aes|twofish|serpent`-`cbc|xts`-`plain|plain64|essiv:sha256`.
        key: Volume key: 16, 24 or 32 bytes for cbc; 32, 48 or 64 for xts.
        sector_size: Bytes per crypto sector, 512 or 4096.
        iv_offset: Added to sector numbers, in 512-byte units.
        iv_large_sectors: Count IV numbers in crypto sectors.

    Raises:
        InputError: `bad-cipher`: a combination that the kernel refuses as well.
    """

    def __new__(
        cls, spec: str, key: bytes, *, sector_size: int = 512, iv_offset: int = 0, iv_large_sectors: bool = False
    ) -> Mapping: ...
    def iv(self, sector: int) -> bytes:
        """The 16-byte IV (cbc) or unencrypted tweak (xts) of the sector at `sector`, in 512-byte units."""

    def encrypt(self, sector: int, data: bytes) -> bytes:
        """Encrypt whole crypto sectors; the first lies at `sector`, in 512-byte units."""

    def decrypt(self, sector: int, data: bytes) -> bytes:
        """Decrypt whole crypto sectors; the first lies at `sector`, in 512-byte units."""

    def read_at(self, path: str | PathLike[str], start: int, size: int, offset: int, length: int) -> bytes:
        """Read plaintext from the volume `start..start + size` of a file, `offset` bytes into it."""

    def write_at(self, path: str | PathLike[str], start: int, size: int, offset: int, data: bytes) -> None:
        """Write plaintext into the volume `start..start + size` of a file, `offset` bytes into it."""
