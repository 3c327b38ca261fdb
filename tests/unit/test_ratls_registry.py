"""RA-TLS end to end on loopback: tokens of an emulated platform, the registry's admission, the client's errors."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import vectors
from registry_support import RIM, ZERO_REMS, Platform, Setting, image, make_setting, write_layout, write_reference

from islet_cli import _native
from islet_cli.attestation.certificate import evidence_of
from islet_cli.attestation.challenge import host_challenge, nonce_to_name
from islet_cli.errors import IsletError, OperationError, UnavailableError, VerificationError
from islet_cli.platform import hes
from islet_cli.registry.client import RegistryClient, TlsOptions
from islet_cli.registry.client.http import Backoff
from islet_cli.registry.server import RegistryServer

IMAGE = image(b"layer", label="app")


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    made = make_setting(tmp_path)
    write_layout(made.store / "app", {"v1": IMAGE})
    return made


@pytest.fixture
def server(setting: Setting) -> Iterator[RegistryServer]:
    with setting.serving() as running:
        yield running


def fetch(server: RegistryServer, tls: TlsOptions) -> bytes:
    client = RegistryClient(server.address, tls, backoff=Backoff(tries=1), sleep=lambda _: None)
    with client:
        return client.fetch_manifest("app", "v1").manifest


def refusal(server: RegistryServer, setting: Setting, tls: TlsOptions, count: int = 1) -> str:
    """Require that the handshake is refused and explained; return the code that the registry noted."""
    with pytest.raises(VerificationError) as caught:
        fetch(server, tls)
    assert caught.value.code == "ratls_refused"
    assert "islet registry log" in (caught.value.hint or "")
    code: str = setting.events(count)[-1]["code"]
    return code


def test_an_attested_realm_is_served(server: RegistryServer, setting: Setting) -> None:
    assert fetch(server, setting.tls()) == IMAGE.manifest
    (event,) = setting.events()
    assert event["event"] == "admitted"
    assert event["realm"]["rim"] == RIM.hex() and event["realm"]["reference"] == "testrealm"
    assert event["realm"]["emulated"] is True and "no protection" in event["realm"]["warning"]


def test_the_info_says_that_emulated_evidence_counts(server: RegistryServer) -> None:
    assert server.info()["allow_emulated"] is True and "no protection" in server.info()["warning"]


def test_every_connection_has_its_own_challenge(server: RegistryServer, setting: Setting) -> None:
    for _ in range(3):
        fetch(server, setting.tls())
    assert len(set(setting.platform.challenges)) == 3


def test_a_token_of_an_earlier_connection_is_refused(server: RegistryServer, setting: Setting) -> None:
    old: list[bytes] = []

    def replay(challenge: bytes) -> bytes:
        if not old:
            old.append(setting.platform.token(challenge))
        return old[0]

    options = setting.tls(replay)
    fetch(server, options)
    assert refusal(server, setting, options, 2) == "challenge"


def test_an_answer_to_the_host_is_no_evidence(server: RegistryServer, setting: Setting) -> None:
    """The host passes the hash of its own TLS key as a challenge; the realm answers only hashed challenges."""
    stolen = setting.tls(lambda challenge: setting.platform.token(host_challenge(challenge)))
    assert refusal(server, setting, stolen) == "challenge"


def test_another_realm_is_refused(server: RegistryServer, setting: Setting) -> None:
    other = replace(setting.platform, rim=bytes(32))
    assert refusal(server, setting, setting.tls(other.token)) == "rim"
    assert bytes(32).hex() in setting.events()[0]["reason"]


def test_a_realm_that_extended_a_rem_is_refused(server: RegistryServer, setting: Setting) -> None:
    running = (b"\1" * 32, *ZERO_REMS[1:])
    write_reference(setting.directory / "reference-running.json", rems=(running,), kind="running")
    extended = replace(setting.platform, rems=running)  # type: ignore[arg-type]
    assert refusal(server, setting, setting.tls(extended.token)) == "rems"


def test_another_platform_is_refused(server: RegistryServer, setting: Setting, tmp_path: Path) -> None:
    foreign = Platform(hes.create_identity(tmp_path / "foreign"))
    assert refusal(server, setting, setting.tls(foreign.token)) in ("signature", "cpak-unknown")


def test_emulated_evidence_needs_the_permission(setting: Setting) -> None:
    with setting.serving(allow_emulated=False) as server:
        assert refusal(server, setting, setting.tls()) == "emulated"


def test_a_realm_published_later_is_admitted_at_once(server: RegistryServer, setting: Setting) -> None:
    reference = setting.directory / "reference-pull.json"
    content = reference.read_bytes()
    reference.unlink()
    assert refusal(server, setting, setting.tls()) == "no-reference"
    reference.write_bytes(content)
    assert fetch(server, setting.tls()) == IMAGE.manifest


def test_without_the_platform_key_nobody_enters(server: RegistryServer, setting: Setting) -> None:
    (setting.directory / "platform" / "cpak.bin").unlink()
    assert refusal(server, setting, setting.tls()) == "no-cpak"


@pytest.mark.parametrize("token", [b"", b"nonsense", b"\xd9\x01\x8f\xa0", bytes(30 << 10)])
def test_malformed_tokens_are_refused(server: RegistryServer, setting: Setting, token: bytes) -> None:
    assert refusal(server, setting, setting.tls(lambda _: token)) in ("cbor", "format", "tag", "certificate")


def test_a_client_without_evidence_is_told_what_is_missing(server: RegistryServer, setting: Setting) -> None:
    with pytest.raises(VerificationError) as caught:
        fetch(server, TlsOptions("tls", setting.directory / "ca.crt"))
    assert "attested realms only" in (caught.value.hint or "")
    assert setting.events()[0]["code"] == "no-certificate"


def test_the_providers_own_error_surfaces(server: RegistryServer, setting: Setting) -> None:
    def broken(_challenge: bytes) -> bytes:
        raise OperationError("the RSI channel answered ENXIO", code="rsi")

    with pytest.raises(OperationError, match="ENXIO") as caught:
        fetch(server, setting.tls(broken))
    assert caught.value.code == "rsi"


def test_text_of_a_hostile_client_cannot_control_a_terminal(server: RegistryServer, setting: Setting) -> None:
    """Words that come from the evidence are shown in the log, without what a terminal would obey."""

    class Loud(Platform):
        def token(self, challenge: bytes) -> bytes:
            token = super().token(challenge)
            return token.replace(b"sha-256", b"\x1b[2J\xc3\x9c")

    assert refusal(server, setting, setting.tls(Loud(setting.platform.hes).token))
    raw = setting.access_log.read_text()
    assert "\\u001b" not in raw and "\x1b" not in raw


def test_a_server_that_does_not_ask_for_evidence_is_no_ratls_server(setting: Setting) -> None:
    with setting.serving("tls") as server:
        with pytest.raises(VerificationError) as caught:
            fetch(server, setting.tls())
        assert caught.value.code == "ratls_not_requested"
        assert setting.platform.challenges == []
        assert fetch(server, TlsOptions("tls", setting.directory / "ca.crt")) == IMAGE.manifest


def test_a_certificate_under_another_root_is_refused(server: RegistryServer, setting: Setting, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = make_setting(tmp_path / "other")
    with pytest.raises(VerificationError) as caught:
        fetch(server, other.tls())
    assert caught.value.code == "server_certificate" and server.address in caught.value.message
    # The evidence was made for the challenge, which comes first, but it was not sent.
    assert setting.events()[0]["code"] == "client-alert"


def test_real_names_as_certificate_authorities_get_no_evidence(setting: Setting) -> None:
    """An ordinary TLS server that asks for certificates names real authorities: that is no challenge."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(setting.directory / "server.crt", setting.directory / "server.key")
    context.load_verify_locations(setting.directory / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        plain, _ = listener.accept()
        with plain, pytest.raises(ssl.SSLError):
            context.wrap_socket(plain, server_side=True)

    thread = threading.Thread(target=serve)
    thread.start()
    client = RegistryClient(f"127.0.0.1:{listener.getsockname()[1]}", setting.tls())
    with pytest.raises(VerificationError) as caught:
        client.fetch_manifest("app", "v1")
    thread.join()
    listener.close()
    assert caught.value.code == "ratls_challenge"
    assert setting.platform.challenges == []


def test_plain_http_at_a_tls_port_and_the_other_way_round(server: RegistryServer, setting: Setting) -> None:
    with pytest.raises(UnavailableError) as unreachable:
        fetch(server, TlsOptions())
    assert unreachable.value.code == "registry_unreachable"
    with setting.serving("none") as plain, pytest.raises(IsletError) as refused:
        fetch(plain, setting.tls())
    assert refused.value.code == "tls_protocol"


def test_handshakes_are_appraised_side_by_side(setting: Setting, tmp_path: Path) -> None:
    """More appraisals than threads wait for one another: none of them may hold up the rest."""
    together = threading.Barrier(6, timeout=20)

    def appraise(_token: bytes, _nonce: bytes, _spki: bytes) -> str:
        together.wait()
        return "{}"

    server = _native.ratls.Server(
        "127.0.0.1:0",
        "ra-tls",
        backend=tmp_path / "absent.sock",
        store=setting.store,
        record=lambda *_: None,
        certificate=(setting.directory / "server.crt").read_bytes(),
        key=(setting.directory / "server.key").read_bytes(),
        appraise=appraise,
    )
    answers: list[bytes] = []

    def ask() -> None:
        client = _native.ratls.Client((setting.directory / "ca.crt").read_bytes(), lambda challenge: challenge)
        host, _, port = server.address.rpartition(":")
        stream = client.connect(host, int(port), 5.0, 20.0)
        stream.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answers.append(stream.recv(12))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.stop()
    # There is no backend: that is said, too.
    assert answers == [b"HTTP/1.1 502"] * 6


def test_a_signal_ends_a_blocked_handshake(setting: Setting) -> None:
    class StopError(Exception):
        pass

    def stop(_signal: int, _frame: object) -> None:
        raise StopError

    client = _native.ratls.Client((setting.directory / "ca.crt").read_bytes(), setting.platform.token)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(StopError):
                client.connect("127.0.0.1", silent.getsockname()[1], 5.0, 30.0)
            with pytest.raises(TimeoutError):
                client.connect("127.0.0.1", silent.getsockname()[1], 5.0, 0.3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_exporter_is_there(server: RegistryServer, setting: Setting) -> None:
    client = _native.ratls.Client((setting.directory / "ca.crt").read_bytes(), setting.platform.token)
    host, _, port = server.address.rpartition(":")
    stream = client.connect(host, int(port), 5.0, 5.0)
    assert len(stream.export_keying_material(b"islet", None, 32)) == 32
    stream.close()
    with pytest.raises(OSError, match="closed"):
        stream.recv(1)


def certificates() -> list[dict[str, str]]:
    cases = vectors.load("ISLET_VECTORS_ATTESTATION")["cases"]
    return [case["input"] for case in cases if case["kind"] == "ratls_cert_verify"]


@pytest.mark.parametrize("case", certificates())
def test_both_readers_of_certificates_agree(case: dict[str, str]) -> None:
    """The one that decides in the handshake, and the one behind `islet token`."""

    def outcome(reader: object) -> object:
        try:
            return reader(bytes.fromhex(case["cert_der"]))  # type: ignore[operator]
        except IsletError as error:
            return error.code

    assert outcome(_native.ratls.certificate_evidence) == outcome(evidence_of)


def test_the_nonce_travels_as_in_the_specification() -> None:
    nonce = bytes(range(64))
    assert _native.ratls.nonce_name(nonce) == nonce_to_name(nonce)
    assert json.dumps(nonce_to_name(nonce).decode()).startswith('"AAECAwQF')
