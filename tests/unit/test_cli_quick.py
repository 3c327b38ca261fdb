"""The short way of `islet rim compute` says what the long way says."""

from __future__ import annotations

from pathlib import Path

import pytest

from islet_cli.cli import quick
from islet_cli.cli.main import run


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(bytes(range(256)) * 64)
    return ["run", "-c", "2", "-m", "256", "--irqchip=gicv3", "--realm", "--nodefaults", "-k", str(kernel)]


@pytest.mark.parametrize("options", [[], ["--json"], ["--threads", "1"], ["--json", "--threads", "3"]])
@pytest.mark.parametrize("prefix", [[], ["lkvm"]])
def test_both_ways_agree(
    options: list[str], prefix: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["rim", "compute", *options, "--", *prefix, *words]
    assert quick.answer(arguments)
    short = capsys.readouterr()
    assert run(arguments) == 0
    assert capsys.readouterr() == short


@pytest.mark.parametrize(
    "arguments",
    [
        ["rim", "explain", "--", "run"],
        ["rim", "compute"],
        ["rim", "compute", "--", "qemu-system-aarch64"],
        ["rim", "compute", "--profile", "islet", "--", "run"],
        ["rim", "compute", "--threads", "0", "--", "run"],
        ["rim", "compute", "--threads", "--", "run"],
        ["rim", "compute", "--", "run", "--nonsense"],
        ["rim", "compute", "--", "run", "-c", "1", "--realm", "-k", "/no/such/file", "--nodefaults"],
    ],
)
def test_everything_else_takes_the_long_way(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert not quick.answer(arguments)
    assert capsys.readouterr() == ("", "")


def test_a_device_tree_to_write_takes_the_long_way(words: list[str], tmp_path: Path) -> None:
    assert not quick.answer(["rim", "compute", "--", *words, "--dump-dtb", str(tmp_path / "dtb")])
    assert not (tmp_path / "dtb").exists()


def test_threads_do_not_change_the_rim(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    seen = set()
    for threads in ("1", "2", "7"):
        assert run(["rim", "compute", "--threads", threads, "--", *words]) == 0
        seen.add(capsys.readouterr().out)
    assert len(seen) == 1
    assert run(["rim", "compute", "--threads", "0", "--", *words]) == 2
