"""`islet run ./my_app`: what a developer who knows nothing of CCA does, and gets."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from .conftest import Islet, wait_until

pytestmark = pytest.mark.vm

SCRIPT = """#!/bin/busybox sh
echo "hello from $0, arguments: $*, colour: ${COLOUR:-none}"
echo "runs so far: $(/bin/busybox wc -l < /data/runs 2>/dev/null || echo 0)"
/bin/busybox mkdir -p /data && echo run >> /data/runs && /bin/busybox sync /data/runs
exit %d
"""


def make_program(directory: Path, code: int) -> Path:
    """A root file system with busybox and a script that ends with `code`."""
    root = directory / "greeter"
    (root / "bin").mkdir(parents=True, exist_ok=True)
    busybox = root / "bin/busybox"
    if not busybox.exists():
        busybox.write_bytes(Path("/bin/busybox").read_bytes())
        busybox.chmod(0o755)
    script = root / "bin/greeter"
    script.write_text(SCRIPT % code)
    script.chmod(0o755)
    return root


def test_run_returns_the_programs_code_and_keeps_its_data(islet: Islet, tmp_path: Path) -> None:
    program = make_program(tmp_path, 7)
    first = islet(
        "run", program, "--entrypoint", "/bin/greeter", "--env", "COLOUR=green", "--", "one", "two words", code=7
    )
    assert "arguments: one two words, colour: green" in first.out
    assert "runs so far: 0" in first.out

    make_program(tmp_path, 0)
    began = time.monotonic()
    second = islet("run", program, "--entrypoint", "/bin/greeter")
    assert "colour: none" in second.out
    assert "runs so far: 1" in second.out
    assert time.monotonic() - began < 120  # a hang, not a benchmark: bench/ measures it

    listed = islet("ps", "--json").json()
    assert [entry["name"] for entry in listed] == ["greeter"]
    assert listed[0]["state"] == "Halted"
    islet("rm", "greeter")
    assert islet("ps", "--json").json() == []


def test_run_of_a_single_dynamic_binary(islet: Islet, tmp_path: Path) -> None:
    """A dynamically linked program brings its libraries along."""
    program = tmp_path / "whoami"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o755)
    result = islet("run", program, "--", "-u")
    assert result.out.strip().splitlines()[-1] == "0"


def test_detached_run_ps_logs_stop(islet: Islet, tmp_path: Path) -> None:
    root = tmp_path / "ticker"
    (root / "bin").mkdir(parents=True)
    (root / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin/busybox").chmod(0o755)
    script = root / "bin/ticker"
    script.write_text("#!/bin/busybox sh\nwhile :; do echo tick; /bin/busybox sleep 1; done\n")
    script.chmod(0o755)
    islet("run", "-d", root, "--entrypoint", "/bin/ticker")
    listed = islet("ps", "--json").json()
    assert listed[0]["state"] == "Running"
    wait_until(lambda: "tick" in islet("logs", "ticker").out, "the ticker ticks")
    islet("stop", "ticker")
    assert islet("ps", "--json").json()[0]["state"] == "Halted"


def test_a_program_that_is_not_there_and_one_that_cannot_start(islet: Islet, tmp_path: Path) -> None:
    missing = islet("run", tmp_path / "none", code=125)
    assert str(tmp_path / "none") in missing.err
    broken = tmp_path / "broken"
    (broken / "bin").mkdir(parents=True)
    (broken / "bin/text").write_text("not a program")
    (broken / "bin/text").chmod(0o755)
    assert islet("run", broken, "--entrypoint", "/bin/text", code=126).err
    assert islet("run", broken, "--name", "broken2", "--entrypoint", "/bin/none", code=127).err


def test_outside_a_workspace_a_default_one_is_made(environment: dict[str, str], tmp_path: Path) -> None:
    home = tmp_path / "data"
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    islet = Islet(lonely, {**environment, "XDG_DATA_HOME": str(home)})
    islet.environment.pop("ISLET_WORKSPACE", None)
    result = islet("run", tmp_path / "none", code=125)
    assert f"workspace: {home}/islet/default" in result.err or str(tmp_path / "none") in result.err
    assert not list(lonely.iterdir())
