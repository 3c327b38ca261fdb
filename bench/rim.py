"""The measurement of a realm beside the limit that hashing sets, and that limit beside OpenSSL.

The limit of a measurement is measured in the same run: all content bytes, in memory, at the rate of the best
kernel on as many threads as the measurement has, and after them the sequential chain on one. The chain alone is
the measurement of a realm whose header declares as much zeroed memory as the other one has content.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.figures import Figure
from islet_cli import _native

ISLET = str(Path(sys.executable).with_name("islet"))
KERNEL_MIB, INITRAMFS_MIB = 48, 200
CONTENT_BYTES = (KERNEL_MIB + INITRAMFS_MIB) << 20
GRANULE = 4096
ALGORITHMS = ("sha256", "sha512")
ROUNDS = 5
GOAL_DEVICE_TREE_MS = 1.0
# Little enough for a core's own cache, like the 4 KiB that OpenSSL hashes again and again.
HOT_BYTES = 96 * GRANULE


def measure() -> Iterator[Figure]:
    """Kernels, whole measurements, the command, the device tree, and other tools where there are any."""
    for algorithm in ALGORITHMS:
        yield from _kernels(algorithm)
    with tempfile.TemporaryDirectory(prefix="islet-bench-") as scratch:
        files = _Files(Path(scratch))
        for algorithm in ALGORITHMS:
            for threads in sorted({1, os.cpu_count() or 1}):
                yield _measurement(files, algorithm, threads)
        yield from _command(files)
        yield _device_tree(files)
        yield from _others(files)


class _Files:
    """A kernel, an initramfs, and a kernel that is a header alone, in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.kernel, self.initramfs, self.header = (directory / name for name in ("kernel", "initramfs", "header"))
        self.kernel.write_bytes(bytes(64) + os.urandom((KERNEL_MIB << 20) - 64))
        self.initramfs.write_bytes(os.urandom(INITRAMFS_MIB << 20))
        # An arm64 Image that is 64 bytes long and takes up all the content's size in memory.
        header = bytearray(64)
        header[0x10:0x18] = CONTENT_BYTES.to_bytes(8, "little")
        header[0x38:0x3C] = b"ARM\x64"
        self.header.write_bytes(header)

    def arguments(self, algorithm: str) -> list[str]:
        return [*_COMMON, f"--measurement-algo={algorithm}", "-k", str(self.kernel), "-i", str(self.initramfs)]

    def chain_arguments(self, algorithm: str) -> list[str]:
        return [*_COMMON, f"--measurement-algo={algorithm}", "-k", str(self.header), "--nodefaults"]


_COMMON = ["-c", "2", "-m", "512", "--irqchip=gicv3", "--realm"]


def _seconds(action: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    began = clock()
    action()
    return clock() - began


def _best(action: Callable[[], object], clock: Callable[[], float] = time.perf_counter, times: int = ROUNDS) -> float:
    """The shortest of several runs: what else runs on the machine only ever adds."""
    return min(_seconds(action, clock) for _ in range(times))


def _kernels(algorithm: str) -> Iterator[Figure]:
    """Rate of every kernel on one core, in processor time, as `openssl speed` counts."""
    peer = _openssl(algorithm)
    data = os.urandom(HOT_BYTES)
    for kernel in _native.granulehash.kernels(algorithm):

        def action(kernel: str = kernel) -> None:
            for _ in range(64):
                _native.granulehash.digest(algorithm, data, kernel=kernel)

        rate = 64 * HOT_BYTES / _best(action, time.process_time, 7) / 1e9
        yield Figure(f"{algorithm} of granules, one core, {kernel}", rate, peer, "GB/s", "OpenSSL, pieces of 4 KiB")


def _openssl(algorithm: str) -> float:
    """GB/s of `openssl speed`, the best of three."""

    def once() -> float:
        out = subprocess.run(
            ["openssl", "speed", "-mr", "-seconds", "1", "-bytes", str(GRANULE), "-evp", algorithm],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        found = re.search(r"^\+F:\d+:[\w-]+:([\d.]+)$", out, re.MULTILINE)
        return float(found[1]) / 1e9 if found else 0.0

    return max(once() for _ in range(3))


def _measurement(files: _Files, algorithm: str, threads: int) -> Figure:
    """Throughput of a whole measurement; limit and measurement take turns, the best of each counts."""
    from islet_cli.rim.measure import measure_arguments

    content = [os.urandom(16 << 20)] * threads
    arguments, chain_arguments = files.arguments(algorithm), files.chain_arguments(algorithm)
    ours = hashing = chain = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(ROUNDS):
            ours = min(ours, _seconds(lambda: measure_arguments(arguments, threads=threads)))
            hashing = min(
                hashing, _seconds(lambda: list(pool.map(lambda d: _native.granulehash.digest(algorithm, d), content)))
            )
            chain = min(chain, _seconds(lambda: measure_arguments(chain_arguments, threads=1)))
    limit = CONTENT_BYTES * hashing / sum(map(len, content)) + chain
    what = f"RIM of {KERNEL_MIB} + {INITRAMFS_MIB} MiB, {algorithm}, {threads} thread{'s' if threads > 1 else ''}"
    return Figure(what, CONTENT_BYTES / ours / 1e9, CONTENT_BYTES / limit / 1e9, "GB/s", "limit: content, then chain")


def _command(files: _Files) -> Iterator[Figure]:
    """The command beside the call of the library, and `explain` beside `compute`, both as calls."""
    from islet_cli.rim.explain import explain
    from islet_cli.rim.measure import measure_request
    from islet_cli.rim.request import of_command_line

    for algorithm in ALGORITHMS:
        words = ["run", *files.arguments(algorithm)]
        request = of_command_line(words)
        library = command = explained = float("inf")
        for _ in range(ROUNDS):
            library = min(library, _seconds(lambda request=request: measure_request(request)))  # type: ignore[misc]
            command = min(command, _seconds(lambda words=words: _run([ISLET, "rim", "compute", "--", *words])))  # type: ignore[misc]
            explained = min(explained, _seconds(lambda request=request: explain(request)))  # type: ignore[misc]
        yield Figure(f"islet rim compute, {algorithm}", command, library, "s", "call of the library")
        yield Figure(f"explanation, {algorithm}", explained, library, "s", "measurement")


def _run(argv: Sequence[str]) -> None:
    # Users have their modules compiled.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env=environment)


def _device_tree(files: _Files) -> Figure:
    from islet_cli.rim.command_line import machine_of

    machine = machine_of(files.arguments("sha256"), cwd=Path(), profile=None)
    initramfs = (0x8000_0000, 0x8000_0000 + (INITRAMFS_MIB << 20))
    seconds = _best(lambda: _native.rim.build_device_tree(machine, initramfs), times=100)
    return Figure("device tree built", seconds * 1e3, GOAL_DEVICE_TREE_MS, "ms", "goal")


def _others(files: _Files) -> Iterator[Figure]:
    """Other tools that measure the same launch, where they are installed."""
    arguments = files.arguments("sha256")
    peers = {
        "lkvm-rim-measurer": ["lkvm-rim-measurer", "run", *arguments],
        "realm-measurements": [
            *("realm-measurements", "--kernel", str(files.kernel), "--initrd", str(files.initramfs)),
            *("kvmtool", "--", *arguments),
        ],
    }
    for program, argv in peers.items():
        if shutil.which(program) is None:
            continue
        ours = _best(lambda: _run([ISLET, "rim", "compute", "--", "run", *arguments]))
        yield Figure("islet rim compute, sha256", ours, _best(lambda argv=argv: _run(argv)), "s", program)  # type: ignore[misc]
