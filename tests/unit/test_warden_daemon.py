"""The warden process: lock, socket, signals, what an earlier one left, garbage from clients; the interactive client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from warden_harness import FAST, FakePlatform, FakeRunner, Harness, random_uuid

from islet_cli.errors import IsletError, UnavailableError
from islet_cli.fsutil import exclusive_lock
from islet_cli.process import start_time
from islet_cli.warden import daemon
from islet_cli.warden.client import WardenClient
from islet_cli.warden.interactive import execute
from islet_cli.warden.options import WardenOptions
from islet_cli.warden.state import RealmState


def options(directory: Path) -> WardenOptions:
    return WardenOptions(directory / "work", directory / "w.sock", directory / "none", timeouts=FAST)


def run_daemon(directory: Path, action: Callable[[], None], runner: FakeRunner | None = None) -> FakePlatform:
    """Run a daemon in this thread; `action` runs in another and then a SIGTERM ends the daemon."""
    failures: list[BaseException] = []
    platform = FakePlatform()

    def act() -> None:
        try:
            action()
        except BaseException as error:
            failures.append(error)
        os.kill(os.getpid(), signal.SIGTERM)

    @contextlib.contextmanager
    def ready() -> Iterator[None]:
        thread = threading.Thread(target=act)
        thread.start()
        yield

    asyncio.run(daemon.run(options(directory), ready, runner=runner or FakeRunner(), platform=platform))
    if failures:
        raise failures[0]
    return platform


def test_socket_is_private_and_removed_at_exit(tmp_path: Path) -> None:
    seen: list[int] = []
    run_daemon(tmp_path, lambda: seen.append((tmp_path / "w.sock").stat().st_mode & 0o777))
    assert seen == [0o600]
    assert not (tmp_path / "w.sock").exists()


def test_sigterm_stops_realms_in_good_order(tmp_path: Path) -> None:
    runner = FakeRunner()

    def action() -> None:
        with WardenClient(tmp_path / "w.sock") as client:
            for name in ("a", "b"):
                client.create_realm_launch(name, Harness.plan(tmp_path))
                client.start(name)

    platform = run_daemon(tmp_path, action, runner)
    assert [vm.exit_status for vm in runner.vms] == [0, 0]
    assert platform.open == 0
    assert runner.manager.names().count("Shutdown") == 2


def test_a_second_warden_is_refused_with_the_holders_pid(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir(mode=0o700)
    with exclusive_lock(tmp_path / "work" / daemon.LOCK_NAME):
        script = (
            "import sys\nfrom pathlib import Path\nfrom islet_cli.warden import daemon\n"
            "from islet_cli.warden.options import WardenOptions\nd = Path(sys.argv[1])\n"
            "daemon.serve(WardenOptions(d / 'work', d / 'w.sock', d / 'x'), lambda: None)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=30, check=False
        )
    assert f"in use by process {os.getpid()}" in done.stderr


def test_only_dead_sockets_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "w.sock"
    path.write_text("precious")
    with pytest.raises(UnavailableError, match="not a socket"):
        run_daemon(tmp_path, lambda: None)
    assert path.read_text() == "precious"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        with pytest.raises(UnavailableError, match="another daemon"):
            run_daemon(tmp_path, lambda: None)
    run_daemon(tmp_path, lambda: None)


def test_a_directory_open_to_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work").chmod(0o777)
    with pytest.raises(IsletError) as raised:
        run_daemon(tmp_path, lambda: None)
    assert raised.value.code == "not-private"


def test_killed_warden_leaves_halted_realms_with_the_cause(tmp_path: Path) -> None:
    with Harness(tmp_path) as first, first.client() as client:
        realm = client.create_realm_launch("r", first.launch())
    child = subprocess.Popen(["sleep", "60"])
    stored = RealmState(desired="Running", vm_pid=child.pid, vm_started=start_time(child.pid))
    (tmp_path / "work" / realm / "state.json").write_bytes(stored.encode())
    with Harness(tmp_path) as second, second.client() as client:
        described = client.describe_realm("r")
        assert described["state"] == "Halted"
        assert "the warden ended" in described["last_error"]
        assert child.wait(5) == -9, "the orphaned VM is ended"
        client.start("r")


def test_one_broken_realm_or_application_stops_nothing(tmp_path: Path) -> None:
    with Harness(tmp_path) as first, first.client() as client:
        good = client.create_realm_launch("good", first.launch())
        bad = client.create_realm_launch("bad", first.launch())
        app = client.create_application(good, "app", registry="r:1", image_mb=1, data_mb=1)
        other = client.create_application(good, "other", registry="r:1", image_mb=1, data_mb=1)
    (tmp_path / "work" / bad / "launch.json").write_text("{")
    (tmp_path / "work" / good / app / "config.yaml").write_text("")
    (tmp_path / "work" / "some directory").mkdir()
    with Harness(tmp_path) as second, second.client() as client:
        described = {realm["uuid"]: realm for realm in client.describe()}
        assert described[bad]["broken"] is True
        assert {realm["uuid"] for realm in client.list()} == {good, bad}
        assert client.inspect(good)["applications"] == [other]
        client.start(good)
        with pytest.raises(IsletError, match="broken"):
            client.start(bad)
        client.stop(good)
        client.destroy(bad)
        from islet_cli.volumes.disk import SharedDisk

        assert len(SharedDisk(tmp_path / "work" / good / "disk.raw").applications()) == 2, "its data is kept"


def test_garbage_is_answered_once_and_disconnected(tmp_path: Path) -> None:
    body = b'{"Error":{"warden_error":"ReadingRequestFail"}}'
    with Harness(tmp_path) as harness:
        for garbage in (b"\0\0\0\3foo", b"\0\0\0\0", b"\xff\xff\xff\xff", b'\0\0\0\x06"Nope"'):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(harness.options.socket))
                client.sendall(garbage)
                received = b""
                while data := client.recv(4096):
                    received += data
            assert received == struct.pack(">I", len(body)) + body
        with harness.client() as client_again:
            assert client_again.list() == []


def test_commands_of_one_connection_are_answered_in_order(tmp_path: Path) -> None:
    with Harness(tmp_path) as harness, harness.client() as client:
        for _ in range(3):
            client._send("ListRealms")
            client._send({"InspectRealm": {"uuid": random_uuid()}})
        names = []
        for _ in range(6):
            try:
                names.append(client._receive()[0])
            except IsletError as error:
                names.append(error.code)
        assert names == ["ListedRealms", "no-such-realm"] * 3


def test_running_command_gets_an_error_when_the_warden_stops(tmp_path: Path) -> None:
    outcome: list[str] = []

    def action() -> None:
        with WardenClient(tmp_path / "w.sock") as client:
            client.create_realm_launch("r", Harness.plan(tmp_path))

        def start() -> None:
            with WardenClient(tmp_path / "w.sock") as client:
                try:
                    client.start("r")
                except IsletError as error:
                    outcome.append(error.message)

        thread = threading.Thread(target=start)
        threads.append(thread)
        thread.start()
        while "ProvisionInfo" not in runner.manager.names():
            pass

    threads: list[threading.Thread] = []
    runner = FakeRunner()
    runner.manager.override["ProvisionInfo"] = lambda manager, content: None
    run_daemon(tmp_path, action, runner)
    threads[0].join(5)
    assert outcome == ["the warden is stopping"]
    assert runner.vms[0].exit_status is not None


def test_no_daemon_and_foreign_socket_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as raised:
        WardenClient(tmp_path / "none.sock")
    assert raised.value.hint == "run: islet warden up"


# -------------------------------------------------------------------------------- interactive client


def test_upstream_lines_work_unchanged(tmp_path: Path) -> None:
    realm, challenge = random_uuid(), "00" * 64
    with Harness(tmp_path) as harness, harness.client() as client:
        line = f"create-realm -z {realm} -k /opt/Image -i /opt/initramfs -v 12344 -o 'quiet panic=-1'"
        assert execute(client, line) == f"realm {realm}"
        made = execute(client, f"create-application -r {realm} -n app -v latest -i registry.local:1337 -o 2 -d 1")
        app = made.removeprefix("application ")
        assert f"application: {app}" in execute(client, f"inspect-realm -r {realm}")
        assert execute(client, f"start-realm -r {realm}") == "ok"
        assert "state: Running" in execute(client, "list-realms")
        assert execute(client, f"stop-application -a {app} -r {realm}") == "ok"
        assert execute(client, f"start-application -a {app} -r {realm}") == "ok"
        assert execute(client, f"fetch-attestation-token -r {realm} -c {challenge}") == "token 010203"
        out = tmp_path / "token"
        execute(client, f"fetch-attestation-token -r {realm} -o {out}")
        assert out.read_bytes() == b"\1\2\3"
        execute(client, f"update-application -a {app} -r {realm} -n app -v v2 -i registry.local:1337 -o 2 -d 1")
        assert "NeedReboot" in execute(client, f"inspect-realm -r {realm}")
        assert execute(client, f"reboot-realm -r {realm}") == "ok"
        assert execute(client, f"stop-realm -r {realm}") == "ok"
        assert execute(client, f"destroy-realm -r {realm}") == "ok"
        assert execute(client, "list-realms") == "no realms"


@pytest.mark.parametrize(
    "line",
    ["nonsense", "start-realm", "start-realm -r 'x", "fetch-attestation-token -r x -c zz", "create-realm -k /k -v x"],
)
def test_wrong_lines_are_refused_before_sending(tmp_path: Path, line: str) -> None:
    with Harness(tmp_path) as harness, harness.client() as client, pytest.raises(IsletError):
        execute(client, line)


def test_piped_client_ends_with_the_outcome(tmp_path: Path) -> None:
    with Harness(tmp_path) as harness:
        command = [sys.executable, "-m", "islet_cli", "warden", "client", "-u", str(harness.options.socket)]
        good = subprocess.run(command, input="list-realms\nhelp\n", capture_output=True, text=True, check=False)
        assert (good.returncode, good.stdout.splitlines()[0]) == (0, "no realms")
        bad = subprocess.run(
            command,
            input=f"start-realm -r {random_uuid()}\nlist-realms\nexit\n",
            capture_output=True,
            text=True,
            check=False,
        )
        assert bad.returncode == 1
        assert "no realm" in bad.stderr
        assert bad.stdout == "no realms\n"
