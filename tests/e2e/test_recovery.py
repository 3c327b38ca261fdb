"""What survives kill -9, updates and swapped metadata. The programs are tiny; the machinery is all real."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from .conftest import Islet, wait_until

pytestmark = pytest.mark.vm

COUNTER = """#!/bin/busybox sh
/bin/busybox mkdir -p /data
echo run >> /data/runs
/bin/busybox sync /data/runs
echo "run $(/bin/busybox wc -l < /data/runs)"
while :; do /bin/busybox sleep 1; done
"""


def publish_counter(islet: Islet, tmp_path: Path, *, name: str = "counter", padding: int = 0) -> None:
    """Build, sign and add a counter; `padding` bytes make the image larger."""
    root = tmp_path / f"root-{name}"
    (root / "bin").mkdir(parents=True)
    (root / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin/busybox").chmod(0o755)
    (root / "bin/counter").write_text(COUNTER)
    (root / "bin/counter").chmod(0o755)
    if padding:
        (root / "padding").write_bytes(os.urandom(padding))
    layout = tmp_path / f"layout-{name}"
    islet("image", "build", root, "-o", layout, "--name", name, "--entrypoint", "/bin/counter")
    islet("sign", layout)
    islet("registry", "add", layout)


def start_counter(islet: Islet, realm: str, *extra: str, name: str = "counter") -> None:
    islet("realm", "create", "--name", realm, *extra)
    islet("app", "create", realm, name)
    islet("realm", "start", realm)


def realm_state(islet: Islet, realm: str) -> dict:
    return next(entry for entry in islet("realm", "list", "--json").json() if entry["name"] == realm)


def wait_for_run(islet: Islet, realm: str, number: int, name: str = "counter") -> None:
    wait_until(
        lambda: f"run {number}" in islet("app", "logs", realm, name).out.splitlines(), f"run {number} of {realm}"
    )


def qemu_pids(islet: Islet) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"qemu-system" in command.split(b"\0")[0] and os.fsencode(islet.root) in command:
                found.append(int(entry.name))
    return found


def test_kill_of_qemu_and_of_the_warden_lose_nothing(services: Islet, tmp_path: Path) -> None:
    islet = services
    publish_counter(islet, tmp_path)
    start_counter(islet, "one")
    wait_for_run(islet, "one", 1)

    (pid,) = qemu_pids(islet)
    os.kill(pid, signal.SIGKILL)
    state = wait_until(lambda: (s := realm_state(islet, "one"))["state"] == "Halted" and s, "the realm is seen halted")
    assert state["last_error"]
    islet("realm", "start", "one")
    wait_for_run(islet, "one", 2)

    warden = islet("warden", "status", "--json").json()
    os.kill(warden["pid"], signal.SIGKILL)
    wait_until(lambda: not qemu_pids(islet), "the virtual machine ends with its warden")
    islet("warden", "up")
    state = realm_state(islet, "one")
    assert state["state"] == "Halted"
    assert state["last_error"]
    islet("realm", "start", "one")
    wait_for_run(islet, "one", 3)

    # A host socket of another connection learns nothing while the realm is up.
    islet("realm", "stop", "one")
    assert not qemu_pids(islet)


def test_two_realms_at_once(services: Islet, tmp_path: Path) -> None:
    islet = services
    publish_counter(islet, tmp_path)
    for realm in ("left", "right"):
        start_counter(islet, realm)
    for realm in ("left", "right"):
        wait_for_run(islet, realm, 1)
        assert realm_state(islet, realm)["state"] == "Running"
    assert len(qemu_pids(islet)) == 2


def test_without_metadata_a_changed_image_does_not_touch_the_data(services: Islet, tmp_path: Path) -> None:
    """Keys are then bound to the exact image: another image gets `data-at-risk`, and no byte changes."""
    islet = services
    publish_counter(islet, tmp_path)
    start_counter(islet, "bare", "--no-metadata")
    wait_for_run(islet, "bare", 1)
    islet("realm", "stop", "bare")
    disk = next((islet.state / "warden").glob("*/disk.raw"))
    before = hashlib.sha256(disk.read_bytes()).hexdigest()

    manifest = islet.root / "realm.toml"
    manifest.write_text(manifest.read_text().replace("panic=-1", "panic=-1 islet.changed=1"))
    islet("realm", "publish")
    islet("realm", "update", "bare", "--no-metadata")
    refused = islet("realm", "start", "bare", code=None)
    assert refused.code != 0
    assert "holds data that this image's keys do not open" in refused.err
    assert "hint: islet app reformat bare" in refused.err
    assert hashlib.sha256(disk.read_bytes()).hexdigest() == before

    islet("app", "reformat", "bare", "counter", "--yes")
    islet("realm", "start", "bare")
    wait_for_run(islet, "bare", 1)


def test_small_and_large_programs_install(services: Islet, tmp_path: Path) -> None:
    islet = services
    publish_counter(islet, tmp_path, name="large", padding=1 << 20)
    start_counter(islet, "large", name="large")
    wait_for_run(islet, "large", 1, name="large")
    islet("realm", "stop", "large")

    # A complete static program of some 1 KB: an ELF file assembled by hand.
    tiny = tmp_path / "tiny"
    subprocess.run(
        ["cc", "-nostdlib", "-static", "-Os", "-s", "-Wl,--build-id=none,-N", "-o", tiny, "-x", "c", "-"],
        input=TINY_C,
        text=True,
        check=True,
    )
    assert tiny.stat().st_size < 2048
    assert "tiny" in islet("run", tiny).out


TINY_C = r"""
static long call(long n, long a, long b, long c) {
  long r;
#if defined(__x86_64__)
  __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
#else
  register long x8 __asm__("x8") = n, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
  r = x0;
#endif
  return r;
}
#if defined(__x86_64__)
enum { WRITE = 1, EXIT = 60 };
#else
enum { WRITE = 64, EXIT = 93 };
#endif
void _start(void) {
  static const char text[] = "tiny\n";
  call(WRITE, 1, (long)text, sizeof text - 1);
  call(EXIT, 0, 0, 0);
}
"""
