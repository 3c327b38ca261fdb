"""Linux primitives of the app manager. Failures are `OperationError` with code `errno-N`."""

from collections.abc import Sequence
from pathlib import Path

def mount(
    source: str | None, target: Path | str, fstype: str | None = None, flags: int = 0, data: str | None = None
) -> None:
    """mount(2); `flags` are MS_* bits."""

def unmount(target: Path | str, detach: bool = False) -> None:
    """umount2(2), never following a symbolic link; `detach` takes it out of the tree at once."""

def add_logon_key(description: str, key: bytes) -> int:
    """Put a logon key into the user key ring and return its serial number."""

def remove_key(serial: int) -> None:
    """Revoke a key and take it out of the user key ring."""

def reboot(action: str) -> None:
    """Flush all file systems, then `poweroff` or `restart`; does not return when the kernel obeys."""

def interface_addresses() -> list[tuple[str, bool, str, str | None, str | None]]:
    """Every (interface, loopback, address, netmask, destination), in the kernel's order."""

def spawn(
    *,
    root: Path | str,
    argv: Sequence[bytes],
    env: Sequence[bytes],
    cwd: bytes,
    uid: int,
    gid: int,
    groups: Sequence[int],
    hostname: bytes,
    binds: Sequence[tuple[Path | str, bytes]],
) -> tuple[int, int, int, int, int]:
    """Start a contained process; returns once its program has been executed.

    Returns:
        (pid of its init, stdout, stderr, status, lifeline). The caller owns the four descriptors: it must wait
        for the pid, read the raw wait status (4 bytes, native order) from `status`, and keep `lifeline` open for
        as long as the process shall live. A signal sent to the pid reaches the application's process group;
        SIGKILL ends everything at once.

    Raises:
        OperationError: Code `spawn-STEP`, attribute `errno`; nothing is left behind.
    """
