"""Errors of the warden, and how they travel: `CODE: text`, then the hint on a line of its own.

Source: docs/protocols.md (WardenDaemonFail).
"""

from __future__ import annotations

from islet_cli.errors import InputError, IsletError, OperationError, UnavailableError

_HINT = "\nhint: "
# Codes whose family is not "an operation failed"; the exit code of the command line follows from it.
_FAMILIES: dict[str, type[IsletError]] = {
    "bad-config": InputError,
    "no-such-realm": InputError,
    "no-such-application": InputError,
    "not-supported": UnavailableError,
    "network": UnavailableError,
    "resource-taken": UnavailableError,
    "unavailable": UnavailableError,
}
_CODES = frozenset(
    (
        *_FAMILIES,
        *("realm-exists", "bad-state", "busy", "launch-failed", "realm-timeout", "realm-gone", "realm-error"),
        *("protocol", "disk", "storage", "data-at-risk", "internal"),
    )
)


class WardenError(OperationError):
    """A command on a realm or application failed. `code` is one of the stable codes."""

    default_code = "internal"


def to_wire(error: IsletError) -> str:
    """The text of `WardenDaemonFail` for any error of islet."""
    code = error.code if error.code in _CODES else _code_of(error)
    return f"{code}: {error.message}" + (f"{_HINT}{error.hint}" if error.hint else "")


def _code_of(error: IsletError) -> str:
    if isinstance(error, UnavailableError):
        return "unavailable"
    if isinstance(error, InputError):
        return "bad-config"
    return {"disk-full": "disk", "io": "storage"}.get(error.code, "launch-failed")


def from_wire(text: str) -> IsletError:
    """The error that a `WardenDaemonFail` text stands for; a text without a known code is `realm-error`."""
    body, _, hint = text.partition(_HINT)
    code, colon, message = body.partition(": ")
    if not colon or code not in _CODES:
        return WardenError(body, code="realm-error", hint=hint or None)
    family = _FAMILIES.get(code, WardenError)
    return family(message, code=code, hint=hint or None)
