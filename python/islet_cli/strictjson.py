"""JSON as it must be when it crosses a trust boundary: UTF-8, no repeated keys, no NaN, bounded depth."""

from __future__ import annotations

import json
from typing import Any

from islet_cli.errors import InputError


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"key {key!r} is repeated")
        out[key] = value
    return out


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def loads(data: bytes | str, *, what: str = "document", code: str = "json") -> Any:
    """Parse strict JSON.

    Args:
        data: The text; bytes must be UTF-8 without a byte order mark.
        what: Names the input in the error.
        code: Error code of the `InputError`.

    Raises:
        InputError: Not strict JSON.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        if text.startswith("\ufeff"):
            raise ValueError("starts with a byte order mark")
        return json.loads(text, object_pairs_hook=_pairs, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what}: not valid JSON: {error}", code=code) from error


def dumps(value: Any) -> bytes:
    """Write compact UTF-8 JSON, members in the order given (docs/protocols.md)."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")
