"""Application of image layers (rust/layers)."""

from collections.abc import Sequence
from os import PathLike
from typing import Protocol

class _Layer(Protocol):
    @property
    def path(self) -> PathLike[str] | str: ...
    @property
    def media_type(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def diff_id(self) -> str: ...

class _Limits(Protocol):
    @property
    def max_layer_bytes(self) -> int: ...
    @property
    def max_image_bytes(self) -> int: ...
    @property
    def max_entries(self) -> int: ...
    @property
    def max_layers(self) -> int: ...
    @property
    def max_extended_bytes(self) -> int: ...
    @property
    def max_held_bytes(self) -> int: ...

class Progress:
    def __init__(self) -> None: ...
    @property
    def done(self) -> int:
        """Bytes of blobs read so far, every pass counted."""
    @property
    def total(self) -> int:
        """Bytes to read in all; 0 before the work begins."""
    def cancel(self) -> None:
        """End the work soon with `OperationError` (`interrupted`)."""

def apply(
    root: PathLike[str] | str,
    layers: Sequence[_Layer],
    limits: _Limits,
    ownership: bool,
    skip_devices: bool,
    progress: Progress,
) -> list[tuple[str, str]]:
    """Apply layers to a directory; see `islet_cli.oci.unpack.apply_layers`."""

def open_in_root(root: PathLike[str] | str, path: bytes, limit: int) -> bytes | None:
    """Content of a regular file below `root`, links resolved inside it; None when it is not there.

    Raises:
        VerificationError: `not_a_file`, `not_a_directory`, `symlink_loop`, or `limit_exceeded` bytes.
    """

def exchange(one: PathLike[str] | str, other: PathLike[str] | str) -> bool:
    """Swap two names in one step; False when the kernel or file system cannot do that."""

def flush_file_system(directory: PathLike[str] | str) -> None:
    """Flush the whole file system that holds `directory`."""
