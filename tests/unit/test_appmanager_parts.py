"""The manager's small parts: configuration, messages, RSI, control, sealing, network, ring, clock, hardening."""

from __future__ import annotations

import copy
import errno
import fcntl
import json
import os
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
import vectors

from islet_cli import framing
from islet_cli.appmanager import clock, config, console, control, hardening, keys, messages, network, ports, sealing
from islet_cli.appmanager.__main__ import main
from islet_cli.appmanager.logring import LogRing
from islet_cli.appmanager.rsi import HELLO, ChannelRsi, DeviceRsi, RsiError, open_rsi
from islet_cli.errors import InputError, UnavailableError
from realm_doubles import FakeRsi, document, metadata_page

REALM_MESSAGES = [one for one in vectors.load("ISLET_VECTORS_PROTOCOL")["messages"] if one["type"] == "Request"]
REALM_DECODING = [one for one in vectors.load("ISLET_VECTORS_PROTOCOL")["decoding"] if one["type"] == "Request"]


# -- configuration ------------------------------------------------------------------------------------------

UPSTREAM = """
workdir: /apps
vsock_port: 1337
crypto: {cipher: Aes, block_mode: Cbc, iv_mode: !Essiv Sha256, iv_offset: 0}
launcher:
  Oci:
    RaTLS:
      root_ca: /usr/share/app-manager/ratls/root-ca.crt
      token_resolver: {file: /usr/share/app-manager/ratls/token.bin}
ca_pub: /usr/share/app-manager/ca/root-ca.pub
keysealing:
  HkdfSha256:
    RsiSealingKey:
      flags:
autostartall: true
extend: rem0
log_level: whatever upstream adds
"""


def test_the_built_configuration_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(json.dumps(document(policy__vendors=["AB" * 32], policy__registries=["Host:1"])))
    settings = config.load(path)
    assert settings.crypto == config.Crypto("aes-xts-plain64", 64, 0)
    assert settings.sealing == config.Sealing("rsi", flags=4 | 8, svn=1)
    assert settings.extend == 1 and settings.same_vendor and settings.needs_rsi
    assert settings.policy.vendors == {"ab" * 32} and settings.policy.registries == {"host:1"}
    assert settings.policy.forward_output and not settings.policy.compat


