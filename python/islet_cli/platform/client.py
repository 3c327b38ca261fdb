"""A blocking client of the platform's management socket.

One connection belongs to one VM launch: descriptors that were not activated end with it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import Any

from islet_cli import framing
from islet_cli.errors import UnavailableError
from islet_cli.metadata.block import BLOCK_SIZE
from islet_cli.platform.errors import PlatformError

TIMEOUT_S = 300.0
"""Creating a realm copies and measures its image; on a slow machine that takes a while."""

_MAX_FDS = 4
_FD = struct.Struct("=i")


class PlatformClient:
    """A management connection; use it as a context manager."""

    def __init__(self, socket_path: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        """Connect.

        Raises:
            UnavailableError: `platform-down`: nobody listens there.
        """
        self._path = socket_path
        self._received: list[int] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect(os.fspath(socket_path))
        except OSError as error:
            self._socket.close()
            raise UnavailableError(
                f"the platform is not reachable at {socket_path}: {error.strerror or error}",
                code="platform-down",
                hint="run: islet platform up",
            ) from error

    def close(self) -> None:
        """Close the connection; descriptors in NEW or SYSTEM_OFF that it made end."""
        self._socket.close()
        self._drop_received()

    def __enter__(self) -> PlatformClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def version(self) -> dict[str, Any]:
        """`{"protocol", "instance_id", "emulated"}`."""
        return self._members(self._ask("Version"), "Version")

    def realm_create(self, launch: dict[str, Any]) -> dict[str, Any]:
        """Make a realm descriptor from a launch plan's JSON; returns `{"rd", "rim", "bootargs"}`.

        Raises:
            PlatformError: `input`, `file`, `realm`.
        """
        return self._members(self._ask({"RealmCreate": {"launch": launch}}), "RealmCreated")

    def realm_set_metadata(self, rd: str, metadata: bytes) -> None:
        """Attach a metadata block of 432 bytes.

        Raises:
            PlatformError: `input` or `realm`; `reason` says what the monitor objects to.
        """
        if len(metadata) != BLOCK_SIZE:
            raise PlatformError(f"a metadata block has {BLOCK_SIZE} bytes, not {len(metadata)}", code="input")
        self._expect_ok({"RealmSetMetadata": {"rd": rd, "metadata": list(metadata)}})

    def realm_activate(self, rd: str) -> tuple[str, int, int]:
        """Activate a realm.

        Returns:
            The path that QEMU must connect to, and two descriptors that the caller owns: the measured kernel
            and the measured initramfs.

        Raises:
            PlatformError: `realm` with reason `rim`, `hash-algo` or `state`.
        """
        answer = self._members(self._ask({"RealmActivate": {"rd": rd}}), "RealmActivated")
        if len(self._received) != 2 or not isinstance(answer.get("rsi_socket"), str):
            raise self._broken("activation without its two files")
        (kernel, initramfs), self._received = self._received, []
        return answer["rsi_socket"], kernel, initramfs

    def realm_status(self, rd: str) -> dict[str, Any]:
        """`{"rd", "state", "rim", "rems", "has_metadata"}`."""
        return self._members(self._ask({"RealmStatus": {"rd": rd}}), "RealmStatus")

    def realm_list(self) -> list[dict[str, Any]]:
        """The status of every realm descriptor."""
        answer = self._ask("RealmList")
        realms = answer.get("RealmList") if isinstance(answer, dict) else None
        if not isinstance(realms, list):
            raise self._broken("an unexpected answer")
        return realms

    def realm_destroy(self, rd: str) -> None:
        """Destroy a descriptor in whatever state."""
        self._expect_ok({"RealmDestroy": {"rd": rd}})

    def shutdown(self) -> None:
        """End the platform process."""
        self._expect_ok("Shutdown")

    def _expect_ok(self, request: Any) -> None:
        if self._ask(request) != "Ok":
            raise self._broken("an unexpected answer")

    def _members(self, answer: Any, name: str) -> dict[str, Any]:
        members = answer.get(name) if isinstance(answer, dict) else None
        if not isinstance(members, dict):
            raise self._broken("an unexpected answer")
        return members

    def _ask(self, request: Any) -> Any:
        try:
            self._socket.sendall(framing.encode(request))
            answer = framing.read_frame(self._receive)
        except (OSError, framing.FramingError, framing.BodyError) as error:
            raise self._broken(str(error) or type(error).__name__) from error
        if answer is None:
            raise self._broken("it closed the connection")
        refusal = answer.get("Error") if isinstance(answer, dict) else None
        if isinstance(refusal, dict):
            reason, hint = refusal.get("reason"), refusal.get("hint")
            raise PlatformError(
                str(refusal.get("message", "refused")),
                code=str(refusal.get("code", "internal")),
                reason=reason if isinstance(reason, str) else None,
                hint=hint if isinstance(hint, str) else None,
            )
        return answer

    def _receive(self, count: int) -> bytes:
        # socket.recv_fds drops its flags in some versions of Python, and with them close-on-exec.
        data, ancillary, _flags, _address = self._socket.recvmsg(
            count, socket.CMSG_SPACE(_MAX_FDS * _FD.size), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                usable = len(content) - len(content) % _FD.size
                self._received.extend(number for (number,) in _FD.iter_unpack(content[:usable]))
        return data

    def _drop_received(self) -> None:
        for descriptor in self._received:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._received = []

    def _broken(self, problem: str) -> UnavailableError:
        """The connection can no longer be trusted to be in step: close it."""
        self.close()
        return UnavailableError(
            f"the platform at {self._path} failed: {problem}",
            code="platform-down",
            hint="see .islet/log/platform.log; run: islet platform up",
        )
