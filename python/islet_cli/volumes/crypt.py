"""Encrypted volumes without the kernel: a dm-crypt mapping over a range of a disk file.

For a developer's tools and for tests; in a realm the kernel does this. Keys are passed as bytes and
never leave the process.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from islet_cli import _native
from islet_cli.volumes.gpt import Partition


@dataclass(frozen=True)
class CryptOptions:
    """What a dm-crypt table line says beside the key.

    `iv_offset` counts in 512-byte units; `sector_size` is 512 or 4096 bytes.
    """

    spec: str = "aes-xts-plain64"
    sector_size: int = 512
    iv_offset: int = 0
    iv_large_sectors: bool = False


class Volume:
    """The plaintext of `size` encrypted bytes of a file, at any offset.

    Args:
        path: The disk file.
        key: Volume key; see `_native.blockcrypt.Mapping` for the sizes.
        start: First byte of the volume in the file.
        size: Bytes, a multiple of the crypto sector.
        options: Cipher and geometry.

    Raises:
        InputError: `bad-cipher`: the kernel would refuse this table too.
    """

    def __init__(self, path: Path, key: bytes, start: int, size: int, options: CryptOptions | None = None) -> None:
        options = options or CryptOptions()
        self.path, self.start, self.size = path, start, size
        self._mapping = _native.blockcrypt.Mapping(
            options.spec,
            key,
            sector_size=options.sector_size,
            iv_offset=options.iv_offset,
            iv_large_sectors=options.iv_large_sectors,
        )

    @classmethod
    def of_partition(cls, path: Path, partition: Partition, key: bytes, options: CryptOptions | None = None) -> Volume:
        """The volume that fills a partition."""
        return cls(path, key, partition.start_bytes, partition.size_bytes, options)

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` plaintext bytes from `offset`.

        Raises:
            InputError: Outside the volume.
            OperationError: `disk`: the file refused.
        """
        return self._mapping.read_at(self.path, self.start, self.size, offset, length)

    def write(self, offset: int, data: bytes) -> None:
        """Write plaintext at `offset`; partly covered crypto sectors are read and written back."""
        self._mapping.write_at(self.path, self.start, self.size, offset, data)
