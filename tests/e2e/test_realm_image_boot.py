"""The realm image boots, and its manager says hello on the control port; nothing on the console answers."""

from __future__ import annotations

import json
import platform
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from islet_cli.config import Workspace
from islet_cli.launch.manifest import load_manifest
from islet_cli.realm_image.build import build

from .conftest import wait_until

pytestmark = pytest.mark.vm

PREAMBLE = b"ISLET-REALM-HI\n\0"
RSI_OPEN = b"ISLET-RSI-OPEN\n\0"
LIMIT_S = 120

# A manager for the init's own rules: it follows what the test writes on the control port.
STAND_IN = b"""
import os, sys, time

def main():
    while True:
        ports = "/sys/class/virtio-ports"
        names = os.listdir(ports) if os.path.isdir(ports) else []
        found = [name for name in names if open(f"{ports}/{name}/name").read().strip() == "islet.ctl.0"]
        if found:
            break
        time.sleep(0.05)
    port = os.open("/dev/" + found[0], os.O_RDWR)
    while not os.path.exists("/run/islet/prepared"):
        time.sleep(0.05)
    facts = {
        "argv": sys.argv[1:],
        "modules": sorted(line.split()[0] for line in open("/proc/modules")),
        "sysrq": open("/proc/sys/kernel/sysrq").read().strip(),
        "pivot_root": os.system(
            "busybox unshare -m busybox sh -c "
            "'mount -t tmpfs x /tmp && mkdir /tmp/old && cd /tmp && busybox pivot_root . old'"
        ),
        "interfaces": sorted(os.listdir("/sys/class/net")),
        "address": address(),
        "console_readers": readers(),
    }
    import json
    os.write(port, json.dumps(facts).encode() + b"\\n")
    if os.read(port, 1) == b"r":
        open("/run/islet/rem-extended", "w").close()
    return 7

def address():
    for _ in range(600):
        text = os.popen("ip address show dev eth0").read()
        if " inet " in text:
            return text.partition(" inet ")[2].split()[0]
        time.sleep(0.05)

def readers():
    out = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/fd/0") == "/dev/console" and pid != "1":
                out.append(open(f"/proc/{pid}/cmdline").read())
        except OSError:
            pass
    return out
"""


class Machine:
    """A running realm: its process, control socket and console file."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, console: Path) -> None:
        self.process = process
        self.control = control
        self._console = console

    @property
    def console(self) -> str:
        return self._console.read_bytes().decode("utf-8", "replace").replace("\r", "")

    def line(self) -> bytes:
        out = b""
        while not out.endswith(b"\n"):
            out += self.control.recv(1) or pytest.fail(f"the machine ended\n{self.console}")
        return out


@contextmanager
def booted(image: Path, scratch: Path) -> Iterator[Machine]:
    if platform.machine() != "x86_64":
        pytest.skip("the command line of this test is for x86_64")
    rsi = socket.socket(socket.AF_UNIX)
    rsi.bind(str(scratch / "rsi"))
    rsi.listen(1)
    threading.Thread(target=echo_opening, args=(rsi,), daemon=True).start()
    console = scratch / "console"
    command = [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "512",
        "-nodefaults", "-no-user-config", "-display", "none", "-serial", f"file:{console}", "-no-reboot",
        "-kernel", image / "vmlinuz", "-initrd", image / "initramfs.cpio.zst",
        "-append", "console=ttyS0 root=/dev/vda rw quiet loglevel=3 panic=-1",
        "-netdev", "user,id=n0,restrict=on", "-device", "virtio-net-pci,netdev=n0,romfile=",
        "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=c0,path={scratch}/ctl,server=on,wait=off",
        "-device", "virtserialport,id=ctl,chardev=c0,name=islet.ctl.0",
        "-chardev", f"socket,id=rsi0,path={scratch}/rsi",
        "-device", "virtserialport,chardev=rsi0,id=rsi,name=islet.rsi.0",
    ]  # fmt: skip
    process = subprocess.Popen(command)
    control = socket.socket(socket.AF_UNIX)
    try:
        wait_until(lambda: connected(control, scratch / "ctl"), "QEMU's control socket")
        control.settimeout(LIMIT_S)
        yield Machine(process, control, console)
    finally:
        process.kill()
        process.wait()
        control.close()
        rsi.close()


def connected(control: socket.socket, path: Path) -> bool:
    return control.connect_ex(str(path)) == 0


def echo_opening(listener: socket.socket) -> None:
    """As much of the platform as the manager needs to start: the answer to its opening."""
    try:
        connection, _ = listener.accept()
        seen = b""
        while data := connection.recv(4096):
            seen += data
            if RSI_OPEN in seen:
                connection.sendall(RSI_OPEN)
                seen = b""
    except OSError:
        return


def test_the_manager_connects_and_the_console_offers_nothing(built_workspace: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    with booted(built_workspace / ".islet/realms/default", tmp_path) as machine:
        assert machine.control.recv(len(PREAMBLE), socket.MSG_WAITALL) == PREAMBLE
        print(f"first bytes after {time.monotonic() - began:.2f} s")
        assert "login" not in machine.console and "#" not in machine.console and "Traceback" not in machine.console


@pytest.fixture(scope="module")
def stand_in_image(built_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image with a manager that only tells what it finds; Python prefers its source to the compiled one."""
    root = tmp_path_factory.mktemp("stand-in") / "w"
    shutil.copytree(built_workspace, root)
    extra = {"usr/lib/python3.11/islet_cli/appmanager/__main__.py": STAND_IN}
    build(Workspace.load(root), load_manifest(root / "realm.toml"), extra_files=extra)
    return root / ".islet/realms/default"


def test_the_realm_is_prepared_and_powers_off_once_a_measurement_was_extended(
    stand_in_image: Path, tmp_path: Path
) -> None:
    with booted(stand_in_image, tmp_path) as machine:
        facts = json.loads(machine.line())
        assert facts["argv"] == ["--config", "/etc/app-manager/config.yml"]
        wanted = {"virtio_pci", "virtio_blk", "virtio_net", "dm_mod", "dm_crypt", "dm_verity", "xts", "overlay"}
        assert wanted <= set(facts["modules"])
        assert facts["sysrq"] == "0"
        assert facts["pivot_root"] == 0
        assert {"lo", "eth0"} <= set(facts["interfaces"])
        assert facts["address"] == "10.0.2.15/24"
        assert facts["console_readers"] == []
        machine.control.sendall(b"e")
        again = json.loads(machine.line())
        assert again["argv"] == facts["argv"], "before a measurement the manager is started again"
        machine.control.sendall(b"r")
        assert machine.process.wait(LIMIT_S) == 0
        assert re.search(r"islet: .*measurement was extended: powering off\n", machine.console)
