"""JSON as serde reads and writes externally tagged enums, described by small tables.

A `Shape` turns what arrived into its canonical JSON value (members in declaration order, uuids and
addresses in their one written form) or refuses it. Objects arrive as `Pairs`, so that a repeated
member can be told from a repeated map key: the first is an error, of the second the last one wins.

Source: docs/protocols.md; the serde data model (https://serde.rs/enum-representations.html).
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from islet_cli.errors import InputError

_UUID = re.compile(
    r"(?:urn:uuid:)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}|"
    r"\{[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\}",
    re.IGNORECASE,
)


class MessageError(InputError):
    """A message is not one of the protocol."""

    default_code = "protocol"


class Pairs(list[tuple[str, Any]]):
    """A JSON object as it was written: members in order, repetitions kept."""


def parse(data: bytes) -> Any:
    """Parse UTF-8 JSON, objects as `Pairs`.

    Raises:
        MessageError: Not UTF-8, not one JSON value, NaN or infinity, a lone surrogate.
    """
    try:
        text = data.decode("utf-8")
        if text.startswith("\ufeff"):
            raise ValueError("starts with a byte order mark")
        return json.loads(text, object_pairs_hook=Pairs, parse_constant=_refuse, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"not a JSON message: {error}") from error


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _integer(text: str) -> int | float:
    return -0.0 if text == "-0" else int(text)


class Shape(Protocol):
    """One type of the protocol."""

    def read(self, value: Any) -> Any:
        """Return the canonical JSON value, or raise `MessageError`."""


def _expected(what: str, value: Any) -> MessageError:
    shown = json.dumps(value, default=repr)
    return MessageError(f"expected {what}, got {shown if len(shown) <= 60 else shown[:57] + '...'}")


@dataclass(frozen=True)
class Text:
    """A string without lone surrogates."""

    def read(self, value: Any) -> str:
        if not isinstance(value, str):
            raise _expected("a string", value)
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise MessageError("a string with a lone surrogate") from None
        return value


@dataclass(frozen=True)
class Boolean:
    """`true` or `false`."""

    def read(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise _expected("true or false", value)
        return value


@dataclass(frozen=True)
class Integer:
    """An integer in `low..high`; a float is none, however round."""

    low: int
    high: int

    def read(self, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not self.low <= value <= self.high:
            raise _expected(f"an integer in {self.low}..{self.high}", value)
        return value


@dataclass(frozen=True)
class Uuid:
    """A uuid in any of its notations, written lower-case with hyphens."""

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or not _UUID.fullmatch(value):
            raise _expected("a uuid", value)
        digits = re.sub(r"urn:uuid:|[{}-]", "", value, flags=re.IGNORECASE).lower()
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


@dataclass(frozen=True)
class Address:
    """An IPv4 or IPv6 address without prefix length or zone."""

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or "%" in value:
            raise _expected("an IP address", value)
        try:
            address = ipaddress.ip_address(value)
        except ValueError:
            raise _expected("an IP address", value) from None
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return f"::ffff:{mapped}" if mapped else str(address)


@dataclass(frozen=True)
class Optional:
    """A value or null; a missing member reads as null."""

    inner: Shape

    def read(self, value: Any) -> Any:
        return None if value is None else self.inner.read(value)


@dataclass(frozen=True)
class Default:
    """A member that may be left out; `value` then takes its place."""

    inner: Shape
    value: Any

    def read(self, value: Any) -> Any:
        return self.inner.read(value)


@dataclass(frozen=True)
class Array:
    """A list of one shape."""

    inner: Shape

    def read(self, value: Any) -> list[Any]:
        if not isinstance(value, list) or isinstance(value, Pairs):
            raise _expected("a list", value)
        return [self.inner.read(item) for item in value]


@dataclass(frozen=True)
class Dictionary:
    """A map with string keys; of a repeated key the last value counts."""

    inner: Shape

    def read(self, value: Any) -> dict[str, Any]:
        members = value.items() if isinstance(value, dict) else value
        if not isinstance(value, (dict, Pairs)):
            raise _expected("an object", value)
        return {Text().read(key): self.inner.read(item) for key, item in members}


@dataclass(frozen=True)
class Plain:
    """Any JSON object, checked elsewhere; a repeated member is refused."""

    def read(self, value: Any) -> Any:
        if isinstance(value, Pairs):
            out = {key: self.read(item) for key, item in value}
            if len(out) != len(value):
                raise MessageError("a member is repeated")
            return out
        return [self.read(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Struct:
    """An object, or an array in declaration order. Unknown members are ignored."""

    fields: Mapping[str, Shape]

    def read(self, value: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            value = Pairs(value.items())
        if isinstance(value, Pairs):
            return self._members(value)
        if isinstance(value, list):
            if len(value) != len(self.fields):
                raise _expected(f"{len(self.fields)} values", value)
            return {name: shape.read(item) for (name, shape), item in zip(self.fields.items(), value, strict=True)}
        raise _expected("an object", value)

    def _members(self, pairs: Pairs) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, item in pairs:
            if key in self.fields:
                if key in found:
                    raise MessageError(f"member {key!r} is repeated")
                found[key] = item
        out = {}
        for name, shape in self.fields.items():
            if name in found:
                out[name] = _at(name, shape, found[name])
            elif isinstance(shape, Optional):
                out[name] = None
            elif isinstance(shape, Default):
                out[name] = shape.value
            else:
                raise MessageError(f"member {name!r} is missing")
        return out


def _at(name: str, shape: Shape, value: Any) -> Any:
    try:
        return shape.read(value)
    except MessageError as error:
        raise MessageError(f"{name}: {error.message}") from None


@dataclass(frozen=True)
class Unit:
    """A variant without content: its name alone."""


@dataclass(frozen=True)
class EmptyTuple:
    """A tuple variant without fields: `{"Name":[]}` and nothing else."""


@dataclass(frozen=True)
class Enum:
    """An externally tagged enum."""

    variants: Mapping[str, Unit | EmptyTuple | Shape]
    name: str = field(default="message")

    def read(self, value: Any) -> Any:
        if isinstance(value, str):
            if not isinstance(self.variants.get(value), Unit):
                raise _expected(f"a {self.name}", value)
            return value
        if isinstance(value, dict):
            value = Pairs(value.items())
        if not isinstance(value, Pairs) or len(value) != 1:
            raise _expected(f"a {self.name}", value)
        ((tag, content),) = value
        variant = self.variants.get(tag)
        if variant is None:
            raise MessageError(f"unknown {self.name} {tag!r}")
        if isinstance(variant, Unit):
            if content is not None:
                raise _expected(f"nothing inside {tag}", content)
            return tag
        if isinstance(variant, EmptyTuple):
            if content != [] or isinstance(content, Pairs):
                raise _expected(f"an empty list inside {tag}", content)
            return {tag: []}
        return {tag: _at(tag, variant, content)}


def decode(shape: Shape, body: bytes) -> Any:
    """Read one message; returns its canonical JSON value.

    Raises:
        MessageError: It is not a message of this shape.
    """
    return shape.read(parse(body))


def encode(shape: Shape, value: Any) -> bytes:
    """Write one message, members in declaration order, after checking it against its own shape."""
    return json.dumps(shape.read(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def split(message: Any) -> tuple[str, Any]:
    """Return the variant's name and content (None for a unit variant) of a canonical enum value."""
    if isinstance(message, str):
        return message, None
    ((name, content),) = message.items()
    return name, content
