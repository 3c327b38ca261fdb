"""The error of the emulated platform, on both sides of its sockets."""

from __future__ import annotations

from islet_cli.errors import OperationError


class PlatformError(OperationError):
    """A request that the platform refused.

    `code` is one of `input`, `realm`, `no-such-realm`, `file`, `internal`; `reason` is the monitor's reason
    (`signature`, `format`, `svn`, `hash-algo`, `realm-id`, `state`, `already-set`, `rim`) or None.
    """

    default_code = "internal"

    def __init__(self, message: str, *, code: str, reason: str | None = None, hint: str | None = None) -> None:
        details = {} if reason is None else {"reason": reason}
        super().__init__(message, code=code, hint=hint, **details)
        self.reason = reason