def test_upstreams_configuration_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(UPSTREAM)
    settings = config.load(path)
    assert settings.policy.compat and settings.rsi == "device" and settings.control == "vsock"
    assert settings.crypto.cipher == "aes-cbc-essiv:sha256" and settings.fs_type == "ext2"
    assert settings.launcher.token_file == Path("/usr/share/app-manager/ratls/token.bin")
    assert settings.sealing == config.Sealing("rsi") and not settings.same_vendor
    assert not settings.policy.forward_output


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"workdir": None}, "workdir"),
        ({"workdir": "apps"}, "workdir"),
        ({"vsock_port": "1337"}, "vsock_port"),
        ({"vsock_port": True}, "vsock_port"),
        ({"control": "tcp"}, "control"),
        ({"rsi": "emulated"}, "rsi"),
        ({"crypto__cipher": "Des"}, "cipher"),
        ({"crypto__block_mode": "Cbc"}, "key_bytes"),
        ({"crypto__key_bytes": 32}, "key_bytes"),
        ({"crypto__iv_mode": {"Essiv": "Md5"}}, "iv_mode"),
        ({"crypto__additional_options": ["a b"]}, "additional_options"),
        ({"launcher": "Other"}, "launcher"),
        ({"launcher": {"Oci": {"RaTLS": {"root_ca": "/a"}}}}, "token_resolver"),
        ({"keysealing": {"HkdfSha256": {"StubbedHex": "zz"}}}, "StubbedHex"),
        ({"keysealing": {"HkdfSha256": {"RsiSealingKey": {"flags": ["Svn"]}}}}, "flags"),
        ({"autostartall": "yes"}, "autostartall"),
        ({"extend": "rem4"}, "extend"),
        ({"policy__vendor": []}, "unknown key 'vendor'"),
        ({"policy__vendors": ["ab"]}, "policy.vendors"),
        ({"policy__registries": "a"}, "policy.registries"),
        ({"policy__token_challenge": "plain"}, "token_challenge"),
        ({"policy__metadata": {"public_key": "00", "realm_id": "a", "min_svn": 1}}, "public_key"),
        ({"policy__metadata": {"public_key": "00" * 96, "realm_id": "a"}}, "min_svn"),
        ({"policy__applications": [{"vendor": "ab" * 32}]}, "'name' is missing"),
        ({"policy__applications": [{"name": "a"}, {"name": "a"}]}, "repeated"),
        ({"policy": []}, "policy"),
    ],
)
def test_a_wrong_configuration_is_named(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(config.ConfigError) as caught:
        config.parse(document(**changes))
    assert part in caught.value.message


def test_every_required_key_is_missed() -> None:
    for key in ("workdir", "vsock_port", "crypto", "launcher", "ca_pub", "keysealing", "autostartall"):
        value = copy.deepcopy(document())
        del value[key]
        with pytest.raises(config.ConfigError, match=key):
            config.parse(value)


def test_the_command_says_in_one_line_why_it_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yml"
    path.write_text("]")
    assert main(["--config", str(path)]) == 2
    assert main(["--what"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.startswith("islet: the manager ends: ") for line in lines)


# -- messages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", REALM_MESSAGES, ids=lambda case: case["name"])
def test_upstreams_requests_are_read(case: dict[str, Any]) -> None:
    messages.parse_request(framing.decode_body(bytes.fromhex(case["frame_hex"])[4:]))


@pytest.mark.parametrize("case", REALM_DECODING, ids=lambda case: case["name"])
def test_upstreams_verdicts_on_requests(case: dict[str, Any]) -> None:
    def read() -> None:
        messages.parse_request(framing.decode_body(bytes.fromhex(case["frame_hex"])[4:]))

    if case["accepted"]:
        read()
    else:
        with pytest.raises(InputError):
            read()


@pytest.mark.parametrize(
    "text", ["", "x" * 36, "38eee8774a6049d69d732b98e039db4", "{38eee877-4a60-49d6-9d73-2b98e039db46"]
)
def test_other_texts_are_no_uuids(text: str) -> None:
    with pytest.raises(messages.RequestError):
        messages.parse_uuid(text)


def test_uuids_are_read_in_every_spelling() -> None:
    plain = "38eee877-4a60-49d6-9d73-2b98e039db46"
    for text in (plain, plain.upper(), f"{{{plain}}}", f"urn:uuid:{plain}", plain.replace("-", "")):
        assert messages.parse_uuid(text) == plain


# -- the monitor --------------------------------------------------------------------------------------------


class Platform:
    """The far end of an RSI channel."""

    def __init__(self, noise: bytes = b"") -> None:
        self.theirs, ours = socket.socketpair()
        self.answers: list[Any] = []
        self.requests: list[Any] = []
        self._noise = noise
        self.thread = threading.Thread(target=self._run, args=(ours,), daemon=True)
        self.thread.start()

    def _run(self, end: socket.socket) -> None:
        assert end.recv(16) == HELLO
        end.sendall(self._noise + HELLO)
        while (request := framing.read_frame(end.recv)) is not None:
            self.requests.append(request)
            end.sendall(framing.encode(self.answers.pop(0)))

    def connect(self) -> ChannelRsi:
        return ChannelRsi.over(os.dup(self.theirs.fileno()))


def test_everything_before_the_echo_is_discarded() -> None:
    platform = Platform(noise=b"late answer" + HELLO[:7])
    rsi = platform.connect()
    platform.answers = [{"Version": 65536}, {"Measurement": [1] * 64}, "Ok", {"SealingKey": [2] * 32}]
    assert rsi.version() == 65536
    assert rsi.measurement_read(0) == b"\1" * 64
    rsi.measurement_extend(1, b"abc")
    assert rsi.sealing_key(6, 3) == b"\2" * 32
    assert platform.requests[2:] == [
        {"MeasurementExtend": {"index": 1, "data": [97, 98, 99]}},
        {"SealingKey": {"flags": 6, "svn": 3}},
    ]


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ({"Error": {"errno": errno.EBADF, "message": "no metadata"}}, errno.EBADF),
        ({"Error": {"errno": "EFAULT", "message": ""}}, errno.EFAULT),
        ({"RealmMetadata": [0] * 432}, errno.EPROTO),
        ({"RealmMetadata": [256] * 4096}, errno.EPROTO),
        ({"Other": []}, errno.EPROTO),
        ("Ok", errno.EPROTO),
    ],
)
def test_refusals_and_nonsense_of_the_platform(answer: Any, number: int) -> None:
    platform = Platform()
    rsi = platform.connect()
    platform.answers = [answer]
    with pytest.raises(RsiError) as caught:
        rsi.realm_metadata()
    assert caught.value.errno == number


