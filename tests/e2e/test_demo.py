"""`islet demo`: every step holds, nothing stays behind, and two of them do not disturb each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from .conftest import RUN_LIMIT_S

pytestmark = pytest.mark.vm

REPOSITORY = Path(__file__).resolve().parents[2]
REFUSALS = {
    "unsigned_image",
    "image_under_another_root",
    "flipped_layer_at_the_registry",
    "flipped_layer_in_the_realm",
    "changed_initramfs",
    "metadata_for_another_rim",
    "metadata_of_another_signer",
    "host_challenge_of_a_foreign_tls_key",
}


def leftovers() -> set[str]:
    return {entry.name for entry in Path(tempfile.gettempdir()).glob(f"islet-demo-{os.geteuid()}-*")}


def test_two_demos_side_by_side(environment: dict[str, str], tmp_path: Path) -> None:
    """One as `make demo` runs it, for people; one with `--json`, for programs."""
    before = leftovers()
    commands = [["make", "--silent", "demo"], [sys.executable, "-m", "islet_cli", "demo", "--json"]]
    demos = [
        subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=(tmp_path / f"stderr-{command[0].rpartition('/')[2]}").open("w"),
            text=True,
        )
        for command, directory in zip(commands, (REPOSITORY, tmp_path), strict=True)
    ]
    told, data = (demo.communicate(timeout=2 * RUN_LIMIT_S)[0] for demo in demos)
    said = "".join(file.read_text()[-3000:] for file in tmp_path.glob("stderr-*"))
    assert [demo.returncode for demo in demos] == [0, 0], told[-3000:] + said
    assert "All 13 steps hold" in told
    document = json.loads(data)
    assert [step["step"] for step in document["steps"]] == list(range(1, 14))
    refusals = {name: fact for name, fact in document["steps"][10].items() if isinstance(fact, dict)}
    assert set(refusals) >= REFUSALS
    assert all(refusals[name]["refused"] and refusals[name]["reason"] for name in REFUSALS)
    assert leftovers() <= before
