"""Reading requests of both sockets: one variant, its members, their types.

Source: docs/protocols.md (serde's externally tagged form: `"Unit"` or `{"Variant":{…}}`).
"""

from __future__ import annotations

from typing import Any

from islet_cli.errors import InputError

U64_MAX = 2**64 - 1


def variant(request: Any, units: frozenset[str], structs: dict[str, tuple[str, ...]]) -> tuple[str, dict[str, Any]]:
    """Split a request into its name and its members. Unknown extra members are ignored.

    Args:
        request: A decoded frame.
        units: Names of requests without members.
        structs: Names of requests with members, and the members that each needs.

    Raises:
        InputError: `request`: anything else.
    """
    if isinstance(request, str) and request in units:
        return request, {}
    if isinstance(request, dict) and len(request) == 1:
        ((name, members),) = request.items()
        if name in units and members is None:
            return name, {}
        if name in structs and isinstance(members, dict):
            missing = [member for member in structs[name] if member not in members]
            if missing:
                raise InputError(f"{name}: member {missing[0]!r} is missing", code="request")
            return name, members
    raise InputError("unknown request", code="request")


def octets(value: Any, what: str, *, limit: int = 4096) -> bytes:
    """A byte string written as an array of integers.

    Raises:
        InputError: `request`.
    """
    if not isinstance(value, list) or len(value) > limit or not all(_is_octet(one) for one in value):
        raise InputError(f"{what} is not an array of at most {limit} bytes", code="request")
    return bytes(value)


def _is_octet(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 255


def unsigned(value: Any, what: str) -> int:
    """An unsigned 64-bit integer.

    Raises:
        InputError: `request`.
    """
    if type(value) is not int or not 0 <= value <= U64_MAX:
        raise InputError(f"{what} is not an unsigned 64-bit integer", code="request")
    return value


def text(value: Any, what: str) -> str:
    """A string.

    Raises:
        InputError: `request`.
    """
    if not isinstance(value, str):
        raise InputError(f"{what} is not a string", code="request")
    return value