@pytest.mark.parametrize(("index", "data"), [(0, b"a"), (5, b"a"), (1, b""), (1, b"a" * 65)])
def test_extensions_are_checked_before_they_are_sent(index: int, data: bytes) -> None:
    platform = Platform()
    rsi = platform.connect()
    with pytest.raises(RsiError):
        rsi.measurement_extend(index, data)
    with pytest.raises(RsiError):
        rsi.attestation_token(b"short")
    assert platform.requests == []


def test_the_driver_is_asked_again_with_the_size_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    device = tmp_path / "rsi"
    device.touch()
    token = bytes(range(256)) * 20
    sizes = []

    def ioctl(_descriptor: int, request: int, buffer: bytearray, _mutate: bool) -> int:
        assert request == 0xC05078C2
        challenge, size, pointer = struct.unpack("=64sQQ", buffer)
        sizes.append(size)
        buffer[:] = struct.pack("=64sQQ", challenge, len(token), pointer)
        if size < len(token):
            raise OSError(errno.ERANGE, "too small")
        ctypes.memmove(pointer, token, len(token))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert DeviceRsi(device).attestation_token(bytes(64)) == token
    assert sizes == [4096, len(token)]


def test_a_manager_set_to_the_device_never_opens_the_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChannelRsi, "open", lambda *_: pytest.fail("opened the emulated channel"))
    monkeypatch.setattr("islet_cli.appmanager.rsi.DEVICE", Path("/nonexistent/rsi"))
    with pytest.raises(UnavailableError):
        open_rsi("device")


def test_ports_are_found_by_name_only(tmp_path: Path) -> None:
    for number, name in ((1, "islet.ctl.0"), (2, "islet.rsi.0"), (3, "other")):
        entry = tmp_path / f"vport0p{number}"
        entry.mkdir()
        (entry / "name").write_text(name + "\n")
    assert ports.find_port("islet.rsi.0", sysfs=tmp_path) == Path("/dev/vport0p2")
    with pytest.raises(UnavailableError):
        ports.find_port("islet.none.0", sysfs=tmp_path)
    (tmp_path / "vport0p3" / "name").write_text("islet.rsi.0\n")
    with pytest.raises(UnavailableError, match="more than once"):
        ports.find_port("islet.rsi.0", sysfs=tmp_path)


# -- connecting ---------------------------------------------------------------------------------------------


def test_connecting_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "ctl.sock"
    tries = []

    def open_once() -> control.Stream:
        tries.append(1)
        if len(tries) == 2:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(path))
            listener.listen()
            open_once.listener = listener  # type: ignore[attr-defined]
        return control.opener("unix", path=path)()

    control.connect(open_once).close()
    assert len(tries) == 2
    with pytest.raises(UnavailableError, match="no connection to the host"):
        control.connect(control.opener("unix", path=tmp_path / "none"), limit_s=0.0)


def test_a_port_begins_with_the_preamble(tmp_path: Path) -> None:
    port = tmp_path / "vport"
    port.touch()
    stream = control.PortStream(port)
    stream.send(framing.encode({"Success": []}))
    stream.close()
    assert port.read_bytes() == b"ISLET-REALM-HI\n\0" + framing.encode({"Success": []})
    assert port.stat().st_mode & 0o777 == 0o600


