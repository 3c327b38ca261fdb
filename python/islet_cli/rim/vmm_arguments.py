"""Command lines of QEMU and cloud-hypervisor: lists of options, values of comma-separated properties.

Only what is known to be measured, or known not to be, is accepted: an unknown option is an error
that names it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from islet_cli.errors import InputError

_SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)i?B?", re.IGNORECASE | re.ASCII)
_SHIFTS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def error(option: str, problem: str, hint: str | None = None) -> InputError:
    """The error about one option."""
    shown = option if option.isprintable() else ascii(option)[1:-1]
    return InputError(f"{shown[:100]}: {problem}", code="rim-option", hint=hint)


def split(
    arguments: Sequence[str], valued: frozenset[str], flags: frozenset[str]
) -> list[tuple[str, str, tuple[str, ...]]]:
    """Name without dashes, value and words of each option, in order; one dash means the same as two.

    Raises:
        InputError: An unknown option, a missing value, a positional argument.
    """
    rest = list(arguments)
    out: list[tuple[str, str, tuple[str, ...]]] = []
    while rest:
        word = rest.pop(0)
        name, equals, inline = word.lstrip("-").partition("=")
        if not word.startswith("-") or not name:
            raise error(word, "not an option")
        if name in flags and not equals:
            out.append((name, "", (word,)))
        elif name not in valued:
            raise error(word, "unknown option; whether it changes the RIM is not known", "leave it out to measure")
        elif equals:
            out.append((name, inline, (word,)))
        elif rest:
            out.append((name, rest[0], (word, rest.pop(0))))
        else:
            raise error(word, "a value is missing")
    return out


def properties(option: str, value: str, *, first: str | None = None) -> list[tuple[str, str]]:
    """`a=1,b=2` as pairs; a first word without `=` is the value of `first`."""
    out: list[tuple[str, str]] = []
    for number, item in enumerate(value.split(",")):
        name, equals, text = item.partition("=")
        if not equals and number == 0 and first is not None:
            name, text = first, item
        elif not equals:
            raise error(f"{option} {value}", f"{item!r} is not NAME=VALUE")
        out.append((name, text))
    return out


def number(option: str, value: str) -> int:
    """A positive decimal number."""
    if not re.fullmatch(r"[0-9]{1,9}", value, re.ASCII) or int(value) == 0:
        raise error(f"{option} {value}", "not a positive number")
    return int(value)


def size(option: str, value: str, *, unit: str) -> int:
    """A size in bytes; `unit` is that of a number without a letter."""
    match = _SIZE.fullmatch(value)
    if match is None or int(match[1]) == 0:
        raise error(f"{option} {value}", "not a size", "write for example 512M or 2G")
    return int(match[1]) << _SHIFTS[match[2].upper() or unit]


def switch(option: str, value: str) -> bool:
    """`on` or `off`."""
    if value not in ("on", "off"):
        raise error(f"{option}={value}", "neither on nor off")
    return value == "on"
