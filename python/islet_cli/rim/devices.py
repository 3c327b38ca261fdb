"""The values of `-d`, `-n` and `--9p`: which devices they make.

Only how many virtio devices there are on which transport is measured; the rest is checked because
kvmtool would refuse to start.

Source: kvmtool `disk/core.c`, `virtio/net.c`, `virtio/9p.c`.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from islet_cli.fsutil import os_error
from islet_cli.rim.options import error, shown

MAX_DISKS = 4
MAX_9P_TAG = 32
_SCSI = "scsi:"
_NIC_WORDS = frozenset(
    ["guest_mac", "mode", "script", "downscript", "guest_ip", "host_ip", "trans", "tapif", "vhost", "fd", "mq"]
)
_NIC_MODES = ("user", "tap", "none")


@dataclass
class Disks:
    """What all `-d` options together give."""

    images: int = 0
    scsi: int = 0
    root_directory: bool = False

    def add(self, value: str, cwd: Path) -> None:
        """Take one `-d` value.

        Raises:
            InputError: Too many, missing, unreadable, a directory with options behind it.
        """
        if (cwd / value).is_dir():
            if self.root_directory:
                raise error(f"-d {value}", "only one directory can be the root file system")
            self.root_directory = True
            return
        if self.images + self.scsi >= MAX_DISKS:
            raise error(f"-d {value}", f"at most {MAX_DISKS} disk images are possible")
        if value.startswith(_SCSI):
            self.scsi += 1
            return
        name, *words = value.split(",")
        require_accessible("-d", name, cwd, write=not any(word.startswith("ro") for word in words))
        self.images += 1


@dataclass
class Nics:
    """What all `-n` options together give: the transports asked for, None for the default one."""

    transports: list[str | None] = field(default_factory=list)
    given: bool = False
    _user_mode: bool = False

    def add(self, value: str) -> None:
        """Take one `-n` value.

        Raises:
            InputError: An unknown parameter or mode; a second NIC in user mode.
        """
        self.given = True
        words = [word for word in value.replace("=", ",").split(",") if word]
        mode, transport = "tap", None
        for name, setting in zip(words[::2], words[1::2], strict=False):
            if name not in _NIC_WORDS:
                raise error(f"-n {value}", f"unknown parameter {name!r}")
            if name == "mode":
                mode = next((known for known in _NIC_MODES if setting.startswith(known)), "")
                if not mode:
                    raise error(f"-n {value}", f"unknown mode {setting!r}", "the modes are user, tap and none")
                if mode == "none":
                    return
                if mode == "user" and self._user_mode:
                    raise error(f"-n {value}", "only one NIC can be in user mode")
            elif name == "trans":
                transport = setting if setting in ("pci", "mmio") else None
        self._user_mode |= mode == "user"
        self.transports.append(transport)

    def all(self) -> list[str | None]:
        """The NICs of the machine: one by default, when there is no `-n` at all."""
        return self.transports if self.given else [None]


def check_9p(value: str) -> None:
    """Check a `--9p DIR[,TAG]` value; the directory need not exist.

    Raises:
        InputError: The tag is longer than 32 bytes.
    """
    _, _, tag = value.partition(",")
    if len(os.fsencode(tag)) > MAX_9P_TAG:
        raise error(f"--9p {value}", f"the tag is longer than {MAX_9P_TAG} bytes")


def require_accessible(option: str, name: str, cwd: Path, *, write: bool = False) -> int:
    """Require that a file can be opened; returns its size in bytes.

    Raises:
        InputError: Missing, unreadable (or not writable), a directory.
    """
    path = cwd / name
    try:
        if not name:
            raise FileNotFoundError(2, os.strerror(2))
        status = path.stat()
    except OSError as failure:
        raise os_error(failure, shown(f"{option} {name}")) from failure
    if stat.S_ISDIR(status.st_mode):
        raise error(f"{option} {name}", "a directory where a file is needed")
    if not os.access(path, os.R_OK | (os.W_OK if write else 0)):
        denied = PermissionError(13, os.strerror(13))
        raise os_error(denied, shown(f"{option} {name}")) from denied
    return status.st_size
