"""What this machine has and lacks for each role, and the command that mends it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

QEMU = {
    "x86_64": ("qemu-system-x86_64", "qemu-system-x86"),
    "aarch64": ("qemu-system-aarch64", "qemu-system-arm"),
}
NEEDED_DISK_MIB = 2048
NEEDED_MEMORY_MIB = 1024


@dataclass(frozen=True)
class Finding:
    """One thing that a role needs or can use.

    `state` is `ok`, `missing` (the role does not work) or `absent` (it works without, as `detail` says).
    """

    role: str
    name: str
    state: str
    detail: str
    mend: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the fields as a JSON object."""
        return asdict(self)


def examine() -> list[Finding]:
    """Look at everything; nothing is changed, no virtual machine is started but KVM's short probe."""
    checks: list[Callable[[], Iterator[Finding]]] = [_python, _vendor, _machine, _realm_image, _registry, _real_cca]
    return [finding for check in checks for finding in check()]


def ready_for_demo(findings: list[Finding]) -> bool:
    """Whether nothing that the demo needs is missing."""
    return all(finding.state != "missing" for finding in findings)


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("all", "python", "ok", f"{version} at {sys.executable}")
    try:
        from islet_cli import _native

        yield Finding("all", "native module", "ok", Path(str(_native.__file__)).name)
    except ImportError as error:
        yield Finding(
            "all", "native module", "missing", str(error), "reinstall: pip install --force-reinstall islet-cli"
        )


def _vendor() -> Iterator[Finding]:
    yield Finding("vendor", "key, sign, rim, metadata", "ok", "need nothing else")


def _machine() -> Iterator[Finding]:
    machine = platform.machine()
    if machine not in QEMU:
        yield Finding("operator", "machine", "missing", f"{machine} is not supported", "use x86_64 or aarch64")
        return
    program, package = QEMU[machine]
    yield _program("operator", program, f"apt-get install {package}")
    yield _kvm()
    yield _vsock()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    state = "ok" if memory >= NEEDED_MEMORY_MIB else "missing"
    yield Finding(
        "operator", "memory", state, f"{memory} MiB", "" if state == "ok" else "a realm needs 512 MiB of its own"
    )
    yield _disk()


def _kvm() -> Finding:
    from islet_cli.warden import accel

    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Finding("operator", "KVM", "absent", "no usable /dev/kvm: realms run under emulation (slower)")
    if accel.kvm_works():
        return Finding("operator", "KVM", "ok", "a guest runs under it")
    return Finding("operator", "KVM", "absent", "/dev/kvm is there but guests do not run: emulation is used (slower)")


def _vsock() -> Finding:
    if Path("/dev/vhost-vsock").exists():
        return Finding("operator", "vsock", "ok", "/dev/vhost-vsock")
    return Finding("operator", "vsock", "absent", "virtio-serial is used instead", "modprobe vhost_vsock")


def _disk() -> Finding:
    directory = tempfile.gettempdir()
    free = shutil.disk_usage(directory).free >> 20
    if free >= NEEDED_DISK_MIB:
        return Finding("operator", "disk", "ok", f"{free} MiB free in {directory}")
    return Finding(
        "operator",
        "disk",
        "missing",
        f"{free} MiB free in {directory}, {NEEDED_DISK_MIB} are needed",
        "free some space, or set TMPDIR",
    )


def _realm_image() -> Iterator[Finding]:
    for program, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        found = shutil.which(program)
        if found:
            yield Finding("vendor", program, "ok", found)
        else:
            yield Finding(
                "vendor",
                program,
                "missing",
                "realm images are made of Debian packages",
                f"install {package}, or build on a Debian machine and use: islet realm create --from DIR",
            )


def _registry() -> Iterator[Finding]:
    yield Finding("operator", "registry", "ok", "needs nothing else")


def _real_cca() -> Iterator[Finding]:
    if Path("/dev/rsi").exists():
        yield Finding("realm", "/dev/rsi", "ok", "this machine is a realm")
    else:
        yield Finding("realm", "/dev/rsi", "absent", "not inside a realm; the emulated platform stands in")


def _program(role: str, program: str, mend: str) -> Finding:
    found = shutil.which(program)
    return Finding(role, program, "ok", found) if found else Finding(role, program, "missing", "not on the PATH", mend)
