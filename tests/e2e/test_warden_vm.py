"""A realm's life through the command line, with a real VM: what the fast tests show with a fake one."""

from __future__ import annotations

import json
import secrets
import subprocess
from pathlib import Path

import pytest

from .conftest import Islet, wait_until

pytestmark = pytest.mark.vm


def verify(islet: Islet, token: Path, challenge: str, code: int = 0) -> None:
    islet(
        "token",
        "verify",
        token,
        "--host-challenge",
        challenge,
        "--cpak",
        f"emulated:{islet.state / 'platform/cpak.bin'}",
        "--reference",
        islet.state / "published/default/reference-pull.json",
        "--allow-emulated",
        code=code,
    )


def state(islet: Islet, realm: str) -> str:
    return str(islet("realm", "inspect", realm, "--json").json()["state"])


def vm_process(islet: Islet, uuid: str) -> int | None:
    stored = json.loads((islet.state / "warden" / uuid / "state.json").read_text())
    return stored["vm"] and stored["vm"]["pid"]


def test_life_of_a_realm_without_applications(services: Islet, tmp_path: Path) -> None:
    islet = services
    uuid = islet("realm", "create", "--from", islet.state / "published/default", "--name", "bare", "--json").json()[
        "uuid"
    ]
    challenge, other = secrets.token_hex(64), secrets.token_hex(64)

    # A halted realm is booted for its token and is halted again; no VM stays.
    islet("realm", "token", "bare", "--challenge", challenge, "-o", tmp_path / "halted")
    assert state(islet, "bare") == "Halted"
    assert vm_process(islet, uuid) is None
    verify(islet, tmp_path / "halted", challenge)
    verify(islet, tmp_path / "halted", other, code=1)

    started = islet("realm", "start", "bare", "--json").json()
    assert started["state"] == "Running"
    assert started["rim"] == (islet.state / "published/default/rim").read_text().strip()
    shown = islet("realm", "inspect", uuid, "--json").json()
    assert shown["network"] == [{"ip": "10.0.2.15", "if_name": "eth0"}]
    assert "islet: connected" in islet("realm", "console", "bare").out
    command = islet("realm", "inspect", "bare", "--command", "--json").json()
    assert command[:2] == ["lkvm", "run"]
    measured = islet("rim", "compute", "--json", "--", *command[1:]).json()
    assert measured["rim"] == started["rim"], "the printed command line is the measured one"

    first = vm_process(islet, uuid)
    islet("realm", "reboot", "bare")
    assert vm_process(islet, uuid) not in (None, first)
    piped = subprocess.run(
        islet.argv("warden", "client"),
        input=f"inspect-realm -r {uuid}\nstop-realm -r {uuid}\nlist-realms\n",
        capture_output=True,
        text=True,
        cwd=islet.root,
        env=islet.environment,
        check=True,
        timeout=120,
    )
    assert "state: Running" in piped.stdout
    assert "state: Halted" in piped.stdout
    islet("realm", "destroy", "bare")
    assert islet("realm", "list", "--json").json() == []


def test_a_stop_cancels_a_start_and_leaves_no_vm(services: Islet) -> None:
    islet = services
    uuid = islet("realm", "create", "--name", "slow", "--json").json()["uuid"]
    starting = islet.spawn("realm", "start", "slow")
    pid = wait_until(lambda: vm_process(islet, uuid), "the VM is there")
    islet("realm", "stop", "slow")
    out, _ = starting.communicate(timeout=60)
    assert starting.returncode == 4
    assert "cancelled" in out
    assert state(islet, "slow") == "Halted"
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the VM has ended", 10)
