"""Realms under this machine's accelerator: from launch to a connected manager, and a second `islet run`.

The peers are the goals of the design (5 s and 15 s under emulation) and, for the launch, a bare boot of
the same kernel with a busybox initramfs that powers off at once.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure, median_seconds

ISLET = str(Path(sys.executable).with_name("islet"))
STARTS = 5
GOAL_CONNECTED_S, GOAL_SECOND_RUN_S = 5.0, 15.0
PREAMBLE, RSI_OPEN = b"ISLET-REALM-HI\n\0", b"ISLET-RSI-OPEN\n\0"
QEMU = [
    "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "512",
    "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
]  # fmt: skip
_SCRIPT = "#!/bin/busybox sh\necho version %d\n"


def measure() -> Iterator[Figure]:
    """Medians over a few starts; the realm image is built before anything is timed."""
    with tempfile.TemporaryDirectory(prefix="islet-bench-") as scratch:
        root = Path(scratch)
        root.chmod(0o700)
        environment = {**os.environ, "XDG_RUNTIME_DIR": scratch}
        run(["init", str(root / "w"), "--listen", "127.0.0.1:0"], environment)
        environment["ISLET_WORKSPACE"] = str(root / "w")
        try:
            yield from _figures(root, environment)
        finally:
            run(["down"], environment)


def run(arguments: list[str], environment: dict[str, str]) -> str:
    """Run `islet` and return what it printed."""
    done = subprocess.run(
        [ISLET, *arguments], env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    return done.stdout


def _figures(root: Path, environment: dict[str, str]) -> Iterator[Figure]:
    program = root / "program"
    (program / "bin").mkdir(parents=True)
    (program / "bin/busybox").write_bytes(_busybox())
    (program / "bin/busybox").chmod(0o755)
    version = 0

    def run_changed() -> None:
        nonlocal version
        version += 1
        script = program / "bin/program"
        script.write_text(_SCRIPT % version)
        script.chmod(0o755)
        out = run(["run", str(program), "--entrypoint", "/bin/program"], environment)
        assert out.splitlines()[-1] == f"version {version}"

    second = median_seconds(run_changed, 3)
    yield Figure("islet run of a changed program, again", second, GOAL_SECOND_RUN_S, "s", "goal")

    bare = statistics.median(_bare_boot(root) for _ in range(3))
    image = root / "w/.islet/realms/default"
    connected = statistics.median(_connect(image, root) for _ in range(STARTS))
    yield Figure("launch to connected manager", connected, GOAL_CONNECTED_S, "s", "goal")
    yield Figure("launch to connected manager", connected, bare, "s", "same kernel, busybox that powers off")


def _busybox() -> bytes:
    return Path("/bin/busybox").read_bytes()


def _connect(image: Path, scratch: Path) -> float:
    """Seconds from the launch of QEMU to the manager's first bytes on the control port."""
    sockets = []
    for name in ("ctl", "rsi"):
        listener = socket.socket(socket.AF_UNIX)
        (scratch / name).unlink(missing_ok=True)
        listener.bind(str(scratch / name))
        listener.listen(1)
        listener.settimeout(120)
        sockets.append(listener)
    control, rsi = sockets
    threading.Thread(target=_answer_rsi, args=(rsi,), daemon=True).start()
    began = time.perf_counter()
    machine = subprocess.Popen(
        [*QEMU, "-serial", "null", "-kernel", image / "vmlinuz", "-initrd", image / "initramfs.cpio.zst",
         "-append", "console=ttyS0 root=/dev/vda rw quiet loglevel=3 panic=-1",
         "-netdev", "user,id=n0,restrict=on", "-device", "virtio-net-pci,netdev=n0,romfile=",
         "-device", "virtio-serial-pci", "-chardev", f"socket,id=c0,path={scratch}/ctl",
         "-device", "virtserialport,id=ctl,chardev=c0,name=islet.ctl.0",
         "-chardev", f"socket,id=rsi0,path={scratch}/rsi",
         "-device", "virtserialport,chardev=rsi0,id=rsi,name=islet.rsi.0"]
    )  # fmt: skip
    try:
        connection, _ = control.accept()
        connection.settimeout(120)
        first = connection.recv(len(PREAMBLE), socket.MSG_WAITALL)
        assert first == PREAMBLE
        return time.perf_counter() - began
    finally:
        machine.kill()
        machine.wait()
        for listener in sockets:
            listener.close()


def _answer_rsi(listener: socket.socket) -> None:
    """As much of the platform as the manager needs to start: its opening, echoed."""
    connection, _ = listener.accept()
    seen = b""
    while data := connection.recv(4096):
        seen += data
        if RSI_OPEN in seen:
            connection.sendall(RSI_OPEN)
            seen = b""


def _bare_boot(root: Path) -> float:
    """Seconds of QEMU for the realm's own kernel with an initramfs of busybox alone."""
    from islet_cli.realm_image import cpio

    kernel = next((root / "w/.islet/realms").glob("*/vmlinuz"))
    tree = cpio.Tree()
    tree.add("bin/busybox", cpio.file(_busybox(), executable=True))
    tree.add("init", cpio.file(b"#!/bin/busybox sh\n/bin/busybox poweroff -f\n", executable=True))
    initramfs = root / "bare.cpio"
    initramfs.write_bytes(cpio.archive(tree, mtime=0))
    began = time.perf_counter()
    subprocess.run(
        [*QEMU, "-kernel", kernel, "-initrd", initramfs, "-append", "quiet panic=-1"],
        check=True,
        timeout=120,
    )  # fmt: skip
    return time.perf_counter() - began
