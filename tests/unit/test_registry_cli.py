"""`islet registry` as a user runs it: in the background, in the foreground, its exit codes."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from registry_support import image, request, write_layout

from islet_cli.developer.workspace import make_workspace

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.delenv("ISLET_WORKSPACE", raising=False)
    make_workspace(tmp_path / "ws", listen="127.0.0.1:0")
    return tmp_path / "ws"


def islet(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "islet_cli", "registry", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def run(workspace: Path) -> Iterator[Run]:
    yield lambda *arguments: islet(*arguments, cwd=workspace)
    islet("down", cwd=workspace)


def test_life_of_the_background_service(run: Run, workspace: Path, tmp_path: Path) -> None:
    assert run("status").returncode == 3
    started = json.loads(run("up", "--json").stdout)
    assert started["running"] and started["tls"] == "ra-tls" and "no protection" in started["warning"]
    assert not started["address"].endswith(":0")
    assert json.loads(run("up", "--json").stdout)["pid"] == started["pid"]
    again = run("serve")
    assert again.returncode == 3 and "runs already" in again.stderr
    assert json.loads(run("status", "--json").stdout) == started
    assert stat.S_IMODE(Path(started["push"]).stat().st_mode) == 0o600
    assert json.loads(run("down", "--json").stdout) == {"stopped": True}
    assert json.loads(run("status", "--json").stdout) == {"running": False}
    left = [path for path in (tmp_path / "run").rglob("*") if not path.is_dir() and path.suffix != ".lock"]
    assert left == [] and list((tmp_path / "run").rglob("registry-*")) == []


def test_contents(run: Run, tmp_path: Path) -> None:
    source = write_layout(tmp_path / "in", {"v1": image(b"x", label="app")})
    assert run("add", str(source)).stdout.startswith("app:v1  sha256:")
    (listed,) = json.loads(run("list", "--json").stdout)
    assert listed["name"] == "app" and set(listed["tags"]) == {"v1"}
    assert run("check").stdout == "app: ok\n"
    (source / "blobs" / "sha256").rename(source / "gone")
    damaged = run("add", str(source), "--name", "app")
    assert damaged.returncode == 1 and "Traceback" not in damaged.stderr
    victim = next((tmp_path / "ws" / ".islet" / "registry" / "app" / "blobs" / "sha256").iterdir())
    victim.unlink()
    checked = run("check", "--json")
    assert checked.returncode == 1 and json.loads(checked.stdout)[0]["error"]["code"] == "blob_missing"
    assert run("gc").returncode == 1
    assert json.loads(run("remove", "app", "--json").stdout)["removed"] == "app"
    assert run("gc").stdout == "0 bytes removed\n"
    assert run("remove", "app").returncode == 2


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_serve_in_the_foreground_ends_well(tmp_path: Path, how: signal.Signals) -> None:
    (tmp_path / "store").mkdir()
    write_layout(tmp_path / "store" / "app", {"v1": image(b"x")})
    command = [sys.executable, "-m", "islet_cli", "registry", "serve", "--root", "store", "--tls", "none"]
    environment = dict(os.environ, TMPDIR=str(tmp_path))
    process = subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0"], cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stderr is not None
        address = next(line.split()[2].rstrip(",") for line in process.stderr if line.startswith("registry at"))
        assert request(address, "GET", "/v2/app/manifests/v1").status == 200
        process.send_signal(how)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.communicate()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_a_busy_port_is_exit_code_3(run: Run, workspace: Path, tmp_path: Path) -> None:
    address = json.loads(run("up", "--json").stdout)["address"]
    result = islet("serve", "--root", str(workspace), "--tls", "none", "--listen", address, cwd=tmp_path)
    assert result.returncode == 3 and "in use" in result.stderr and "--listen" in result.stderr
    (workspace / "islet.toml").write_text((workspace / "islet.toml").read_text().replace("127.0.0.1:0", address))
    run("down")
    # Somebody else takes the port meanwhile: the background start names the mend as well.
    import socket

    host, _, port = address.rpartition(":")
    with socket.create_server((host, int(port))):
        up = run("up")
    assert up.returncode == 3 and "in use" in up.stderr and "islet.toml" in up.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["serve"], "no store"),
        (["serve", "--root", "."], "admit nobody"),
        (["serve", "--root", ".", "--tls", "tls"], "certificate"),
        (["serve", "--root", "absent", "--tls", "none"], "absent"),
        (["serve", "--root", ".", "--tls", "ssl"], "ssl"),
        (["serve", "--root", ".", "--tls", "none", "--push-listen", "127.0.0.1:0"], "--push-htpasswd"),
        (["serve", "--root", ".", "--tls", "none", "--push-tls", "tls"], "--push-listen"),
        (["remove", "x", "--root", "absent"], "no application"),
        (["list", "--root", "absent"], "absent"),
    ],
)
def test_wrong_usage_is_exit_code_2(tmp_path: Path, arguments: list[str], text: str) -> None:
    result = islet(*arguments, cwd=tmp_path)
    assert result.returncode == 2 and text in result.stderr and "Traceback" not in result.stderr


def test_the_log_shows_who_was_refused(run: Run, workspace: Path) -> None:
    import socket

    assert run("log").stdout == "nobody has asked yet\n"
    host, _, port = json.loads(run("up", "--json").stdout)["address"].rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        connection.settimeout(20)
        while connection.recv(100):
            pass
    end = time.monotonic() + 10
    while not (events := json.loads(run("log", "--json").stdout)) and time.monotonic() < end:
        time.sleep(0.05)
    assert events[0]["event"] == "refused" and events[0]["code"] == "tls"
    assert "refused" in run("log", "-n", "1").stdout
