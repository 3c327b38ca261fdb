"""How much room the files of a layer take when it is unpacked."""

from __future__ import annotations

from pathlib import Path

from islet_cli.oci.descriptor import Descriptor
from islet_cli.oci.layers import decompressed
from islet_cli.oci.tarstream import TarStream
from islet_cli.oci.tree import footprint


def unpacked_bytes(root: Path, layer: Descriptor) -> int:
    """The footprint of one layer, read through once.

    Raises:
        InputError: The layer is no sound tar stream.
        VerificationError: `blob_missing`, `size_mismatch`.
    """
    return sum(footprint(member.size, directory=member.is_directory) for member in TarStream(decompressed(root, layer)))
