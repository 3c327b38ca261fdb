"""`islet demo`: every step holds, nothing stays behind, and two of them do not disturb each other."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

from .conftest import RUN_LIMIT_S, Islet

pytestmark = pytest.mark.vm

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
    islet = Islet(tmp_path, environment)
    before = leftovers()
    demos = [islet.spawn("demo", "--json") for _ in range(2)]
    outputs = [demo.communicate(timeout=2 * RUN_LIMIT_S)[0] for demo in demos]
    for demo, output in zip(demos, outputs, strict=True):
        assert demo.returncode == 0, output[-4000:]
        document = json.loads(output[output.index("{") :])
        assert [step["step"] for step in document["steps"]] == list(range(1, 14))
        refusals = {name: fact for name, fact in document["steps"][10].items() if isinstance(fact, dict)}
        assert set(refusals) >= REFUSALS
        assert all(fact["refused"] and fact["reason"] for name, fact in refusals.items() if name in REFUSALS)
    assert leftovers() <= before
