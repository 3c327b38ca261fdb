"""The exceptions of islet, their stable codes and their exit codes.

    IsletError
    ├── InputError         2  a file, value or option is malformed or contradictory
    ├── VerificationError  1  a check refused: signature, digest, measurement, policy
    ├── UnavailableError   3  a program, device or service is missing or unreachable
    ├── OperationError     4  a realm, an application or a service failed
    └── InternalError      4  islet itself is at fault

`code` is stable and machine-readable (`digest_mismatch`, `no-such-realm`); the message is one
sentence that names the input and what is wrong with it; `hint` says how to mend it.
"""

from __future__ import annotations

from typing import ClassVar


class IsletError(Exception):
    """Base of every error that a user may see.

    Args:
        message: One sentence: which input, and what is wrong with it.
        code: Stable identifier for programs. Defaults to the family's own.
        hint: How to mend it, as one sentence or a command.
        details: Further values for `--json`.
    """

    exit_code: ClassVar[int] = 4
    default_code: ClassVar[str] = "error"

    def __init__(self, message: str, *, code: str | None = None, hint: str | None = None, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        return self.message

    def to_json(self) -> dict[str, object]:
        """Return `{"code", "message", "hint"?, …details}`."""
        out: dict[str, object] = {"code": self.code, "message": self.message}
        if self.hint:
            out["hint"] = self.hint
        out.update(self.details)
        return out


class InputError(IsletError):
    """Malformed or contradictory input (exit code 2)."""

    exit_code = 2
    default_code = "input"


class VerificationError(IsletError):
    """A check refused (exit code 1). Raised by the very check that decided."""

    exit_code = 1
    default_code = "refused"


class UnavailableError(IsletError):
    """A needed program, device, file or service is missing or unreachable (exit code 3)."""

    exit_code = 3
    default_code = "unavailable"


class OperationError(IsletError):
    """A realm, an application or a service failed (exit code 4)."""

    exit_code = 4
    default_code = "failed"


class InternalError(IsletError):
    """A fault of islet itself (exit code 4)."""

    exit_code = 4
    default_code = "internal"
