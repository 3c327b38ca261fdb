"""Numbers as the C library reads them: kvmtool's command line is defined by strtol and strtoull.

Source: ISO C 7.24.1.7 (strtol and relatives), glibc's saturation; kvmtool `builtin-run.c` (memory sizes).
"""

from __future__ import annotations

import re

from islet_cli.errors import InputError

U64_MAX = (1 << 64) - 1
U32_MASK = (1 << 32) - 1
_I64_MAX = (1 << 63) - 1

_SPACE = " \t\n\v\f\r"
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_UNIT_SHIFTS = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_DEFAULT_UNIT = "m"
_MEMORY = re.compile(rf"[{_SPACE}]*\+?([0-9]+)([bkmgtp]?)", re.IGNORECASE | re.ASCII)


def _magnitude(text: str, base: int) -> tuple[int, bool]:
    """The magnitude and the sign of the longest numeric beginning of `text`; (0, False) without digits."""
    text = text.lstrip(_SPACE)
    negative = text.startswith("-")
    text = text[1:] if text[:1] in ("-", "+") else text
    if base in (0, 16) and re.match(r"0[xX][0-9a-fA-F]", text):
        base, text = 16, text[2:]
    elif base == 0:
        base = 8 if text.startswith("0") else 10
    allowed = _DIGITS[:base]
    value = 0
    for character in text:
        digit = allowed.find(character.lower()) if character.isascii() else -1
        if digit < 0:
            break
        # Beyond 64 bits the value saturates anyway, and a long text must not cost quadratic time.
        value = min(value * base + digit, 1 << 64)
    return value, negative


def strtoull(text: str, base: int = 0) -> int:
    """An unsigned 64-bit number: saturates at 2^64-1, a minus sign negates modulo 2^64, no digits give 0."""
    value, negative = _magnitude(text, base)
    if value > U64_MAX:
        return U64_MAX
    return -value & U64_MAX if negative else value


def strtol(text: str, base: int = 0) -> int:
    """A signed 64-bit number that saturates at both ends; no digits give 0."""
    value, negative = _magnitude(text, base)
    return max(-value, -_I64_MAX - 1) if negative else min(value, _I64_MAX)


def low32(value: int) -> int:
    """The low 32 bits, unsigned."""
    return value & U32_MASK


def signed32(value: int) -> int:
    """The low 32 bits, signed."""
    value &= U32_MASK
    return value - (1 << 32) if value >> 31 else value


def memory(text: str) -> tuple[int, int | None]:
    """Read `SIZE[@BASE]`.

    Returns:
        Size and base in bytes; base None when it is not given.

    Raises:
        InputError: No number, an unknown unit, trailing characters, more than 64 bits, size 0.
    """
    size, rest = _memory_number(text, text)
    base: int | None = None
    if rest.startswith("@"):
        base, rest = _memory_number(rest[1:], text)
    if rest:
        raise _bad_memory(text, f"{rest[:16]!r} is not understood")
    if size == 0:
        raise _bad_memory(text, "the size is 0")
    return size, base


def _memory_number(text: str, whole: str) -> tuple[int, str]:
    match = _MEMORY.match(text)
    if match is None:
        raise _bad_memory(whole, "a decimal number is missing")
    digits = match[1].lstrip("0")
    if len(digits) > 20:
        raise _bad_memory(whole, "the number is too large")
    value = int(digits or "0") << _UNIT_SHIFTS[match[2].lower() or _DEFAULT_UNIT]
    if value > U64_MAX:
        raise _bad_memory(whole, "the number is too large")
    return value, text[match.end() :]


def _bad_memory(text: str, problem: str) -> InputError:
    return InputError(
        f"-m {text[:64]!r}: {problem}",
        code="rim-option",
        hint="write SIZE[@BASE], each decimal with B, K, M, G, T or P",
    )
