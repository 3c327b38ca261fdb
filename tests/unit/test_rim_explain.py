"""Explanations: what they say, and that the trace really is the measurement."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from islet_cli.cli.main import run
from islet_cli.errors import InputError
from islet_cli.rim import devicetree
from islet_cli.rim.explain import explain
from islet_cli.rim.explanation import from_json
from islet_cli.rim.measure import measure_request
from islet_cli.rim.request import REALM_VM, Request, of_command_line, of_manifest
from islet_cli.rim.svg import draw
from rim_files import BASE, PAGE, write


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write(tmp_path)


def second(words: list[str]) -> Request:
    from islet_cli.rim.capabilities import Capabilities, combine

    host = combine(["fvp", "rmm-1.0-eac5"], Capabilities())
    return of_command_line(words, dialect=REALM_VM, host=host, host_name="fvp + rmm-1.0-eac5")


def test_groups_follow_the_measurement(here: Path) -> None:
    explanation = explain(of_command_line(["run", *BASE]))
    assert [(group.kind, group.what, group.steps) for group in explanation.groups] == [
        ("create", "parameters", 1),
        ("data", "kernel", 10),
        ("ripas", "bss", 2),
        ("data", "initrd", 3),
        ("data", "dtb", 16),
        ("rec", "vCPU 0", 1),
        ("rec", "vCPU 1", 1),
    ]
    assert explanation.groups[-1].rim == explanation.rim == measure_request(of_command_line(BASE)).rim.hex()
    assert explanation.steps == 34
    kernel = explanation.groups[1]
    content = (here / "kernel").read_bytes()
    digests = b"".join(hashlib.sha256(content[at : at + PAGE]).digest() for at in range(0, len(content), PAGE))
    assert kernel.digest == hashlib.sha256(digests).hexdigest()
    assert b"".join(kernel.entries) == b"".join(digests[at : at + 8] for at in range(0, len(digests), 32))
    assert explanation.parameters["s2sz"] == 33 and explanation.parameters["num_bps"] == 2
    initrd = explanation.file("initrd")
    assert initrd is not None and initrd.start + initrd.size <= explanation.device_tree.start
    assert f"linux,initrd-start = <0x0 {initrd.start:#x}>" in devicetree.source(explanation.tree)


def descriptor(step: dict[str, Any], rim: bytes) -> bytes:
    """The descriptor of one line of a trace, as the RMM specification has it."""

    def number(text: str) -> bytes:
        return struct.pack("<Q", int(text, 16))

    kind = {"RMI_DATA_CREATE": 0, "RMI_REC_CREATE": 1, "RMI_RTT_INIT_RIPAS": 2}[step["operation"]]
    if kind == 0:
        body = number(step["ipa"]) + struct.pack("<Q", step["flags"]) + bytes.fromhex(step["content"]).ljust(64, b"\0")
    elif kind == 1:
        body = bytes.fromhex(step["content"]).ljust(64, b"\0")
    else:
        body = number(step["base"]) + number(step["top"])
    head = bytes([kind]).ljust(8, b"\0") + struct.pack("<Q", 256) + rim.ljust(64, b"\0")
    return (head + body).ljust(256, b"\0")


@pytest.mark.parametrize("make", [of_command_line, second])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_trace_replays_to_the_rim(here: Path, make: Any, algorithm: str) -> None:
    """Every line of the trace extends the one before it, down to the RIM."""
    request = make(["run", *BASE, f"--measurement-algo={algorithm}"])
    explanation = explain(request, trace=here / "trace")
    steps = [json.loads(line) for line in (here / "trace").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(explanation.steps))
    rim = bytes.fromhex(steps[0]["rim"])
    for step in steps[1:]:
        rim = hashlib.new(algorithm, descriptor(step, rim)).digest()
        assert rim.hex() == step["rim"]
    assert rim.hex() == explanation.rim


def test_a_saved_explanation_is_read_back(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rim", "explain", "--json", "--", "run", *BASE]) == 0
    value = json.loads(capsys.readouterr().out)
    explanation = from_json(value, what="saved")
    assert explanation == explain(of_command_line(["run", *BASE]))
    assert value["device_tree"]["source"].startswith("/dts-v1/;")
    with pytest.raises(InputError, match="no saved explanation"):
        from_json({"kind": "other"}, what="saved")
    with pytest.raises(InputError, match="saved: "):
        from_json(value | {"rim": 5}, what="saved")


def test_influences_are_found_by_leaving_out(here: Path) -> None:
    words = [*BASE, "-c", "3", "--console", "serial", "--realm-pv", "x", "--debug", "--vsock", "3", "-n", "mode=tap"]
    shown = {item.argument: item for item in explain(of_command_line(words)).arguments}
    assert shown["-c 2"].influences == [] and "overridden" not in shown["-c 3"].remark
    assert shown["-c 3"].influences == ["/cpus, number of RECs, size of the interrupt controller"]
    assert shown["--vsock 3"].influences == ["number and transport of virtio devices in the device tree"]
    # The default NIC would be there without it.
    assert shown["-n mode=tap"].influences == []
    assert shown["--realm-pv x"].remark == "the personalization value stands in the token, not in the RIM"
    assert shown["--console serial"].remark == "the default, or overridden by another option"
    assert shown["-k kernel"].influences == ["content and place of the kernel"]


def test_text_names_everything(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rim", "explain", "--", "run", *BASE, "--debug"]) == 0
    text = capsys.readouterr().out
    for expected in (
        "no influence: kvmtool's own messages",
        "INIT_RIPAS",
        "(addresses only)",
        "runnable, PC 0x80000000",
    ):
        assert expected in text
    assert text.splitlines()[-1] == f"RIM: {measure_request(of_command_line(BASE)).rim.hex()}"


def test_a_manifest_is_explained_by_its_command_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rim", "explain", "--realm", "realm.toml"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("realm.toml\n") and "-p 'quiet loglevel=3 panic=-1'" in text
    assert explain(of_manifest(Path("realm.toml"))).rim in text


@pytest.mark.parametrize("make", [of_command_line, second])
def test_the_drawing_is_well_formed(here: Path, make: Any) -> None:
    explanation = explain(make([*BASE, "-p", "<&>"]))
    root = ElementTree.fromstring(draw(explanation))
    texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for what in ("kernel", "initrd", "dtb"):
        assert any(what in text for text in texts)
    bands = [element for element in root.iter("{http://www.w3.org/2000/svg}rect") if element.get("x") == "150"]
    ends = [float(band.get("y", 0)) + float(band.get("height", 0)) for band in bands]
    assert all(abs(float(band.get("y", 0)) - end) < 0.2 for band, end in zip(bands[1:], ends, strict=False))
    assert float(root.get("height", 0)) >= max(ends)


@pytest.mark.skipif(shutil.which("dtc") is None, reason="dtc is not installed")
def test_the_source_compiles_to_the_same_tree(here: Path) -> None:
    """The device-tree compiler reads our source text and writes the same nodes and properties."""
    words = [
        *BASE,
        "--pmu",
        "--flash",
        "kernel",
        "--virtio-transport",
        "mmio",
        "-p",
        'a "quoted" \\ text',
        "--vsock",
        "9",
    ]
    tree = explain(of_command_line(words)).tree
    command = ["dtc", "-q", "-I", "dts", "-O", "dtb"]
    compiled = subprocess.run(command, input=devicetree.source(tree).encode(), capture_output=True, check=True).stdout
    assert devicetree.parse(compiled).nodes == tree.nodes


def test_changes_of_trees_are_named(here: Path) -> None:
    old = explain(of_command_line(BASE)).tree
    new = explain(of_command_line([*BASE, "--irqchip=gicv2m", "--kaslr-seed", "5"])).tree
    changes = {(change.path, change.name): (change.old, change.new) for change in devicetree.changes(old, new)}
    assert changes["/chosen", "kaslr-seed"] == ("<0x0 0x0>", "<0x0 0x5>")
    assert changes["/intc", "compatible"] == ('"arm,gic-v3"', '"arm,cortex-a15-gic"')
    assert changes["/intc/msic", None] == (None, "present")
    assert devicetree.changes(old, old) == []
    padded = devicetree.Tree(old.blob + b"\0", old.reservations, old.nodes)
    assert len(devicetree.changes(old, padded)) == 1


def test_a_trace_that_cannot_be_written_is_an_error(here: Path) -> None:
    with pytest.raises(InputError, match="trace nope/trace: "):
        explain(of_command_line(BASE), trace=Path("nope/trace"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vmm", "xen"], "--vmm xen: unknown"),
        (["--dialect", "x"], "--dialect x: unknown"),
        (["--dtb", "dtb"], "--dtb: the measurer's dialect follows from the command line alone"),
        (["--host", "fvp"], "--host: the measurer's dialect follows from the command line alone"),
        (
            ["--dialect", "realm-measurements", "--host", "nope"],
            "host capabilities nope: no such file, and not built in",
        ),
        (["--dialect", "realm-measurements"], "host capabilities: num_bps, num_wps unknown"),
        (["--dialect", "realm-measurements", "--host", "fvp", "--profile", "islet"], "--profile: belongs to"),
        (["--dialect", "realm-measurements", "--set", "num_bps"], "--set num_bps: not KEY=VALUE"),
        (["--dialect", "realm-measurements", "--set", "colour=1"], "unknown field `colour`"),
    ],
)
def test_options_that_mean_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    (here / "dtb").touch()
    assert run(["rim", "compute", *options, "--", "run", *BASE]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_option_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("compute", "explain"):
        assert run(["rim", command, "--", "run", *BASE, "--colour", "red"]) == 2
        assert capsys.readouterr().err.startswith("error: --colour: unknown option\n")
