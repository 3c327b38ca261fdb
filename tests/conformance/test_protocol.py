"""Messages and frames of both protocols, against the real serde encoder and decoder's verdicts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import vectors

from islet_cli.framing import FramingError, decode_length
from islet_cli.warden import codec, messages, wire

CASES: dict[str, Any] = vectors.load("ISLET_VECTORS_PROTOCOL")
SHAPES = {
    "WardenCommand": messages.WARDEN_COMMAND,
    "WardenResponse": messages.WARDEN_RESPONSE,
    "Request": messages.REALM_REQUEST,
    "Response": messages.REALM_RESPONSE,
}


def identity(case: dict[str, Any]) -> str:
    return f"{case.get('type', 'frame')}: {case['name']}"


@pytest.mark.parametrize("case", CASES.get("messages", []), ids=identity)
def test_message(case: dict[str, Any]) -> None:
    shape = SHAPES[case["type"]]
    value = codec.decode(shape, case["text"].encode())
    assert value == case["json"]
    assert wire.frame(shape, value).hex() == case["frame_hex"]
    assert codec.encode(shape, case["json"]).decode() == case["text"]


@pytest.mark.parametrize("case", CASES.get("decoding", []), ids=identity)
def test_decoding(case: dict[str, Any]) -> None:
    shape = SHAPES[case["type"]]
    body = bytes.fromhex(case["frame_hex"])[4:]
    assert body == case["text"].encode()
    if case["accepted"]:
        assert codec.decode(shape, body) == case["canonical"]
    else:
        with pytest.raises(codec.MessageError):
            codec.decode(shape, body)


async def read_all(data: bytes) -> list[str]:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    out: list[str] = []
    while True:
        try:
            body = await wire.read_body(reader)
        except FramingError:
            return [*out, "framing error"]
        if body is None:
            return [*out, "clean close"]
        try:
            codec.decode(messages.WARDEN_COMMAND, body)
            out.append("message")
        except codec.MessageError:
            out.append("body error")


@pytest.mark.parametrize("case", CASES.get("frames", []), ids=identity)
def test_frame(case: dict[str, Any]) -> None:
    data, verdict = bytes.fromhex(case["bytes_hex"]), case["verdict"]
    if verdict == "wait for body":
        assert decode_length(data) == 8 << 20
        return
    seen = asyncio.run(read_all(data))
    if verdict.startswith("two messages"):
        assert seen == ["message", "message", "clean close"]
    else:
        assert verdict.startswith(seen[0])
