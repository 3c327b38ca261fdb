"""The platform process over its real sockets: life of a descriptor, descriptors passed, hostile peers."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from islet_cli import framing
from islet_cli.attestation import rem
from islet_cli.attestation.cpak import Cpak
from islet_cli.attestation.verify import verify_token
from islet_cli.errors import InputError, UnavailableError
from islet_cli.keys import ecc
from islet_cli.metadata import block as blocks
from islet_cli.metadata.create import BlockManifest, create
from islet_cli.platform import channel, hes, rsi
from islet_cli.platform.client import PlatformClient
from islet_cli.platform.errors import PlatformError
from islet_cli.platform.server import PlatformServer, serve

KERNEL, INITRAMFS = b"kernel bytes " * 1000, b"initramfs bytes " * 1000


@dataclass(frozen=True)
class Measured:
    """A stand-in for the measurement, whose own tests are elsewhere: a hash of the bytes that were handed over."""

    rim: bytes
    bootargs: str = "  console=ttyS0 quiet "


def measure(plan: Any, kernel: Path, initramfs: Path) -> Measured:
    if plan.cmdline == "unmeasurable":
        raise InputError("this launch cannot be measured", code="launch")
    content = kernel.read_bytes() + initramfs.read_bytes() + plan.cmdline.encode()
    return Measured(hashlib.new(plan.hash_algo, content).digest())


@dataclass
class Platform:
    server: PlatformServer
    hes: hes.Hes
    socket: Path
    files: Path

    def client(self) -> PlatformClient:
        return PlatformClient(self.socket, timeout_s=20)

    def launch(self, **changes: Any) -> dict[str, Any]:
        plan = {
            "schema": 1,
            "vmm": "kvmtool",
            "profile": "tf-rmm",
            "hash_algo": "sha256",
            "kernel": str(self.files / "vmlinuz"),
            "kernel_sha256": hashlib.sha256(KERNEL).hexdigest(),
            "initramfs": str(self.files / "initramfs"),
            "initramfs_sha256": None,
            "cmdline": "quiet",
            "vcpus": 1,
            "memory_mib": 256,
            "console": "serial",
            "irqchip": "gicv3",
            "sve_vl": 0,
            "pmu": False,
            "pmu_counters": 0,
            "disks": 1,
            "nics": 1,
            "vsock": True,
            "personalization": "00" * 64,
        }
        return plan | changes


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> hes.Hes:
    return hes.create_identity(tmp_path_factory.mktemp("identity") / "platform")


@pytest.fixture
def platform(tmp_path: Path, booted: hes.Hes) -> Iterator[Platform]:
    (tmp_path / "vmlinuz").write_bytes(KERNEL)
    (tmp_path / "initramfs").write_bytes(INITRAMFS)
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    with serve(booted, run / "platform.sock", measure=measure) as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield Platform(server, booted, run / "platform.sock", tmp_path)
        finally:
            server.stop()
            thread.join(10)
    assert not list(run.glob("*.sock")), "sockets were left behind"


def answer_of(connection: socket.socket) -> Any:
    answer = framing.read_frame(connection.recv)
    assert answer is not None
    return answer


def until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def memory_files() -> int:
    """How many memory files this process (client and platform in one) holds."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(str(entry.readlink()))
    return sum("memfd:" in link for link in links)


