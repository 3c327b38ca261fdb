"""kvmtool's command line: its numbers, its grammar, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from islet_cli.errors import InputError
from islet_cli.rim import numbers
from islet_cli.rim.command_line import machine_of
from islet_cli.rim.machine import Machine
from islet_cli.rim.options import parse

BASE = ["--realm", "-c", "1", "-m", "256", "-k", "kernel", "-i", "initrd"]


def machine(*arguments: str, cwd: Path = Path("/")) -> Machine:
    return machine_of([*BASE, *arguments], cwd=cwd)


def refusal(*arguments: str, cwd: Path = Path("/")) -> InputError:
    with pytest.raises(InputError) as refused:
        machine(*arguments, cwd=cwd)
    assert "\n" not in refused.value.message
    return refused.value


@pytest.mark.parametrize(
    ("text", "unsigned", "signed"),
    [
        ("", 0, 0),
        ("12", 12, 12),
        ("0x1F", 31, 31),
        ("0x", 0, 0),
        ("0xg", 0, 0),
        ("010", 8, 8),
        ("08", 0, 0),
        (" \t+7abc", 7, 7),
        ("-1", 2**64 - 1, -1),
        ("- 1", 0, 0),
        ("18446744073709551616", 2**64 - 1, 2**63 - 1),
        ("-18446744073709551616", 2**64 - 1, -(2**63)),
        ("9" * 100_000, 2**64 - 1, 2**63 - 1),
        ("٣", 0, 0),
    ],
)
def test_numbers_are_read_as_the_c_library_does(text: str, unsigned: int, signed: int) -> None:
    assert numbers.strtoull(text) == unsigned
    assert numbers.strtol(text) == signed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("256", (256 << 20, None)),
        ("1G@4g", (1 << 30, 4 << 30)),
        ("7b@1P", (7, 1 << 50)),
        ("64k@0", (65536, 0)),
        ("17592186044415", (17592186044415 << 20, None)),
    ],
)
def test_memory(text: str, expected: tuple[int, int | None]) -> None:
    assert numbers.memory(text) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "M", "256X", "256MB", "256@", "256@x", "256@1G1", "0x10", "-1", "17592186044416", "9" * 9999, "٣"]
)
def test_bad_memory_sizes(text: str) -> None:
    with pytest.raises(InputError, match=r"-m '"):
        numbers.memory(text)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--frobnicate"], "unknown option"),
        (["-z"], "unknown option"),
        (["--no-frobnicate"], "unknown option"),
        (["--no"], "ambiguous"),
        (["--no-p"], "ambiguous"),
        (["--no-mem"], "cannot be negated"),
        (["--no-rng=1"], "takes no value"),
        (["--no-console=x"], "takes no value"),
        (["--debug=1"], "takes no value"),
        (["--console"], "a value is missing"),
        (["-d"], "a value is missing"),
        (["--"], "does not accept"),
        (["-"], "one argument too many"),
        (["second"], "one argument too many"),
        (["a\0b"], "not an argument"),
        (["\ud800"], "not an argument"),
    ],
)
def test_grammar_refusals(arguments: list[str], problem: str) -> None:
    assert problem in refusal(*arguments).message


def test_every_option_is_found_by_its_name() -> None:
    (only,) = parse(["--restricted_mem"])
    assert only.option is not None and only.option.name == "restricted_mem"
    assert machine("--restricted_mem") == machine()
    assert machine("--no-pvt", "--no-dh") == machine()
    assert machine("--no-no-pvtime") == machine()


def test_negation() -> None:
    assert machine("--rng", "--no-rng") == machine()
    assert machine("--console", "virtio", "--no-cons") == machine()
    assert machine("--kaslr-seed", "7", "--no-kaslr-seed") == machine()
    assert machine("--virtio-transport=mmio", "--no-force-pci") == machine()
    assert machine("--no-kernel", "kernel") == machine()


def test_values_may_begin_with_a_dash_but_not_those_of_n() -> None:
    assert machine("-p", "--x").bootargs == b" console=ttyS0 root=/dev/vda rw  --x"
    assert machine("-n", "-p", "x").virtio == ["pci"]
    assert machine("--kaslr-seed", "-1").kaslr_seed == 2**64 - 1


def test_integers_keep_their_low_bits() -> None:
    assert machine("-c", "0x100000002").cpus == 2
    assert machine("--pmu-counters", str(2**32)).pmu_counters == 0
    assert machine("--sve-vl", str(2**32 + 128)).sve_vl_bits == 128


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["-c", "0"], "not a positive number"),
        (["-c", "-3"], "not a positive number"),
        (["-c", str(2**31)], "not a positive number"),
        (["--no-cpus"], "no vCPU count"),
        (["--no-realm"], "there is no --realm"),
        (["--aarch32"], "64-bit"),
        (["--hugetlbfs", "/huge"], "depend on the host"),
        (["--sandbox", "x"], "depend on the host"),
        (["--vfio-pci", "0000:00:00.0"], "depend on a device"),
        (["--sdl", "--gtk"], "excludes"),
        (["--realm-pv", "ä" * 33], "longer than 64 bytes"),
        (["--loglevel", "loud"], "error, warning, info, debug"),
        (["--vcpu-affinity", "3-1"], "not a list of CPUs"),
        (["--vcpu-affinity", "1,,2"], "not a list of CPUs"),
        (["--vcpu-affinity", "4096"], "not a list of CPUs"),
        (["--9p", "/a," + "ä" * 17], "longer than 32 bytes"),
        (["-n", "mode=user", "-n", "mode=user,mode=tap"], "only one NIC"),
        (["--firmware", "f"], "both"),
        (["--no-kernel"], "neither"),
        (["--no-initrd"], "no root file system"),
        (["--sve-vl", "128", "--disable-sve"], "excludes"),
        (["--metadata", "/nope"], "No such file"),
        (["--flash", "/"], "directory"),
        (["-d", ",ro"], "No such file"),
        (["-d", "dev,ro"], "a directory where a file is needed"),
    ],
)
def test_what_kvmtool_would_refuse(arguments: list[str], problem: str) -> None:
    error = refusal(*arguments)
    assert problem in f"{error.message} {error.hint}"


def test_realm_options_need_a_realm() -> None:
    assert "--sve-vl" in refusal("--no-realm", "--sve-vl", "0").message


def test_network_words() -> None:
    assert machine("-n", "trans=mmio,trans=pci,,guest_mac=x,lonely").virtio == ["pci"]
    assert machine("-n", "trans=mmio,mode=none").virtio == []
    assert machine("-n", "mode=none").virtio == []
    assert machine("-n", "mode=tap2").virtio == ["pci"]
    # The second value of a list is checked before the last one decides.
    assert machine("-n", "mode=user,mode=tap", "-n", "mode=user").virtio == ["pci", "pci"]


def test_devices_stand_in_creation_order(tmp_path: Path) -> None:
    (tmp_path / "disk").touch()
    mixed = machine("-d", "disk", "--console=virtio", "-n", "trans=mmio", "--9p", "/a", cwd=tmp_path)
    assert mixed.virtio == ["pci", "mmio", "pci", "pci"]


def test_a_directory_is_a_root_file_system(tmp_path: Path) -> None:
    (tmp_path / "a,ro").mkdir()
    rooted = machine("-d", "a,ro", cwd=tmp_path)
    assert rooted.bootargs is not None and rooted.bootargs.endswith(b" rootfstype=9p")
    assert rooted.virtio == ["pci", "pci"]


def test_boot_arguments_are_bytes() -> None:
    assert machine("-p", "\udcff").bootargs == b" console=ttyS0 root=/dev/vda rw  \xff"
    cut = machine("-p", "ä" * 2000).bootargs
    assert cut is not None and len(cut) == 2047
    whole = machine("--nodefaults", "-p", "ä" * 2000).bootargs
    assert whole is not None and len(whole) == 4000


def test_profiles() -> None:
    assert machine().profile == "tf-rmm"
    assert machine("--islet").profile == "islet"
    assert machine_of(BASE, cwd=Path("/"), profile="islet").profile == "islet"
    with pytest.raises(InputError, match="--islet"):
        machine_of([*BASE, "--islet"], cwd=Path("/"), profile="tf-rmm")
    with pytest.raises(InputError, match="unknown value"):
        machine_of(BASE, cwd=Path("/"), profile="arm")


def test_dump_dtb_is_only_remembered(tmp_path: Path) -> None:
    assert machine("--dump-dtb", "out", cwd=tmp_path).dump_dtb == tmp_path / "out"
    assert not (tmp_path / "out").exists()
