"""Which accelerator to use: `kvm` only where it is shown to work, else `tcg`.

`/dev/kvm` may exist and still hang at the first call, so a child process creates a VM and runs an
instruction in it, within a time limit.
"""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
from pathlib import Path

from islet_cli.errors import InputError, UnavailableError

CHOICES = ("auto", "kvm", "tcg")
PROBE_TIMEOUT_S = 2.0
log = logging.getLogger(__name__)


def requested(setting: str) -> str:
    """The accelerator asked for; `ISLET_ACCEL` takes the place of `auto`.

    Raises:
        InputError: Not one of auto, kvm, tcg (`bad-config`).
    """
    choice = (os.environ.get("ISLET_ACCEL") or "auto") if setting == "auto" else setting
    if choice not in CHOICES:
        raise InputError(f"accelerator {choice!r}: expected auto, kvm or tcg", code="bad-config")
    return choice


def choose(setting: str) -> str:
    """Decide between kvm and tcg.

    Raises:
        UnavailableError: kvm was asked for by name and does not work here.
    """
    choice = requested(setting)
    if choice == "tcg":
        return "tcg"
    works = kvm_works()
    if choice == "kvm" and not works:
        raise UnavailableError(
            "/dev/kvm cannot run a VM here", code="unavailable", hint="use --accel tcg, or make /dev/kvm accessible"
        )
    return "kvm" if works else "tcg"


def kvm_works() -> bool:
    """Whether a VM can be created and run within the time limit (known for x86_64 only; elsewhere false)."""
    if platform.machine() != "x86_64" or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    with _Probe() as probe:
        return probe.succeeded()


class _Probe:
    """The probe process; at the end of the block it is killed, and reaped if that is possible at once.

    It is never waited for without limit: a process that is stuck in the kernel cannot be killed.
    """

    def __enter__(self) -> _Probe:
        script = Path(__file__).with_name("kvm_probe.py")
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return self

    def succeeded(self) -> bool:
        try:
            return self._child.wait(PROBE_TIMEOUT_S) == 0
        except subprocess.TimeoutExpired:
            log.warning("/dev/kvm does not answer; using tcg")
            return False

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        try:
            self._child.wait(0.2)
        except subprocess.TimeoutExpired:
            log.warning("the KVM probe (process %d) is stuck in the kernel", self._child.pid)
