"""Extensible measurements, and the weight of what runs inside a realm."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from islet_cli.attestation import challenge, rem
from islet_cli.errors import InputError


@pytest.mark.parametrize("algo", ["sha256", "sha-256", "sha512", "sha-512"])
def test_extension(algo: str) -> None:
    name = algo.replace("-", "")
    size = rem.hash_size(algo)
    assert rem.extend(bytes(64), b"data", algo) == hashlib.new(name, bytes(size) + b"data").digest()
    assert rem.predict([], algo) == [bytes(size)] * 4


def test_prediction_follows_order_and_index() -> None:
    first, second = (
        rem.application_measurement([b"key", b"sig"], hashlib.sha384(name).digest()) for name in (b"1", b"2")
    )
    assert rem.predict([first, second], "sha256") != rem.predict([second, first], "sha256")
    moved = rem.predict([first], "sha256", index=2)
    assert moved[2] == rem.predict([first], "sha256")[0] and moved[0] == bytes(32)


@pytest.mark.parametrize("size", [0, 65])
def test_sizes_that_the_monitor_refuses(size: int) -> None:
    with pytest.raises(InputError) as caught:
        rem.extend(bytes(32), bytes(size), "sha256")
    assert caught.value.code == "size"


def test_nothing_else_is_a_measurement_algorithm() -> None:
    with pytest.raises(InputError) as caught:
        rem.extend(bytes(32), b"x", "sha384")
    assert caught.value.code == "hash-algo"


@pytest.mark.parametrize("size", [0, 63, 65])
def test_host_challenges_have_64_bytes(size: int) -> None:
    with pytest.raises(InputError) as caught:
        challenge.host_challenge(bytes(size))
    assert caught.value.code == "challenge-length"


def test_what_runs_inside_a_realm_imports_nothing_heavy() -> None:
    code = (
        "import sys; from islet_cli.attestation import challenge, rem; from islet_cli.metadata import block;"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}"
        " & {'cbor2', 'msgspec', 'typer', 'rich', 'cryptography', 'yaml', 'asyncio', 'urllib', 'email'}))"
    )
    output = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == []
