"""Digests of many granules at once (crate islet-granulehash)."""

def kernels(hash_algo: str) -> list[str]:
    """Names of this machine's kernels for `sha256` or `sha512`, fastest first; the last is always `portable`."""

def digest(hash_algo: str, data: bytes, *, kernel: str | None = None) -> bytes:
    """The digests (32 or 64 bytes each) of the 4096-byte granules in `data`, one after the other.

    Raises:
        ValueError: Not a whole number of granules, or this machine has no such kernel.
    """
