"""The parts of the warden by themselves: console, stream, network, QEMU arguments, state directories, accelerator."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml
from warden_harness import upstream_config

from islet_cli.errors import InputError, IsletError, UnavailableError
from islet_cli.framing import FramingError
from islet_cli.launch.plan import LaunchPlan
from islet_cli.warden import accel, definition, forward, qemu_arguments, state
from islet_cli.warden.channel import HELLO, RealmStream
from islet_cli.warden.console import RING_BYTES, Console
from islet_cli.warden.errors import WardenError, from_wire, to_wire
from islet_cli.warden.messages import REALM_HELLO
from islet_cli.warden.network import Forward, Network, Publish, check_publish, forwards_for, seen_by_realm
from islet_cli.warden.platform_session import Activation
from islet_cli.warden.runner import Disk, LaunchRequest
from islet_cli.warden.runner_qemu import QemuRunner
from islet_cli.warden.state import ApplicationConfig, RealmDirectory, Workdir
from islet_cli.warden.vsock import VsockListener

REALM = uuid.UUID("38eee877-4a60-49d6-9d73-2b98e039db46")
APP = uuid.UUID("8952b9e2-36ae-42b7-80f4-ebff7092ad2e")


# ------------------------------------------------------------------------------------------- console


def console(tmp_path: Path) -> Console:
    async def make() -> Console:
        return Console(tmp_path / "console.log")

    return asyncio.run(make())


def test_console_drops_escapes_controls_and_carriage_returns(tmp_path: Path) -> None:
    shown = console(tmp_path)
    shown.feed(b"\x1bc\x1b[?7l\x1b[2J\x1b]0;title\x07Boot\x08ing\r\n\x1b[31mred\x1b[0m\r\nunfinish")
    shown.feed(b"ed")
    shown.close()
    assert (tmp_path / "console.log").read_bytes() == b"Booting\nred\nunfinished\n"


def test_console_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("islet_cli.warden.console.FILE_BYTES", 1000)
    shown = console(tmp_path)
    shown.feed(b"x" * 100 + b"\n")
    for _ in range(40):
        shown.feed(b"y" * 20000)
    shown.close()
    assert (tmp_path / "console.log").stat().st_size <= 1000
    data, offset = shown.read(0)
    assert len(data) <= RING_BYTES
    assert offset > RING_BYTES


@pytest.mark.parametrize("line", [b"islet: app fetch 1/2x", b"islet: app other 1/2", b"xislet: app fetch 1/2"])
def test_only_whole_progress_lines_count(tmp_path: Path, line: bytes) -> None:
    shown = console(tmp_path)
    shown.feed(line + b"\n")
    assert shown.progress is None
    shown.feed(b"islet: app unpack 7/0\r\n")
    assert shown.progress is not None
    assert (shown.progress.stage, shown.progress.done, shown.progress.total) == ("unpack", 7, 0)


# -------------------------------------------------------------------------------------------- stream


def test_preamble_in_pieces_and_inside_a_broken_frame() -> None:
    stream = RealmStream()
    assert list(stream.feed(REALM_HELLO[:7])) == []
    assert list(stream.feed(REALM_HELLO[7:] + b"\0\0\0\2{}")) == [HELLO, b"{}"]
    assert list(stream.feed(b"\0\0\1\0broken" + REALM_HELLO + b"\0\0\0\2[]")) == [HELLO, b"[]"]


def test_prefix_above_the_limit_is_refused_at_once() -> None:
    with pytest.raises(FramingError):
        list(RealmStream().feed(b"\0\x80\0\1"))


# ------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("127.0.0.1:1337", "10.0.2.100:1337"),
        ("localhost:5000", "10.0.2.100:5000"),
        ("[::1]:1337", "10.0.2.100:1337"),
        ("https://localhost", "https://10.0.2.100:443"),
        ("registry.example:1337", "registry.example:1337"),
        ("10.1.2.3:1337", "10.1.2.3:1337"),
    ],
)
def test_loopback_registries_are_seen_through_the_forward(given: str, seen: str) -> None:
    assert seen_by_realm(given) == seen


def test_one_forward_per_registry() -> None:
    assert forwards_for(["127.0.0.1:1337", "localhost:1337", "far.example:1"]) == (Forward("127.0.0.1", 1337),)
    with pytest.raises(InputError, match="share port"):
        forwards_for(["127.0.0.1:1337", "[::1]:1337"])


@pytest.mark.parametrize("text", ["", "a b", "x:0", "x:70000", "ftp://x", "x,y", "x:1/path", "'; rm -rf /", "-o"])
def test_registry_addresses_are_checked(text: str) -> None:
    with pytest.raises(InputError):
        seen_by_realm(text)


@pytest.mark.parametrize(
    "items",
    [
        [Publish("localhost", 1, 2)],
        [Publish("127.0.0.1", 1, 0)],
        [Publish("127.0.0.1", 8, 1), Publish("127.0.0.1", 8, 2)],
    ],
)
def test_published_ports_are_checked(items: list[Publish]) -> None:
    with pytest.raises(InputError):
        check_publish(items)


def test_forwarder_shuttles_bytes_and_ends_at_the_registrys_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near, far = socket.socketpair()
        with near:
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", forward.__file__, "127.0.0.1", str(server.getsockname()[1])],
                stdin=far,
                stdout=far,
            )
            far.close()
            connection, _ = server.accept()
            with connection:
                near.sendall(b"request")
                assert connection.recv(100) == b"request"
                connection.sendall(b"a" * 300_000)
                received = b""
                while len(received) < 300_000:
                    received += near.recv(1 << 16)
            assert child.wait(5) == 0


def test_forwarder_ends_when_the_guest_leaves_or_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        command = [sys.executable, "-I", "-S", forward.__file__, "127.0.0.1", str(unused.getsockname()[1])]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=False)
    assert done.returncode == 1


# ------------------------------------------------------------------------------------ QEMU arguments


def request(**changes: Any) -> LaunchRequest:
    values: dict[str, Any] = {
        "realm": REALM,
        "plan": LaunchPlan(
            kernel="/k", kernel_sha256=None, initramfs="/i", initramfs_sha256=None, cmdline="q", vcpus=2, memory_mib=256
        ),
        "activation": Activation("00", "ab", "console=ttyS0 quiet", "/run/rsi,1.sock", 11, 12),
        "disks": (Disk(Path("/work/a,b/disk.raw"), "38eee877-4a60-49d6-9"),),
        "network": Network((Publish("127.0.0.1", 8080, 80),), (Forward("127.0.0.1", 1337),)),
        "console_log": Path("/c"),
        "vm_log": Path("/v"),
    }
    return LaunchRequest(**(values | changes))


def arguments(accel_name: str = "tcg", **changes: Any) -> list[str]:
    return qemu_arguments.arguments(
        request(**changes), qemu_arguments.MACHINES["x86_64"], accel_name, control=13, qmp=14
    )


def after(options: list[str], flag: str) -> list[str]:
    return [options[index + 1] for index, option in enumerate(options) if option == flag]


def test_measured_copies_are_what_boots() -> None:
    options = arguments()
    assert after(options, "-kernel") == ["/proc/self/fd/11"]
    assert after(options, "-initrd") == ["/proc/self/fd/12"]
    assert after(options, "-append") == ["console=ttyS0 quiet"]
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(options)


def test_commas_are_doubled_and_formats_are_named() -> None:
    options = arguments()
    (drive,) = after(options, "-drive")
    assert drive.startswith("file=/work/a,,b/disk.raw,format=raw,")
    assert "virtio-blk-pci,drive=d0,serial=38eee877-4a60-49d6-9" in after(options, "-device")
    assert "socket,id=rsi0,path=/run/rsi,,1.sock" in after(options, "-chardev")


def test_the_network_is_closed_unless_asked() -> None:
    (netdev,) = after(arguments(), "-netdev")
    assert "restrict=on" in netdev
    assert "hostfwd=tcp:127.0.0.1:8080-:80" in netdev
    assert "guestfwd=tcp:10.0.2.100:1337-cmd:" in netdev
    (netdev,) = after(arguments(network=Network(internet=True)), "-netdev")
    assert "restrict" not in netdev
    assert "romfile=" in " ".join(arguments())
    assert after(arguments(network=None), "-netdev") == []


def test_accelerators() -> None:
    assert after(arguments(), "-accel") == ["tcg,thread=multi"]
    assert after(arguments("kvm"), "-cpu") == ["host"]


def kernel_file(tmp_path: Path, offset: int, magic: bytes) -> int:
    file = tmp_path / "kernel"
    file.write_bytes(bytes(offset) + magic + bytes(600))
    return os.open(file, os.O_RDONLY)


def test_the_machine_follows_from_the_kernel(tmp_path: Path) -> None:
    assert qemu_arguments.machine_of(kernel_file(tmp_path, 56, b"ARM\x64")).arch == "aarch64"
    assert qemu_arguments.machine_of(kernel_file(tmp_path, 0x202, b"HdrS")).arch == "x86_64"
    with pytest.raises(InputError):
        qemu_arguments.machine_of(kernel_file(tmp_path, 0, b"ELF"))


def launch_with(tmp_path: Path, script: str | None) -> IsletError:
    binary = tmp_path / "qemu"
    if script is not None:
        binary.write_text(f"#!/bin/sh\n{script}\n")
        binary.chmod(0o755)
    kernel = kernel_file(tmp_path, 0x202, b"HdrS")
    activation = Activation("00", "ab", "", str(tmp_path / "rsi"), kernel, kernel)

    async def launch() -> None:
        await QemuRunner("tcg", binary=binary).launch(
            request(activation=activation, console_log=tmp_path / "c", vm_log=tmp_path / "v")
        )

    with pytest.raises(IsletError) as raised:
        asyncio.run(launch())
    return raised.value


def test_missing_qemu_names_the_package(tmp_path: Path) -> None:
    error = launch_with(tmp_path, None)
    assert isinstance(error, UnavailableError)
    assert error.hint == "run: apt-get install qemu-system-x86"


def test_qemu_that_ends_at_once_is_quoted(tmp_path: Path) -> None:
    error = launch_with(tmp_path, "echo 'qemu: no such device' >&2; exit 1")
    assert error.code == "launch-failed"
    assert "no such device" in error.message
    assert (tmp_path / "v").stat().st_mode & 0o777 == 0o600


def test_port_taken_in_the_last_moment(tmp_path: Path) -> None:
    error = launch_with(tmp_path, "echo 'Could not set up host forwarding rule' >&2; exit 1")
    assert error.code == "network"
    assert error.exit_code == 3


def test_qemu_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("islet_cli.warden.runner_qemu.MONITOR_TIMEOUT_S", 0.3)
    error = launch_with(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 60")
    assert "did not answer" in error.message
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# --------------------------------------------------------------------------------------- accelerator


def test_environment_takes_the_place_of_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISLET_ACCEL", "tcg")
    assert accel.choose("auto") == "tcg"
    assert accel.requested("kvm") == "kvm"
    monkeypatch.setenv("ISLET_ACCEL", "warp")
    with pytest.raises(InputError):
        accel.choose("auto")


def test_kvm_is_chosen_only_when_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISLET_ACCEL", raising=False)
    monkeypatch.setattr(accel, "kvm_works", lambda: False)
    assert accel.choose("auto") == "tcg"
    with pytest.raises(UnavailableError):
        accel.choose("kvm")
    monkeypatch.setattr(accel, "kvm_works", lambda: True)
    assert accel.choose("auto") == "kvm"


def test_a_hanging_probe_counts_as_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kvm_probe.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(accel, "__file__", str(tmp_path / "accel.py"))
    monkeypatch.setattr(accel, "PROBE_TIMEOUT_S", 0.3)
    monkeypatch.setattr(accel.os, "access", lambda *_: True)
    monkeypatch.setattr(accel.platform, "machine", lambda: "x86_64")
    assert accel.kvm_works() is False


# ------------------------------------------------------------------------------------- state on disk


def test_upstream_directories_are_read_whatever_yaml_makes_of_them(tmp_path: Path) -> None:
    path = tmp_path / str(REALM)
    (path / str(APP)).mkdir(parents=True)
    (path / "config.yaml").write_text(
        "machine: virt\ncpu:\n  cpu: cortex-a57\n  cores_number: 2\nmemory:\n  ram_size: 2048\nnetwork:\n"
        "  vsock_cid: 12344\n  tap_device: tap100\n  mac_address: 52:55:00:11:55:01\n  hardware_device: ~\n"
        "kernel:\n  kernel_path: /opt/Image\n  kernel_cmd_params: null\n"
    )
    (path / str(APP) / "config.yaml").write_text(
        "name: on\nversion: 1.10\nimage_registry: r:1\nimage_storage_size_mb: 256\ndata_storage_size_mb: 64\n"
    )
    directory = RealmDirectory(path)
    assert directory.upstream_config()["network"]["mac_address"] == "52:55:00:11:55:01"
    assert directory.upstream_config()["metadata"] is None
    assert directory.applications()[APP] == ApplicationConfig("on", "1.10", "r:1", 256, 64)
    assert definition.load(directory).vsock_cid == 12344


def test_what_is_written_stays_readable_by_yaml_1_1(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path / "w")
    with workdir.new_realm(REALM) as staging:
        definition.write_upstream(staging, upstream_config())
    directory = workdir.realm(REALM)
    with directory.new_application(APP, ApplicationConfig("no", "1.10", "12:30", 1, 1)):
        pass
    plain = yaml.safe_load((directory.path / "config.yaml").read_text())
    assert "id" not in plain
    assert plain["network"]["mac_address"] == "52:55:00:11:55:01"
    assert plain["network"]["remote_terminal_uri"] is None
    plain = yaml.safe_load((directory.path / str(APP) / "config.yaml").read_text())
    assert (plain["name"], plain["version"], plain["image_registry"]) == ("no", "1.10", "12:30")
    assert directory.upstream_config() == upstream_config() | {"id": str(REALM)}
    modes = {entry.stat().st_mode & 0o777 for entry in tmp_path.rglob("*")}
    assert modes == {0o700, 0o600}


def test_failed_creation_leaves_nothing(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path / "w")
    with pytest.raises(InputError), workdir.new_realm(REALM):
        raise InputError("no")
    assert list(workdir.path.iterdir()) == []


def test_remnants_are_swept_and_foreign_names_ignored(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path / "w")
    for name in (".new-1", ".trash-2", "lost+found", "notes.txt"):
        (workdir.path / name).mkdir()
    workdir.sweep()
    assert workdir.realms() == []
    assert sorted(entry.name for entry in workdir.path.iterdir()) == ["lost+found", "notes.txt"]


@pytest.mark.parametrize("text", ["", "[]", "a: [", "machine: virt", "\0", "!!python/object:os.system {}"])
def test_broken_configurations_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / str(REALM)
    path.mkdir()
    (path / "config.yaml").write_text(text)
    with pytest.raises(IsletError):
        definition.load(RealmDirectory(path))


def test_state_round_trip_and_unknown_schema() -> None:
    stored = state.RealmState([APP], "Running", 5, 6, "x", "ab", [APP], [APP])
    assert state.RealmState.decode(stored.encode(), "f") == stored
    for text in (b"{}", b"[]", b'{"schema":2}', b"\xff"):
        with pytest.raises(IsletError):
            state.RealmState.decode(text, "f")


# -------------------------------------------------------------------------------------- errors, vsock


@pytest.mark.parametrize("hint", [None, "do this"])
@pytest.mark.parametrize("code", ["no-such-realm", "bad-state", "disk", "network", "data-at-risk", "realm-error"])
def test_errors_keep_their_code_over_the_wire(code: str, hint: str | None) -> None:
    error = from_wire(to_wire(WardenError("it is so: really", code=code, hint=hint)))
    assert (error.code, error.message, error.hint) == (code, "it is so: really", hint)


def test_unknown_errors_of_a_foreign_daemon_are_still_told() -> None:
    assert from_wire("Something happened: badly").message == "Something happened: badly"


def test_vsock_connections_that_nobody_waits_for_are_closed() -> None:
    async def scenario() -> None:
        listener = VsockListener()
        ours, theirs = socket.socketpair()
        listener.take(theirs, 7)
        assert ours.recv(1) == b""
        waiting = asyncio.create_task(listener.accept(9))
        await asyncio.sleep(0)
        ours, theirs = socket.socketpair()
        listener.take(theirs, 9)
        reader, writer = await waiting
        ours.send(b"x")
        assert await reader.read(1) == b"x"
        writer.close()
        late, later = socket.socketpair()
        listener.take(later, 9)
        assert late.recv(1) == b""

    asyncio.run(scenario())


def test_vsock_without_the_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("islet_cli.warden.vsock.Path.exists", lambda _: False)
    with pytest.raises(UnavailableError, match="vhost-vsock"):
        VsockListener().start()
