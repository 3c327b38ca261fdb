"""Making, recognising and mounting ext file systems.

Source: Linux, Documentation/filesystems/ext4/ (superblock layout).
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from islet_cli import _native
from islet_cli.errors import OperationError

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4

BLOCK = 4096
_SUPERBLOCK_AT = 1024
_MAGIC = 0xEF53
_STATE_ERRORS = 2
_RESIZE = 0x40086610  # EXT4_IOC_RESIZE_FS: _IOW('f', 16, u64)
_TOOL_ENVIRONMENT = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL": "C"}


class FileSystemError(OperationError):
    """A file system cannot be made, checked or mounted (`storage`)."""

    default_code = "storage"


@dataclass(frozen=True)
class Superblock:
    """What identifies an ext file system.

    Attributes:
        label: Volume name.
        size: Bytes that it uses.
        has_errors: The kernel marked it as damaged.
    """

    label: str
    size: int
    has_errors: bool


def read_superblock(node: Path) -> Superblock | None:
    """The superblock of an ext file system, or None when there is none."""
    with node.open("rb", buffering=0) as file:
        file.seek(_SUPERBLOCK_AT)
        data = file.read(1024)
    if data is None or len(data) < 1024:
        return None
    blocks_low, log_size = struct.unpack_from("<I", data, 4)[0], struct.unpack_from("<I", data, 24)[0]
    magic, state = struct.unpack_from("<HH", data, 56)
    if magic != _MAGIC or log_size > 6:
        return None
    wide = struct.unpack_from("<I", data, 96)[0] & 0x80
    blocks_high = struct.unpack_from("<I", data, 336)[0] if wide else 0
    label = data[120:136].partition(b"\0")[0].decode("utf-8", "replace")
    return Superblock(label, (blocks_high << 32 | blocks_low) << 10 + log_size, bool(state & _STATE_ERRORS))


def make(node: Path, kind: str, label: str, size: int, *, journal: bool) -> None:
    """Make a file system on the first `size` bytes of `node`.

    Raises:
        FileSystemError: The tool is missing or failed; the message has its last line.
    """
    options = ["-q", "-F", "-t", kind, "-b", str(BLOCK), "-m", "0", "-L", label, "-E", "nodiscard"]
    if not journal:
        options += ["-O", "^has_journal,^resize_inode"]
    _run(["mke2fs", *options, str(node), str(size // BLOCK)], f"making a file system on {label}")


def repair(node: Path) -> None:
    """Let e2fsck mend what it can without asking.

    Raises:
        FileSystemError: Damage is left.
    """
    _run(["e2fsck", "-p", str(node)], f"checking {node}", good=(0, 1))


def _run(command: list[str], what: str, good: tuple[int, ...] = (0,)) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, env=_TOOL_ENVIRONMENT, check=False
        )
    except OSError as error:
        raise FileSystemError(f"{what}: {command[0]}: {error.strerror}") from error
    if done.returncode not in good:
        lines = (done.stderr or done.stdout).decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        raise FileSystemError(f"{what}: {command[0]} ended with code {done.returncode}: {last[:200]}")


def grow(mounted: Path, size: int) -> None:
    """Grow a mounted file system to use `size` bytes.

    Raises:
        FileSystemError: The kernel refused.
    """
    descriptor = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _RESIZE, struct.pack("=Q", size // BLOCK))
    except OSError as error:
        raise FileSystemError(f"{mounted}: cannot be grown: {error.strerror}") from error
    finally:
        os.close(descriptor)


def mount(node: Path, target: Path, kind: str, *, read_only: bool = False) -> None:
    """Mount `node` on the directory `target`, which is made; devices on it never work."""
    target.mkdir(parents=True, exist_ok=True)
    _native.guest.mount(str(node), target, kind, MS_NODEV | (MS_RDONLY | MS_NOSUID if read_only else 0), None)


def mount_overlay(lower: Path, upper: Path, work: Path, target: Path) -> None:
    """Mount `upper` over `lower` on `target`. The options keep what an earlier upper layer may hold harmless."""
    target.mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={lower},upperdir={upper},workdir={work},redirect_dir=nofollow,metacopy=off,index=off"
    _native.guest.mount("overlay", target, "overlay", MS_NODEV, options)
