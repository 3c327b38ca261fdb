"""The manager's loop over a Unix socket: one answer each, in order, whatever comes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from islet_cli import framing
from islet_cli.appmanager.control import Channel, SocketStream
from islet_cli.appmanager.manager import Manager, Services
from islet_cli.appmanager.messages import InterfaceAddress
from islet_cli.appmanager.tokens import Attester
from islet_cli.attestation.challenge import HOST_TOKEN_MARKER, host_challenge
from islet_cli.errors import OperationError, UnavailableError
from realm_doubles import FakePower, Realm, info, uuid_of

ONE = uuid_of("one")
PROVISION = {"ProvisionInfo": [info("one").__dict__]}


class Host:
    """The warden's end, and the manager behind it."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.realm = Realm(root, **changes)
        self.realm.publish("one")
        self.power = FakePower()
        self.connections = 0
        self.socket: socket.socket
        self._ready = threading.Semaphore(0)
        self._gone = False
        policy = self.realm.config.policy
        attester = Attester(self.realm.rsi, raw_host_challenges=policy.raw_token_challenge)
        self.attester = attester
        self.services = Services(
            connect=self._connect,
            provisioner=self.realm.provisioner,
            attester=attester,
            addresses=lambda: {"eth0": InterfaceAddress("10.0.2.15", "255.255.255.0")},
            power=self.power,
            forward_output=policy.forward_output,
            say=self.realm.lines.append,
        )
        self.manager = Manager(self.services)
        self.thread = threading.Thread(target=self.manager.run)
        self.thread.start()
        self.wait_for_connection()

    def _connect(self) -> Channel:
        if self._gone:
            raise UnavailableError("no connection to the host", code="no-host")
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(10)
        self.connections += 1
        self._ready.release()
        return Channel(SocketStream(theirs))

    def wait_for_connection(self) -> None:
        assert self._ready.acquire(timeout=10)

    def send(self, value: Any) -> None:
        self.socket.sendall(framing.encode(value))

    def receive(self) -> Any:
        return framing.read_frame(self.socket.recv)

    def ask(self, value: Any) -> Any:
        self.send(value)
        return self.receive()

    def end(self) -> None:
        self._gone = True
        self.socket.close()
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    hosts: list[Host] = []

    def make(**changes: Any) -> Host:
        hosts.append(Host(tmp_path, **changes))
        return hosts[-1]

    yield make
    for host in hosts:
        host.end()


@pytest.fixture
def host(make_host: Callable[..., Host]) -> Host:
    return make_host()


def error_of(answer: Any) -> tuple[str, Any]:
    ((kind, text),) = answer["Error"].items()
    return kind, text


def test_provisioning_starts_and_status_tells(host: Host) -> None:
    assert host.ask({"CheckStatus": ONE}) == {"Error": {"ApplicationNotFound": []}}
    assert host.ask(PROVISION) == {"Success": []}
    assert host.ask({"CheckStatus": ONE}) == {"ApplicationIsRunning": []}
    assert error_of(host.ask(PROVISION)) == ("ProvisioningError", "already provisioned")
    assert error_of(host.ask({"StartApp": ONE}))[0] == "ApplicationLaunchFailed"
    assert host.ask({"StopApp": ONE}) == {"Success": []}
    assert host.ask({"CheckStatus": ONE}) == {"ApplicationNotStarted": []}
    assert error_of(host.ask({"StopApp": ONE}))[0] == "ApplicationStopFailed"
    assert error_of(host.ask({"KillApp": ONE}))[0] == "ApplicationKillFailed"
    assert host.ask({"StartApp": ONE.upper()}) == {"Success": []}
    assert host.ask({"KillApp": ONE}) == {"Success": []}


def test_an_exit_is_told_once_with_its_raw_status(host: Host) -> None:
    host.ask(PROVISION)
    host.realm.containers.started[0][1].finish(256)
    assert host.ask({"CheckStatus": ONE}) == {"ApplicationExited": 256}
    assert host.ask({"CheckStatus": ONE}) == {"ApplicationNotStarted": []}