# -- sealing ------------------------------------------------------------------------------------------------


def test_the_metadata_block_of_the_policy_unlocks_the_configured_flags() -> None:
    rsi = FakeRsi(metadata=metadata_page(svn=5))
    material = sealing.obtain(config.parse(document()), rsi)
    assert material.reason is None and not material.bind_image and rsi.asked == [(12, 1)]


@pytest.mark.parametrize(
    ("page", "part"),
    [
        (metadata_page(signer=bytes(96)), "signer"),
        (metadata_page(realm_id="local.islet.test2"), "realm id"),
        (metadata_page(svn=0), "svn 0"),
        (b"", "cannot be read"),
    ],
)
def test_any_other_block_leaves_only_rim_bound_keys(page: bytes, part: str) -> None:
    rsi = FakeRsi(metadata=page or None)
    rsi.metadata = page
    material = sealing.obtain(config.parse(document()), rsi)
    assert material.reason is not None and part in material.reason
    assert material.bind_image and rsi.asked == [(4 | 2, 0)]


def test_a_policy_without_a_signer_leaves_only_rim_bound_keys() -> None:
    rsi = FakeRsi()
    material = sealing.obtain(config.parse(document(policy__metadata=None)), rsi)
    assert material.reason is not None and rsi.asked == [(6, 0)]


def test_keys_are_wiped() -> None:
    key = keys.image_key(b"ikm", "name")
    assert len(key) == 64
    keys.wipe(key)
    assert key == bytes(64)


# -- the rest -----------------------------------------------------------------------------------------------


def test_ipv4_then_global_then_link_local_and_no_loopback() -> None:
    rows = [
        ("lo", True, "127.0.0.1", None, None),
        ("eth0", False, "fe80::1", "ffff:ffff:ffff:ffff::", None),
        ("eth0", False, "10.0.2.15", "255.255.255.0", None),
        ("eth1", False, "fe80::2", None, None),
        ("eth1", False, "2001:db8::1", None, None),
        ("eth2", False, "fe80::3", None, None),
    ]
    chosen = {name: one.address for name, one in network.choose_addresses(rows).items()}
    assert chosen == {"eth0": "10.0.2.15", "eth1": "2001:db8::1", "eth2": "fe80::3"}


def test_the_ring_keeps_the_newest_bytes_and_their_offsets() -> None:
    ring = LogRing(capacity=10)
    ring.append(b"0123456789")
    ring.append(b"abc")
    assert ring.read(0, 100) == (3, b"3456789abc")
    assert ring.read(11, 1) == (11, b"b")
    assert ring.read(99, 5) == (13, b"")


def test_console_lines_are_single_and_printable(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("a\nislet: forged \x1b[31m" + "x" * 1000)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "\x1b" not in out and len(out) < 500


def test_progress_is_at_most_one_line_a_second() -> None:
    lines: list[str] = []
    progress = console.Progress(lines.append)
    for done in range(1000):
        progress.report("one", "fetch", done, 1000)
    assert lines == ["one fetch 0/1000"]


def test_the_clock_is_raised_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    monkeypatch.setattr("time.clock_settime", lambda _clock, value: calls.append(value))
    assert not clock.raise_clock(1000) and calls == []
    assert clock.raise_clock(1 << 40) and calls == [1 << 40]
    path = tmp_path / "time"
    assert clock.read_build_time(path) is None
    path.write_text("1700000000\n")
    assert clock.read_build_time(path) == 1700000000
    path.write_text("soon")
    with pytest.raises(InputError):
        clock.read_build_time(path)


def test_the_kernel_is_locked_down(tmp_path: Path) -> None:
    for name in ("sysrq", "modules_disabled"):
        (tmp_path / name).write_text("0" if name != "sysrq" else "438")
    hardening.lock_down(tmp_path)
    assert (tmp_path / "sysrq").read_text() == "0" and (tmp_path / "modules_disabled").read_text() == "1"
    assert not (tmp_path / "kexec_load_disabled").exists()
