"""Why two RIMs differ: one byte, one option, a saved side, a lock, the search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from islet_cli import _native
from islet_cli.cli.main import run
from islet_cli.errors import InputError
from islet_cli.rim.command_line import machine_of
from islet_cli.rim.diff import Cause, Comparison, Side, compare
from islet_cli.rim.explain import explain
from islet_cli.rim.measure import measure_arguments, measure_machine
from islet_cli.rim.request import of_command_line
from islet_cli.rim.search import search
from rim_files import BASE, MANIFEST, cpio, noise, pe_kernel, write

LINE = "lkvm run " + " ".join(BASE)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write(tmp_path)


def flipped(source: Path, target: Path, offset: int) -> None:
    data = bytearray(source.read_bytes())
    data[offset] ^= 0xFF
    target.write_bytes(data)


def compared(old: list[str], new: list[str]) -> Comparison:
    return compare(*(Side(explain(of_command_line(words))) for words in (old, new)))


def causes(comparison: Comparison, kind: str) -> list[Cause]:
    return [cause for cause in comparison.causes if cause.kind == kind]


def test_one_byte_of_the_kernel(here: Path) -> None:
    flipped(here / "kernel", here / "other", 25000)
    comparison = compared(BASE, ["other" if word == "kernel" else word for word in BASE])
    assert comparison.first is not None
    assert comparison.first.number == 7
    assert comparison.first.old == "RMI_DATA_CREATE of kernel, granule 6 at 0x80006000"
    (cause,) = comparison.causes
    assert cause.where == "kernel kernel / other, byte 0x61a8"
    assert cause.old != cause.new
    expected = "1 of 10 granules differs: granule 6 (file offset 0x6000, IPA 0x80006000); in section .data"
    assert cause.detail == expected


def test_one_byte_of_the_initrd_names_the_member(here: Path) -> None:
    (here / "other").write_bytes(cpio({"init": noise("init", 9000), "etc/passwd": b"root\n" * 99 + b"user\n"}))
    comparison = compared(BASE, ["other" if word == "initrd" else word for word in BASE])
    (cause,) = comparison.causes
    assert cause.detail.endswith("; in file etc/passwd")
    assert cause.where.startswith("initrd initrd / other, byte 0x")


def test_another_size_moves_the_initrd(here: Path) -> None:
    (here / "other").write_bytes((here / "initrd").read_bytes() + bytes(5000))
    comparison = compared(BASE, ["other" if word == "initrd" else word for word in BASE])
    where = [cause.where for cause in comparison.causes]
    assert "initrd size" in where and "initrd address" in where
    assert "/chosen linux,initrd-start" in where
    assert comparison.first is not None and "initrd" in str(comparison.first.old)


@pytest.mark.parametrize(
    ("option", "kind", "where", "step"),
    [
        (["-c", "4"], "device-tree", "/cpus/cpu@2", 16),
        (["-p", "hello"], "device-tree", "/chosen bootargs", 16),
        (["--sve-vl", "256"], "parameter", "sve_vl (quadwords - 1)", 0),
        (["--pmu-counters", "3"], "parameter", "pmu_num_ctrs", 0),
        (["--measurement-algo=sha512"], "algorithm", "hash algorithm", 0),
        (["--islet"], "dialect", "profile", 0),
        (["-m", "128"], "layout", "dtb address", 13),
        (["-n", "mode=none"], "device-tree", "/pci interrupt-map-mask", 16),
    ],
)
def test_one_option(here: Path, option: list[str], kind: str, where: str, step: int) -> None:
    comparison = compared(BASE, [*BASE, *option])
    assert where in [cause.where for cause in causes(comparison, kind)]
    assert comparison.first is not None and comparison.first.number == step
    # The same contents are no cause.
    assert not causes(comparison, "content")
    assert option[0].split("=")[0] in {cause.where for cause in causes(comparison, "argument")}


def test_equal_launches_have_no_causes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = " ".join(["run", *BASE, "--debug", "-d", "initrd", "-n", "mode=none"])
    other = " ".join(["run", *BASE, "--rng", "-n", "mode=none"])
    assert run(["rim", "diff", same, other]) == 0
    assert capsys.readouterr().out.startswith("equal\nRIM: ")


def test_different_files_without_a_common_algorithm(here: Path) -> None:
    flipped(here / "kernel", here / "other", 5000)
    new = ["other" if word == "kernel" else word for word in BASE]
    comparison = compared(BASE, [*new, "--measurement-algo=sha512"])
    (cause,) = causes(comparison, "content")
    assert cause.where.endswith("byte 0x1388") and cause.detail == "in section .text"


def test_a_saved_side(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rim", "explain", "--json", "--", "run", *BASE]) == 0
    (here / "saved.json").write_text(capsys.readouterr().out)
    flipped(here / "kernel", here / "kernel", 10000)
    (here / "words").write_text("# what we launch\nlkvm run " + " ".join(BASE) + " --kaslr-seed 7\n")
    assert run(["rim", "diff", "--json", "saved.json", "words"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["first"]["number"] == 3
    kinds = [(cause["kind"], cause["where"]) for cause in shown["causes"]]
    assert ("content", "kernel kernel") in kinds and ("device-tree", "/chosen kaslr-seed") in kinds
    text = next(cause["detail"] for cause in shown["causes"] if cause["kind"] == "content")
    assert text.startswith("1 of 10 granules differs: granule 2 (file offset 0x2000, IPA 0x80002000)")


def test_manifests_and_rims(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "other.toml").write_text(MANIFEST + "[launch]\nvcpus = 3\n")
    assert run(["rim", "diff", "realm.toml", "other.toml"]) == 1
    text = capsys.readouterr().out
    assert "-c 2 -> -c 3" in text and "measured vCPUs: 2 -> 3" in text
    rim = explain(of_command_line(BASE)).rim
    assert run(["rim", "diff", LINE, rim.upper()]) == 0
    assert run(["rim", "diff", str(here), rim]) == 1
    assert "try --search" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nope", "realm.toml"], "error: nope: no such file\n"),
        (["bad.json", "realm.toml"], "error: bad.json: "),
        (["binary", "realm.toml"], "error: binary: neither a manifest, an explanation nor a command line\n"),
        (["run 'x", "realm.toml"], "error: run 'x: No closing quotation\n"),
        (["realm.toml", "realm.toml", "--search"], "error: --search: needs a RIM on one side"),
    ],
)
def test_what_cannot_be_compared(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (here / "bad.json").write_text("{")
    (here / "binary").write_bytes(b"\xff\xfe")
    assert run(["rim", "diff", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "profile", "found"),
    [
        ([], None, ()),
        (["-c", "5"], None, ("-c 5",)),
        (["--measurement-algo=sha512"], None, ("--measurement-algo=sha512",)),
        (["--irqchip=gicv3-its", "-m", "1024"], None, ("-m 1024", "--irqchip=gicv3-its")),
        (["-p", '"quiet"'], None, ("-p in literal double quotes",)),
        (["-p", "quiet", "--console", "virtio"], "islet", ("profile islet", "--console virtio")),
        (["--pmu", "--sve-vl", "512"], None, ("--sve-vl 512", "--pmu")),
        (["-m", "128"], None, ("-m 128",)),
    ],
)
def test_the_search_finds(here: Path, options: list[str], profile: str | None, found: tuple[str, ...]) -> None:
    given = [*BASE, "-p", "quiet"] if "-p" in options else BASE
    rim = measure_arguments([*BASE, *options], profile=profile).rim.hex()
    result = search(of_command_line(given), rim)
    assert found in result.found


def test_the_search_says_when_nothing_is_found(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rim", "diff", "--search", "--changes", "1", LINE, "00" * 32]) == 1
    assert capsys.readouterr().out.startswith("nothing gives this RIM (")


def test_the_search_knows_one_dialect(here: Path) -> None:
    with pytest.raises(InputError, match="--search"):
        search(of_command_line(BASE, dialect="realm-measurements"), "00" * 32)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["-c", "16"],
        ["-m", "64"],
        ["--sve-vl", "128", "--islet"],
        # Alignment within granules, shared granules and other files go the long way.
        ["-k", "unaligned"],
        ["-k", "low"],
    ],
)
def test_variants_are_measured_as_launches_are(here: Path, options: list[str]) -> None:
    (here / "unaligned").write_bytes(pe_kernel()[:8] + (0x1234).to_bytes(8, "little") + pe_kernel()[16:])
    (here / "low").write_bytes(pe_kernel()[:8] + (0xFDF8000 - 0x5000).to_bytes(8, "little") + pe_kernel()[16:])
    probe = _native.rim.Probe(machine_of(BASE, cwd=Path()))
    variant = machine_of([*BASE, *options], cwd=Path())
    assert probe.rim(variant) == measure_machine(variant).rim
    refused = machine_of([*BASE, "-m", "1"], cwd=Path())
    assert probe.rim(refused) is None