def test_stopping_what_ended_unseen_is_good(host: Host) -> None:
    host.ask(PROVISION)
    host.realm.containers.started[0][1].finish(0)
    assert host.ask({"StopApp": ONE}) == {"Success": []}
    assert host.ask({"CheckStatus": ONE}) == {"ApplicationNotStarted": []}


def test_a_refusal_begins_with_its_code(host: Host) -> None:
    refused = {"ProvisionInfo": [dict(info("one").__dict__, image_registry="http://10.0.2.100")]}
    kind, text = error_of(host.ask(refused))
    assert kind == "ProvisioningError" and text.startswith("registry-scheme: ")
    assert any("registry-scheme" in line for line in host.realm.lines)
    assert host.ask(PROVISION) == {"Success": []}


def test_addresses(host: Host) -> None:
    expected = {"eth0": {"address": "10.0.2.15", "netmask": "255.255.255.0", "destination": None}}
    assert host.ask({"GetIfAddrs": []}) == {"IfAddrs": expected}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b'"Reboot"',
        b'{"Reboot":null}',
        b'{"Nope":1}',
        b'{"StartApp":["x"]}',
        b"[]",
        b'{"a":1,"a":2}',
    ],
)
def test_an_unreadable_body_is_answered_and_the_connection_goes_on(host: Host, body: bytes) -> None:
    host.socket.sendall(framing.PREFIX.pack(len(body)) + body)
    assert error_of(host.receive())[0] == "InvalidRequest"
    assert "IfAddrs" in host.ask({"GetIfAddrs": []})
    assert host.connections == 1


def test_a_prefix_out_of_range_is_answered_once_and_then_a_new_connection_comes(host: Host) -> None:
    old = host.socket
    old.sendall(b"\xff\xff\xff\xff" + b"x" * 100)
    assert error_of(framing.read_frame(old.recv))[0] == "InvalidRequest"
    with contextlib.suppress(ConnectionResetError):
        assert old.recv(1) == b""
    host.wait_for_connection()
    assert "IfAddrs" in host.ask({"GetIfAddrs": []})


def test_applications_survive_a_broken_connection(host: Host) -> None:
    host.ask(PROVISION)
    host.socket.close()
    host.wait_for_connection()
    assert host.ask({"CheckStatus": ONE}) == {"ApplicationIsRunning": []}


def test_when_the_host_is_gone_everything_is_undone(make_host: Callable[..., Host]) -> None:
    host = make_host()
    host.ask(PROVISION)
    host.end()
    assert host.realm.storage.open == []


def test_requests_in_one_segment_are_answered_in_order(host: Host) -> None:
    parts = [{"GetIfAddrs": []}, {"CheckStatus": ONE}, PROVISION, {"CheckStatus": ONE}]
    host.socket.sendall(b"".join(framing.encode(part) for part in parts))
    answers = [host.receive() for _ in parts]
    assert "IfAddrs" in answers[0] and "Error" in answers[1]
    assert answers[2:] == [{"Success": []}, {"ApplicationIsRunning": []}]


@pytest.mark.parametrize(("request_name", "action"), [("Shutdown", "poweroff"), ("Reboot", "restart")])
def test_power_actions_stop_everything_and_are_not_answered(host: Host, request_name: str, action: str) -> None:
    host.ask(PROVISION)
    host.send({request_name: []})
    answer = host.ask({"CheckStatus": ONE})
    assert answer == {"Error": {"ApplicationNotFound": []}}
    assert host.power.actions == [action] and host.realm.storage.open == []


def test_a_failed_power_action_is_answered(host: Host) -> None:
    host.power.error = OSError(1, "not permitted")
    assert error_of(host.ask({"Shutdown": []}))[0] == "SystemPowerActionFailed"


