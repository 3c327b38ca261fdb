"""Every kernel of this machine beside hashlib."""

from __future__ import annotations

import hashlib
import random

import pytest

from islet_cli import _native

CASES = [(algorithm, kernel) for algorithm in ("sha256", "sha512") for kernel in _native.granulehash.kernels(algorithm)]


@pytest.mark.parametrize(("algorithm", "kernel"), CASES)
@pytest.mark.parametrize("count", [0, 1, 3, 16, 37])
def test_digests(algorithm: str, kernel: str, count: int) -> None:
    data = random.Random(count).randbytes(count * 4096)
    expected = b"".join(hashlib.new(algorithm, data[i : i + 4096]).digest() for i in range(0, len(data), 4096))
    assert _native.granulehash.digest(algorithm, data, kernel=kernel) == expected


def test_the_best_kernel_comes_first() -> None:
    data = bytes(8192)
    best = _native.granulehash.kernels("sha512")[0]
    assert _native.granulehash.digest("sha512", data) == _native.granulehash.digest("sha512", data, kernel=best)


@pytest.mark.parametrize(
    ("arguments", "kernel", "words"),
    [
        (("sha256", bytes(4097)), None, "no whole number of granules"),
        (("sha256", bytes(4096)), "abacus", "no such kernel"),
        (("md5", bytes(4096)), None, "unknown hash algorithm"),
    ],
)
def test_refusals(arguments: tuple[str, bytes], kernel: str | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _native.granulehash.digest(*arguments, kernel=kernel)
