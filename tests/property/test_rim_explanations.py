"""Explanations and comparisons for any launch; readers for any bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rim_reference import read_tree

from islet_cli import _native
from islet_cli.errors import InputError, IsletError
from islet_cli.launch.manifest import load_manifest
from islet_cli.launch.plan import lkvm_arguments, plan_of
from islet_cli.rim import boot_files, devicetree
from islet_cli.rim.diff import Side, compare
from islet_cli.rim.explain import explain
from islet_cli.rim.explanation import from_json
from islet_cli.rim.measure import measure_arguments, measure_request
from islet_cli.rim.request import REALM_VM, of_command_line, of_manifest
from rim_files import BASE, cpio, pe_kernel, write


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("explanations"))


def toml(value: object) -> str:
    return json.dumps(value)


LAUNCHES = st.fixed_dictionaries(
    {},
    optional={
        "profile": st.sampled_from(["tf-rmm", "islet"]),
        "hash_algo": st.sampled_from(["sha256", "sha512"]),
        "vcpus": st.integers(1, 16),
        "memory_mib": st.integers(16, 4096),
        "cmdline": st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60),
        "console": st.sampled_from(["serial", "virtio"]),
        "irqchip": st.sampled_from(["gicv2", "gicv2m", "gicv3", "gicv3-its"]),
        "sve_vl": st.integers(0, 16).map(lambda step: step * 128),
        "pmu": st.booleans(),
        "pmu_counters": st.integers(0, 31),
        "personalization": st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=64),
    },
)
DEVICES = st.fixed_dictionaries({}, optional={"nics": st.integers(0, 8), "vsock": st.booleans()})


@settings(max_examples=60)
@given(launch=LAUNCHES, devices=DEVICES, applications=st.integers(0, 50))
def test_a_manifest_measures_as_its_command_line(
    here: Path, launch: dict[str, Any], devices: dict[str, Any], applications: int
) -> None:
    """The one source: `rim compute --realm M` equals `rim compute -- run $(lkvm args of M)`."""
    sections = {"image": {"kernel": "kernel", "initramfs": "initrd"}, "launch": launch, "devices": devices}
    text = 'schema = 1\nname = "a"\nid = "a"\n'
    for name, values in sections.items():
        text += f"[{name}]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in values.items())
    text += "".join(f'[[policy.applications]]\nname = "app{number}"\n' for number in range(applications))
    file = here / "any.toml"
    file.write_text(text)
    measured = measure_request(of_manifest(file))
    assert measured.rim == measure_arguments(lkvm_arguments(plan_of(load_manifest(file)))).rim
    assert measured.warnings == ()


OPTIONS = st.lists(
    st.sampled_from(
        [
            *(["-c", "3"], ["-m", "512"], ["-m", "96"], ["-p", "x y"], ["--console", "virtio"], ["--irqchip=gicv2m"]),
            *(["--pmu"], ["--pmu-counters", "4"], ["--sve-vl", "256"], ["--islet"], ["--measurement-algo=sha512"]),
            *(["--kaslr-seed", "9"], ["-n", "trans=mmio"], ["-d", "kernel"], ["--vsock", "3"], ["--rng"], ["--debug"]),
            *(["-k", "kernel2"], ["-i", "initrd2"], ["--nodefaults"], ["--virtio-transport", "mmio"]),
        ]
    ),
    max_size=4,
).map(lambda parts: [word for part in parts for word in part])


@settings(max_examples=60)
@given(OPTIONS, OPTIONS)
def test_different_rims_have_causes_and_a_first_step(here: Path, old: list[str], new: list[str]) -> None:
    """Two launches: the comparison names causes exactly when the RIMs differ, live or saved."""
    (here / "kernel2").write_bytes(pe_kernel(50000))
    (here / "initrd2").write_bytes(cpio({"init": b"other"}))
    sides = [explain(of_command_line([*BASE, *words], cwd=here)) for words in (old, new)]
    live = compare(*map(Side, sides))
    saved = compare(*(Side(from_json(json.loads(json.dumps(side.to_json())), what="x"), live=False) for side in sides))
    coarse = compare(Side(sides[0].coarse(256), live=False), Side(sides[1]))
    for comparison in (live, saved, coarse):
        assert comparison.equal == (sides[0].rim == sides[1].rim)
        assert bool(comparison.causes) == (not comparison.equal) == (comparison.first is not None)
    if live.first is not None and saved.first is not None:
        assert live.first.number == saved.first.number
    assert sides[0].rim == measure_arguments([*BASE, *old], cwd=here).rim.hex()


@settings(max_examples=60)
@given(OPTIONS)
def test_both_readers_see_the_same_tree(here: Path, words: list[str]) -> None:
    """The reader of reports agrees with the independent one of the tests."""
    (here / "kernel2").write_bytes(pe_kernel(50000))
    (here / "initrd2").write_bytes(cpio({"init": b"other"}))
    area = measure_arguments([*BASE, *words], cwd=here).dtb
    tree = devicetree.parse(area)
    seen = [(node.depth, node.name, {item.name: item.data for item in node.properties}) for node in tree.nodes]
    expected = []
    waiting = [(0, read_tree(area))]
    while waiting:
        depth, node = waiting.pop()
        expected.append((depth, node.name, node.properties))
        waiting += [(depth + 1, child) for child in reversed(node.children)]
    assert seen == expected


@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_a_tree_or_refused(data: bytes, magic: bool) -> None:
    try:
        devicetree.source(devicetree.parse((b"\xd0\x0d\xfe\xed" if magic else b"") + data))
    except InputError as error:
        assert error.code == "device-tree"


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2300), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_tree_is_read_or_refused(here: Path, damage: list[tuple[int, int]]) -> None:
    area = bytearray(measure_arguments(BASE, cwd=here).dtb)
    for at, byte in damage:
        area[at] = byte
    try:
        tree = devicetree.parse(bytes(area))
    except InputError as error:
        assert error.code == "device-tree"
    else:
        assert devicetree.changes(tree, tree) == [] and devicetree.source(tree)


@settings(max_examples=150)
@given(st.binary(max_size=300), st.integers(0, 400), st.sampled_from([b"", b"MZ", b"070701", b"\x1f\x8b"]))
def test_any_file_has_a_place_or_none(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int, head: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "any-file"
    file.write_bytes(head + data)
    for place in (boot_files.place_in_kernel(file, at), boot_files.place_in_initramfs(file, at)):
        assert place is None or "\n" not in place
    try:
        boot_files.open_kernel(file)
    except InputError as error:
        assert error.code in ("not-an-image", "layout")


@settings(max_examples=100)
@given(st.binary(max_size=64), st.integers(0, 64))
def test_any_kernel_header_is_measured_or_refused(here: Path, head: bytes, at: int) -> None:
    """Headers with any sizes: a measurement or an error, never a fault."""
    image = bytearray(pe_kernel(8192))
    image[at : at + len(head)] = head
    image[0x13:0x18] = bytes(5)  # at most 16 MiB: what a report costs is not what this is about
    (here / "any-kernel").write_bytes(image)
    try:
        explain(of_command_line([*BASE, "-k", "any-kernel"], cwd=here))
    except IsletError as error:
        assert error.exit_code == 2 and "\n" not in error.message


WORDS = st.sampled_from(
    [
        *("-m", "-smp", "-cpu", "-M", "-object", "-device", "-kernel", "-initrd", "-append", "--memory", "--platform"),
        *("512", "size=1G", "host", "host,sve=off", "virt", "virt,its=off", "rme-guest,id=a", "kernel", "initrd"),
        *(
            "virtio-net-pci",
            "boot=2",
            "--cpus",
            "--kernel",
            "--initramfs",
            "measurement_algo=sha256",
            "=",
            "-",
            "--",
            "",
        ),
    ]
)


@settings(max_examples=150)
@given(st.lists(WORDS | st.text(max_size=8), max_size=8), st.sampled_from(["kvmtool", "qemu", "cloud-hypervisor"]))
def test_any_arguments_of_any_vmm(here: Path, words: list[str], vmm: str) -> None:
    from islet_cli.rim.capabilities import BUILT_IN

    (here / "dtb").write_bytes(_native.rim.build_device_tree(_machine(here), None))
    try:
        request = of_command_line(
            words, vmm=vmm, dialect=REALM_VM, host=BUILT_IN["fvp"], host_name="fvp", cwd=here, dtb=here / "dtb"
        )
        measure_request(request)
    except IsletError as error:
        assert error.exit_code == 2 and "\n" not in error.message


def _machine(here: Path) -> Any:
    from islet_cli.rim.command_line import machine_of

    return machine_of(BASE, cwd=here)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=80)
@given(change=st.dictionaries(st.sampled_from(["rim", "groups", "files", "device_tree", "parameters", "x"]), JSON))
def test_any_saved_explanation_is_read_or_refused(here: Path, change: dict[str, Any]) -> None:
    value = explain(of_command_line(BASE, cwd=here)).to_json()
    try:
        side = from_json(value | change, what="saved")
        compare(Side(side, live=False), Side(explain(of_command_line([*BASE, "-c", "4"], cwd=here))))
    except InputError as error:
        assert error.code in ("explanation", "device-tree")