def test_shutdown_cuts_a_download_short(host: Host) -> None:
    started, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        assert go_on.wait(10)

    host.realm.source.before_layers = hold
    host.send(PROVISION)
    assert started.wait(10)
    host.send({"Shutdown": []})
    time.sleep(0.1)
    go_on.set()
    kind, text = error_of(host.receive())
    assert kind == "ProvisioningError" and text.startswith("cancelled")


def test_reformatting_is_good_for_one_provisioning(host: Host) -> None:
    assert host.ask({"AllowReformat": ONE}) == {"Success": []}
    host.realm.storage.disk(uuid_of("one/data")).key = b"another"
    kept = host.realm.source.images["one"]
    host.realm.source.images["one"] = OperationError("bad", code="http_status", status=404)
    assert error_of(host.ask(PROVISION))[1].startswith("http_status")
    host.realm.source.images["one"] = kept
    assert error_of(host.ask(PROVISION))[1].startswith("data-at-risk")
    host.ask({"AllowReformat": ONE})
    assert host.ask(PROVISION) == {"Success": []}


def test_output_is_read_from_the_ring(host: Host) -> None:
    host.ask(PROVISION)
    host.realm.containers.started[0][1].output(b"hello\n")
    answer = host.ask({"ReadLog": {"id": ONE, "offset": 0, "limit": 3}})
    assert answer == {"LogData": {"offset": 0, "next": 3, "data": list(b"hel")}}
    answer = host.ask({"ReadLog": {"id": ONE, "offset": 3, "limit": 100}})
    assert bytes(answer["LogData"]["data"]) == b"lo\n"


def test_output_stays_in_the_realm_unless_the_policy_forwards_it(make_host: Callable[..., Host]) -> None:
    host = make_host(policy__forward_output=False)
    host.ask(PROVISION)
    assert error_of(host.ask({"ReadLog": {"id": ONE, "offset": 0, "limit": 3}}))[0] == "InvalidRequest"


def test_a_host_challenge_never_reaches_the_monitor_raw(host: Host) -> None:
    challenge = bytes(range(64))
    answer = host.ask({"GetAttestationToken": list(challenge)})
    assert bytes(answer["AttestationToken"]) == b"token" + host_challenge(challenge)
    assert host.realm.rsi.challenges == [host_challenge(challenge)]
    assert error_of(host.ask({"GetAttestationToken": [1, 2, 3]})) == (
        "AttestationTokenReadingError",
        "challenge must be 64 bytes, got 3",
    )


def test_a_raw_challenge_marks_rem3_and_ends_ra_tls(make_host: Callable[..., Host]) -> None:
    host = make_host(policy__token_challenge="raw")
    assert host.attester.for_registry(bytes(64)) == b"token" + bytes(64)
    challenge = bytes(range(64))
    answer = host.ask({"GetAttestationToken": list(challenge)})
    assert bytes(answer["AttestationToken"]) == b"token" + challenge
    assert host.realm.rsi.extended == [(4, HOST_TOKEN_MARKER)]
    with pytest.raises(Exception, match="ended"):
        host.attester.for_registry(bytes(64))
    host.ask({"GetAttestationToken": list(challenge)})
    assert len(host.realm.rsi.extended) == 1


def test_an_unexpected_fault_is_one_answer(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(host.realm.provisioner, "provision", broken)
    assert error_of(host.ask(PROVISION)) == ("ProvisioningError", "internal: RuntimeError")
    assert "IfAddrs" in host.ask({"GetIfAddrs": []})


def test_a_stubborn_application_is_killed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.realm.containers.stubborn = True
    host.ask(PROVISION)
    application = host.manager._applications[ONE]
    monkeypatch.setattr(application.supervisor, "_grace_s", 0.05)
    assert host.ask({"StopApp": ONE}) == {"Success": []}
    assert host.realm.containers.started[0][1].signals == [15, 9]
