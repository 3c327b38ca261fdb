"""Frames: round trips, and nothing but islet's own errors from hostile bytes."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from islet_cli import framing
from islet_cli.errors import InputError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.lists(JSON, max_size=4))
def test_what_is_written_is_read_back(values: list[object]) -> None:
    stream = io.BytesIO(b"".join(framing.encode(value) for value in values))
    for value in values:
        assert framing.read_frame(stream.read) == value or value is None
    assert framing.read_frame(stream.read) is None


@given(st.binary(max_size=64))
def test_hostile_bytes_raise_only_our_errors(data: bytes) -> None:
    stream = io.BytesIO(data)
    try:
        framing.read_frame(stream.read)
    except InputError as error:
        assert isinstance(error, framing.FramingError | framing.BodyError)


def test_a_large_prefix_is_refused_before_anything_is_read() -> None:
    asked: list[int] = []

    def receive(count: int) -> bytes:
        asked.append(count)
        return (framing.MAX_FRAME + 1).to_bytes(4, "big")

    with pytest.raises(framing.FramingError):
        framing.read_frame(receive)
    assert asked == [4]


@pytest.mark.parametrize("body", [b'{"a":1,"a":2}', b"NaN", b"\xef\xbb\xbf1", b"1 2", b"", b"\xff", b"[" * 100_000])
def test_bodies_that_are_not_strict_json(body: bytes) -> None:
    with pytest.raises(framing.BodyError):
        framing.decode_body(body)
