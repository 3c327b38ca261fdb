"""Every case of the RIM vectors: measurement, device tree, and the command lines that must be refused."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import rim_payloads
import vectors

from islet_cli.errors import InputError
from islet_cli.rim.explain import explain
from islet_cli.rim.measure import DTB_AREA_SIZE, Measurement, measure_arguments
from islet_cli.rim.request import of_command_line

CASES: list[dict[str, Any]] = vectors.load("ISLET_VECTORS_RIM")


@pytest.fixture(scope="session")
def payloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the payload files."""
    given = os.environ.get("ISLET_VECTORS_RIM_PAYLOADS")
    if given:
        return Path(given)
    directory = tmp_path_factory.mktemp("rim-payloads")
    rim_payloads.write(directory)
    return directory


def expected_dtb(case: dict[str, Any]) -> bytes | None:
    """The device tree that a case comes with; files of other people's cases need not be there."""
    name = case.get("dtb")
    file = vectors.path("ISLET_VECTORS_RIM").parent / name if name else None
    return file.read_bytes() if file is not None and file.exists() else None


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_vector(case: dict[str, Any], payloads: Path) -> None:
    if case.get("error"):
        with pytest.raises(InputError) as refused:
            measure_arguments(case["args"], cwd=payloads)
        assert refused.value.exit_code == 2
        assert "\n" not in refused.value.message
        return
    measurement = measure_arguments(case["args"], cwd=payloads)
    assert measurement.dtb_totalsize == case["dtb_totalsize"]
    dtb = expected_dtb(case)
    if dtb is not None:
        assert measurement.dtb[: measurement.dtb_totalsize] == dtb
    assert measurement.dtb_sha256 == case["dtb_sha256"]
    assert measurement.rim.hex() == case["rim"]
    assert (measurement.hash_algo, measurement.profile) == (case["hash_algo"], case["profile"])


@pytest.mark.parametrize("case", [case for case in CASES if not case.get("error")], ids=lambda case: case["name"])
def test_every_vector_is_explained(case: dict[str, Any], payloads: Path) -> None:
    """The explanation measures the same, and reads the device tree as it was written."""
    explanation = explain(of_command_line(case["args"], cwd=payloads))
    assert explanation.rim == case["rim"] == explanation.groups[-1].rim
    assert explanation.device_tree.area_sha256 == case["dtb_sha256"]
    assert len(explanation.tree.blob) == case["dtb_totalsize"]
    assert len(explanation.arguments) <= len(case["args"])


@pytest.fixture(scope="session")
def device_trees(payloads: Path) -> dict[bytes, Measurement]:
    """Every different device tree of the vectors."""
    accepted = [measure_arguments(case["args"], cwd=payloads) for case in CASES if not case.get("error")]
    return {measurement.dtb: measurement for measurement in accepted}


@pytest.mark.skipif(shutil.which("dtc") is None, reason="dtc is not installed")
def test_dtc_reads_every_device_tree(device_trees: dict[bytes, Measurement], tmp_path: Path) -> None:
    """The device-tree compiler accepts each tree and finds what was put in."""
    for number, (dtb, measurement) in enumerate(device_trees.items()):
        file = tmp_path / f"{number}.dtb"
        assert len(dtb) == DTB_AREA_SIZE
        file.write_bytes(dtb[: measurement.dtb_totalsize])
        command = ["dtc", "-q", "-I", "dtb", "-O", "dts", str(file)]
        result = subprocess.run(command, capture_output=True, check=False)
        assert result.returncode == 0, result.stderr
        if measurement.bootargs:
            assert f'bootargs = "{measurement.bootargs}";'.encode() in result.stdout
