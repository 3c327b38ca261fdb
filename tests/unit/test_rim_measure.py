"""Measurements of hand-made launches, their errors, and `islet rim compute`."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from islet_cli.cli.main import run
from islet_cli.errors import InputError
from islet_cli.launch.manifest import load_manifest
from islet_cli.launch.plan import lkvm_arguments, plan_of
from islet_cli.rim.measure import measure_arguments, measure_plan

BASE = ["--realm", "-c", "1", "-m", "256", "-k", "kernel", "-i", "initrd"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a kernel without header, an initrd and a manifest."""
    (tmp_path / "kernel").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "initrd").write_bytes(b"initrd" * 1000)
    (tmp_path / "realm.toml").write_text(
        'schema = 1\nname = "a"\nid = "a"\n[image]\nkernel = "kernel"\ninitramfs = "initrd"\n'
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_plan_measures_as_its_command_line(here: Path) -> None:
    plan = plan_of(load_manifest("realm.toml"))
    measurement = measure_plan(plan)
    assert measurement == measure_arguments(lkvm_arguments(plan))
    assert measurement.bootargs == " console=ttyS0 root=/dev/vda rw  quiet loglevel=3 panic=-1"
    assert [region.kind for region in measurement.regions] == ["kernel", "initrd", "dtb"]


def test_open_descriptors_can_be_measured(here: Path) -> None:
    plan = plan_of(load_manifest("realm.toml"))
    sealed = os.memfd_create("kernel")
    try:
        os.write(sealed, (here / "kernel").read_bytes())
        by_descriptor = measure_plan(plan, kernel=Path(f"/proc/self/fd/{sealed}"))
        assert by_descriptor.rim == measure_plan(plan).rim
        os.pwrite(sealed, b"\x01", 100)
        assert measure_plan(plan, kernel=Path(f"/proc/self/fd/{sealed}")).rim != by_descriptor.rim
    finally:
        os.close(sealed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-k", "nope"], "kernel nope: No such file or directory"),
        (["-k", "."], "kernel .: not a regular file"),
        (["-k", "short"], "kernel short: 63 bytes; at least 64 are needed"),
        (["-i", "empty"], "initrd empty: 0 bytes; at least 1 are needed"),
        (["-i", "/dev/null"], "initrd /dev/null: not a regular file"),
        (["-m", "3", "-i", "large"], "the initrd (4194304 bytes) does not fit between the kernel and the device tree"),
        (["-m", "1"], "the device tree does not fit into the realm's memory above the kernel or firmware"),
        (["-k", "absurd"], "the kernel header's image_size is 0xffffffffffffffff; at most 0x10000000000 is supported"),
        (["-c", "2147483647"], "2147483647 vCPUs: their interrupt controller does not fit below the GIC distributor"),
        (["-m", "256@1G"], "RAM base 0x40000000 is below 0x80000000, where the devices are"),
        (["-m", "256@2147483649B"], "RAM base 0x80000001 is not page aligned"),
        (["--mpidrs", "1,2"], "2 MPIDRs for 1 vCPUs"),
        (["--nodefaults", "-p", "x" * 65000], "the device tree needs"),
        (["--9p", "/a"] * 150, "151 virtio devices; at most 150 are supported"),
    ],
)
def test_errors_are_one_line_and_name_the_input(here: Path, arguments: list[str], message: str) -> None:
    (here / "short").write_bytes(bytes(63))
    (here / "empty").touch()
    (here / "large").write_bytes(bytes(4 << 20))
    header = struct.pack("<IIQQ32x4sI", 0, 0, 0, 2**64 - 1, b"ARM\x64", 0)
    (here / "absurd").write_bytes(header)
    with pytest.raises(InputError) as refused:
        measure_arguments([*BASE, *arguments])
    assert message in refused.value.message
    assert "\n" not in refused.value.message and refused.value.exit_code == 2


def test_compute_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rim", "compute", "--json", "--dtb-out", "dtb", "--", "run", *BASE]) == 0
    shown = json.loads(capsys.readouterr().out)
    measurement = measure_arguments(BASE)
    assert shown == measurement.to_json()
    assert list(shown) == ["rim", "hash_algo", "vmm", "profile", "dtb_sha256", "regions"]
    assert set(shown["regions"][0]) == {"kind", "start", "size", "measured"}
    assert (here / "dtb").read_bytes() == measurement.dtb


def test_compute_text_ends_with_the_rim(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rim = measure_arguments(BASE, profile="islet").rim.hex()
    for words in (["run", *BASE], BASE, ["lkvm", "run", *BASE, "--dump-dtb", "dtb"]):
        assert run(["rim", "compute", "--profile", "islet", "--", *words]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"RIM: {rim}"
    assert (here / "dtb").stat().st_size == 65536


def test_compute_of_a_manifest(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(load_manifest("realm.toml"))
    assert run(["rim", "compute", "--realm", "realm.toml"]) == 0
    assert capsys.readouterr().out.endswith(f"\nRIM: {measure_plan(plan).rim.hex()}\n")
    (here / "islet.toml").write_text("schema = 1\n")
    here.chmod(0o700)
    assert run(["rim", "compute", "--profile", "islet"]) == 0
    islet = measure_arguments(lkvm_arguments(plan), profile="islet")
    assert capsys.readouterr().out.endswith(f"\nRIM: {islet.rim.hex()}\n")


@pytest.mark.parametrize(
    "words", [["--realm", "realm.toml", "--", "run"], ["--", "run"], ["--realm", "nope.toml"], ["--profile", "x"]]
)
def test_compute_usage_errors(here: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    (here / "islet.toml").write_text("schema = 1\n")
    assert run(["rim", "compute", *words]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: ")