class RsiPeer:
    """What QEMU and the manager in the realm are to the platform: one connection, hello, frames."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(20)
        self.socket.connect(path)

    def hello(self) -> None:
        self.socket.sendall(rsi.HELLO)
        assert framing.receive_exactly(self.socket.recv, len(rsi.HELLO)) == rsi.HELLO

    def ask(self, request: Any) -> Any:
        self.socket.sendall(framing.encode(request))
        return framing.read_frame(self.socket.recv, limit=rsi.FRAME_LIMIT)

    def closed(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


def activate(client: PlatformClient, platform: Platform, **changes: Any) -> tuple[str, RsiPeer]:
    rd = client.realm_create(platform.launch(**changes))["rd"]
    path, *descriptors = client.realm_activate(rd)
    for descriptor in descriptors:
        os.close(descriptor)
    peer = RsiPeer(path)
    peer.hello()
    return rd, peer


def block_for(rim: bytes, *, algo: str = "SHA256", svn: int = 3) -> bytes:
    return create(BlockManifest("test.realm", "1.0.0", svn, rim.hex(), algo), ecc.private_from_scalar(7))


def test_sockets_are_private(platform: Platform) -> None:
    assert stat.S_IMODE(platform.socket.stat().st_mode) == 0o600
    with platform.client() as client:
        version = client.version()
        assert version == {"protocol": 1, "instance_id": platform.hes.instance_id.hex(), "emulated": True}
        rd = client.realm_create(platform.launch())["rd"]
        path, *descriptors = client.realm_activate(rd)
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
        for descriptor in descriptors:
            os.close(descriptor)


def test_peers_of_another_user_are_turned_away(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    with platform.client() as client:
        rd = client.realm_create(platform.launch())["rd"]
        path, *descriptors = client.realm_activate(rd)
        monkeypatch.setattr("islet_cli.platform.channel.is_own_peer", lambda _connection: False)
        stranger = RsiPeer(path)
        assert stranger.closed()
        monkeypatch.undo()
        RsiPeer(path).hello()
    monkeypatch.setattr("islet_cli.platform.server.is_own_peer", lambda _connection: False)
    with platform.client() as client, pytest.raises(UnavailableError):
        client.version()
    for descriptor in descriptors:
        os.close(descriptor)


def test_measured_bytes_are_booted_bytes(platform: Platform) -> None:
    with platform.client() as client:
        created = client.realm_create(platform.launch())
        expected = hashlib.sha256(KERNEL + INITRAMFS + b"quiet").hexdigest()
        assert created["rim"] == expected
        assert created["bootargs"] == "console=ttyS0 quiet"
        # Whoever changes the files now changes neither what was measured nor what boots.
        (platform.files / "vmlinuz").write_bytes(b"another kernel")
        (platform.files / "initramfs").unlink()
        _path, kernel, initramfs = client.realm_activate(created["rd"])
        for descriptor, content in ((kernel, KERNEL), (initramfs, INITRAMFS)):
            assert Path(f"/proc/self/fd/{descriptor}").read_bytes() == content
            assert fcntl.fcntl(descriptor, 1034) == 0xF, "all four seals"
            with pytest.raises(OSError):
                writable = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
                os.write(writable, b"x")
            assert not os.get_inheritable(descriptor)
            os.close(descriptor)


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"kernel": "/nonexistent/vmlinuz"}, "file", "/nonexistent/vmlinuz"),
        ({"kernel": "/dev/zero"}, "file", "not a regular file"),
        ({"kernel": "/"}, "file", "/"),
        ({"initramfs_sha256": "00" * 32}, "file", "SHA-256"),
        ({"vcpus": 0}, "input", "vcpus"),
        ({"surprise": 1}, "input", "surprise"),
        ({"kernel": "relative"}, "input", "kernel"),
        ({"cmdline": "unmeasurable"}, "input", "cannot be measured"),
    ],
)
def test_refused_launches(platform: Platform, changes: dict[str, Any], code: str, text: str) -> None:
    with platform.client() as client:
        before = memory_files()
        with pytest.raises(PlatformError, match=text) as caught:
            client.realm_create(platform.launch(**changes))
        assert caught.value.code == code
        assert client.realm_list() == []
        assert memory_files() == before, "a copy leaked"


def test_metadata_is_checked_at_set_and_at_activation(platform: Platform) -> None:
    with platform.client() as client:
        created = client.realm_create(platform.launch())
        rd, rim = created["rd"], bytes.fromhex(created["rim"])
        with pytest.raises(PlatformError) as caught:
            client.realm_set_metadata(rd, bytes(432))
        assert (caught.value.code, caught.value.reason) == ("input", "signature")
        client.realm_set_metadata(rd, block_for(bytes(32)))
        with pytest.raises(PlatformError) as caught:
            client.realm_set_metadata(rd, block_for(rim))
        assert (caught.value.code, caught.value.reason) == ("realm", "already-set")
        with pytest.raises(PlatformError, match=created["rim"]) as caught:
            client.realm_activate(rd)
        assert (caught.value.code, caught.value.reason) == ("realm", "rim")
        assert client.realm_status(rd)["state"] == "NEW", "nothing boots"
        other = client.realm_create(platform.launch(hash_algo="sha512"))
        client.realm_set_metadata(other["rd"], block_for(bytes.fromhex(other["rim"]), algo="SHA512"))
        _path, *descriptors = client.realm_activate(other["rd"])
        with pytest.raises(PlatformError) as caught:
            client.realm_set_metadata(other["rd"], block_for(rim))
        assert caught.value.reason == "state"
        with pytest.raises(PlatformError) as caught:
            client.realm_activate(other["rd"])
        assert (caught.value.code, caught.value.reason) == ("realm", "state")
        for descriptor in descriptors:
            os.close(descriptor)


@pytest.mark.parametrize("algo", ["sha256", "sha512"])
def test_a_realm_gets_measurements_keys_and_evidence(platform: Platform, algo: str) -> None:
    with platform.client() as client:
        created = client.realm_create(platform.launch(personalization="ab" * 64, hash_algo=algo))
        rim = bytes.fromhex(created["rim"])
        client.realm_set_metadata(created["rd"], block_for(rim, algo=algo.upper()))
        path, *descriptors = client.realm_activate(created["rd"])
        peer = RsiPeer(path)
        until(lambda: not Path(path).exists(), "the path is unlinked once the realm connected")
        peer.hello()
        assert peer.ask("Version") == {"Version": 65536}
        assert bytes(peer.ask({"MeasurementRead": {"index": 0}})["Measurement"]) == rim.ljust(64, b"\0")
        assert peer.ask({"MeasurementExtend": {"index": 1, "data": [1, 2, 3]}}) == "Ok"
        extended = rem.extend(bytes(64), bytes([1, 2, 3]), algo)
        assert bytes(peer.ask({"MeasurementRead": {"index": 1}})["Measurement"]) == extended.ljust(64, b"\0")
        page = bytes(peer.ask("RealmMetadata")["RealmMetadata"])
        assert len(page) == 4096 and blocks.parse(page).svn == 3
        keys = [bytes(peer.ask({"SealingKey": {"flags": flags, "svn": 2}})["SealingKey"]) for flags in (0, 1, 2, 4, 12)]
        assert len({*keys}) == 5 and all(len(key) == 32 for key in keys)
        challenge = os.urandom(64)
        token = bytes(peer.ask({"AttestationToken": {"challenge": list(challenge)}})["AttestationToken"])
        cpak = Cpak(platform.hes.cpak.public.sec1, "emulated")
        verdict = verify_token(token, cpaks=[cpak], challenge=challenge, allow_emulated=True)
        assert verdict.token.realm.rim == rim and verdict.token.realm.rems[0] == extended
        assert verdict.to_json()["personalization"] == "ab" * 64
        assert client.realm_status(created["rd"])["rems"][0] == extended.hex()
        for descriptor in descriptors:
            os.close(descriptor)


@pytest.mark.parametrize(
    ("request_", "number"),
    [
        ("Reboot", 22),
        ({"Version": {}}, 22),
        ([], 22),
        (None, 22),
        ({"MeasurementRead": {"index": 5}}, 14),
        ({"MeasurementRead": {"index": -1}}, 22),
        ({"MeasurementRead": {"index": True}}, 22),
        ({"MeasurementRead": {}}, 22),
        ({"MeasurementExtend": {"index": 0, "data": [1]}}, 14),
        ({"MeasurementExtend": {"index": 1, "data": []}}, 22),
        ({"MeasurementExtend": {"index": 1, "data": [0] * 65}}, 22),
        ({"MeasurementExtend": {"index": 1, "data": [256]}}, 22),
        ({"AttestationToken": {"challenge": [0] * 63}}, 22),
        ({"SealingKey": {"flags": 2**64, "svn": 0}}, 22),
        ({"SealingKey": {"flags": 8, "svn": 4}}, 14),
        ("RealmMetadata", 9),
    ],
)
def test_refused_realm_services(platform: Platform, request_: Any, number: int) -> None:
    with platform.client() as client:
        created = client.realm_create(platform.launch())
        if request_ != "RealmMetadata":
            client.realm_set_metadata(created["rd"], block_for(bytes.fromhex(created["rim"])))
        path, *descriptors = client.realm_activate(created["rd"])
        peer = RsiPeer(path)
        peer.hello()
        assert peer.ask(request_)["Error"]["errno"] == number
        assert peer.ask("Version") == {"Version": 65536}, "the channel stays in step"
        for descriptor in descriptors:
            os.close(descriptor)


def test_a_malformed_body_keeps_the_channel_in_step_and_a_malformed_prefix_ends_it(platform: Platform) -> None:
    with platform.client() as client:
        rd, peer = activate(client, platform)
        peer.socket.sendall(framing.PREFIX.pack(3) + b"{x}")
        assert answer_of(peer.socket)["Error"]["errno"] == 22
        peer.hello()
        assert peer.ask("Version") == {"Version": 65536}, "a restarted manager says hello again"
        peer.socket.sendall(framing.PREFIX.pack(4093))
        assert peer.closed()
        until(lambda: client.realm_status(rd)["state"] == "SYSTEM_OFF", "the realm is off")
    with platform.client() as client:
        rd = client.realm_create(platform.launch())["rd"]
        path, *descriptors = client.realm_activate(rd)
        silent = RsiPeer(path)
        silent.socket.sendall(framing.encode("Version"))
        assert silent.closed(), "requests before the hello are not answered"
        for descriptor in descriptors:
            os.close(descriptor)


def test_one_connection_a_descriptor_and_off_when_it_ends(platform: Platform) -> None:
    with platform.client() as client:
        rd = client.realm_create(platform.launch())["rd"]
        path, *descriptors = client.realm_activate(rd)
        first = RsiPeer(path)
        first.hello()
        with pytest.raises(OSError):
            RsiPeer(path)
        first.socket.close()
        until(lambda: client.realm_status(rd)["state"] == "SYSTEM_OFF", "the realm is off")
        again = client.realm_create(platform.launch())
        assert again["rd"] != rd
        assert client.realm_status(again["rd"])["rems"] == ["00" * 32] * 4, "a reboot starts from zero"
        for descriptor in descriptors:
            os.close(descriptor)


def test_descriptors_end_with_their_connection_unless_a_vm_uses_them(platform: Platform) -> None:
    watcher = platform.client()
    client = platform.client()
    client.realm_create(platform.launch())
    rd, peer = activate(client, platform)
    client.close()
    until(lambda: [realm["rd"] for realm in watcher.realm_list()] == [rd], "the NEW one went, the ACTIVE one stayed")
    assert peer.ask("Version") == {"Version": 65536}
    peer.socket.close()
    until(lambda: watcher.realm_list() == [], "with its VM the other one goes as well")
    watcher.close()


def test_an_activated_realm_that_never_connects_is_given_up(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "CONNECT_TIMEOUT_S", 0.05)
    with platform.client() as watcher:
        with platform.client() as client:
            rd = client.realm_create(platform.launch())["rd"]
            path, *descriptors = client.realm_activate(rd)
        until(lambda: watcher.realm_list() == [], "nothing remains of it")
        assert not Path(path).exists()
        for descriptor in descriptors:
            os.close(descriptor)


def test_destroy_ends_the_channel(platform: Platform) -> None:
    with platform.client() as client:
        rd, peer = activate(client, platform)
        client.realm_destroy(rd)
        assert peer.closed()
        for call in (client.realm_destroy, client.realm_status, client.realm_activate):
            with pytest.raises(PlatformError) as caught:
                call(rd)
            assert caught.value.code == "no-such-realm"


@pytest.mark.parametrize(
    "request_", ["Nonsense", {"RealmCreate": {}}, {"RealmStatus": {"rd": 1}}, {"RealmSetMetadata": {"rd": "x"}}, 7]
)
def test_unknown_management_requests_are_answered(platform: Platform, request_: Any) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
        raw.connect(str(platform.socket))
        raw.sendall(framing.encode(request_))
        assert answer_of(raw)["Error"]["code"] == "input"
        raw.sendall(framing.PREFIX.pack(2) + b"{]")
        assert answer_of(raw)["Error"]["code"] == "input"
        raw.sendall(framing.PREFIX.pack(framing.MAX_FRAME + 1))
        assert raw.recv(1) == b""
    with platform.client() as client:
        assert client.version()["protocol"] == 1, "others are served on"


def test_shutdown_is_answered_and_ends_the_process(platform: Platform) -> None:
    client = platform.client()
    _rd, peer = activate(client, platform)
    client.shutdown()
    until(peer.closed, "the realm's channel ends")
    until(lambda: not platform.server.is_serving, "the server returned")
    client.close()


def test_a_second_platform_on_the_same_socket_is_refused(platform: Platform, booted: hes.Hes) -> None:
    with pytest.raises(UnavailableError) as caught, serve(booted, platform.socket):
        pass
    assert caught.value.code == "locked"
    with platform.client() as client:
        assert client.version()["emulated"] is True


def test_sockets_of_a_killed_platform_are_replaced(tmp_path: Path, booted: hes.Hes) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    for name in ("platform.sock", "rsi-0011223344556677.sock"):
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(str(run / name))
        dead.close()
    with serve(booted, run / "platform.sock"):
        assert [path.name for path in sorted(run.glob("*.sock"))] == ["platform.sock"]
    with pytest.raises(UnavailableError, match="not reachable") as caught:
        PlatformClient(run / "platform.sock")
    assert caught.value.code == "platform-down"


def test_a_directory_open_to_others_is_refused(tmp_path: Path, booted: hes.Hes) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(InputError) as caught, serve(booted, tmp_path / "platform.sock"):
        pass
    assert caught.value.code == "not-private"
