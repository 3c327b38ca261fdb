"""The measurement of a realm beside OpenSSL hashing the same bytes once."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure, median_seconds

KERNEL_MIB = 16
INITRAMFS_MIB = 32


def measure() -> Iterator[Figure]:
    """RIM of a 16 MiB kernel and a 32 MiB initramfs, both algorithms."""
    from islet_cli.rim.measure import measure_arguments

    with tempfile.TemporaryDirectory() as scratch:
        kernel, initramfs = Path(scratch, "kernel"), Path(scratch, "initramfs")
        kernel.write_bytes(os.urandom(KERNEL_MIB << 20))
        initramfs.write_bytes(os.urandom(INITRAMFS_MIB << 20))
        content = kernel.read_bytes() + initramfs.read_bytes()
        for algorithm in ("sha256", "sha512"):
            arguments = ["-c", "2", "-m", "512", "-k", str(kernel), "-i", str(initramfs), "--irqchip=gicv3", "--realm"]
            arguments.append(f"--measurement-algo={algorithm}")
            ours = median_seconds(lambda arguments=arguments: measure_arguments(arguments), 5)
            peer = median_seconds(lambda algorithm=algorithm: hashlib.new(algorithm, content).digest(), 5)
            yield Figure(f"RIM of 48 MiB, {algorithm}", ours, peer, "s", f"OpenSSL {algorithm} of the same bytes")
