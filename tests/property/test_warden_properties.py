"""Untrusted bytes from clients and realms: nothing but islet errors, and framing that no cut can shift."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from islet_cli.errors import IsletError
from islet_cli.warden import codec, messages
from islet_cli.warden.channel import HELLO, RealmStream
from islet_cli.warden.errors import from_wire
from islet_cli.warden.network import RegistryAddress

SHAPES = [messages.WARDEN_COMMAND, messages.WARDEN_RESPONSE, messages.REALM_REQUEST, messages.REALM_RESPONSE]
TAGS = sorted({name for shape in SHAPES for name in shape.variants})
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
)
UUIDS = st.uuids().map(str)


@given(st.sampled_from(SHAPES), st.binary(max_size=200))
def test_any_bytes(shape: codec.Enum, body: bytes) -> None:
    with contextlib.suppress(codec.MessageError):
        codec.decode(shape, body)


@given(st.sampled_from(SHAPES), st.sampled_from(TAGS), VALUES)
def test_any_content_under_a_known_tag(shape: codec.Enum, tag: str, content: Any) -> None:
    body = json.dumps({tag: content}).encode()
    try:
        value = codec.decode(shape, body)
    except codec.MessageError:
        return
    assert codec.decode(shape, codec.encode(shape, value)) == value


@pytest.mark.parametrize("depth", [10_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    with pytest.raises(codec.MessageError):
        codec.decode(messages.WARDEN_COMMAND, b"[" * depth)


@given(st.lists(st.one_of(st.just(None), st.binary(max_size=60)), max_size=6), st.data())
def test_cuts_do_not_shift_the_stream(items: list[bytes | None], data: st.DataObject) -> None:
    # None stands for a manager that begins anew.
    whole = b"".join(messages.REALM_HELLO if item is None else len(item).to_bytes(4, "big") + item for item in items)
    stream, out, position = RealmStream(), [], 0
    while position < len(whole):
        size = data.draw(st.integers(1, len(whole) - position))
        out += list(stream.feed(whole[position : position + size]))
        position += size
    assert out == [HELLO if item is None else item for item in items]


@given(st.text(max_size=40))
def test_registry_addresses_and_error_texts(text: str) -> None:
    with contextlib.suppress(IsletError):
        RegistryAddress.parse(text)
    assert isinstance(from_wire(text), IsletError)
