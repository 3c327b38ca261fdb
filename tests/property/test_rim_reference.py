"""The native measurement against a slow Python one, and its device trees read back."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rim_reference import PAGE, ReferenceLaunch, read_tree, reference_rim

from islet_cli.errors import InputError
from islet_cli.rim.measure import measure_arguments

RAM = 0x8000_0000
DTB = 0x8FE0_0000


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rim")


def image(size: int, text_offset: int, image_size: int) -> bytes:
    """A small arm64 Image whose bytes differ from page to page."""
    header = struct.pack("<IIQQ32x4sI", 0x91005A4D, 0, text_offset, image_size, b"ARM\x64", 0)
    return (header + b"".join(struct.pack("<I", number) for number in range(size // 4 + 1)))[:size]


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(64, 5 * PAGE),
    text_offset=st.integers(0, 3 * PAGE),
    image_size=st.integers(1, 9 * PAGE),
    initrd=st.binary(min_size=1, max_size=64).map(lambda seed: seed * 200),
    vcpus=st.integers(1, 16),
    algorithm=st.sampled_from(["sha256", "sha512"]),
    islet=st.booleans(),
)
def test_the_measurement_is_that_of_the_reference(
    here: Path,
    size: int,
    text_offset: int,
    image_size: int,
    initrd: bytes,
    vcpus: int,
    algorithm: str,
    islet: bool,
) -> None:
    kernel = image(size, text_offset, image_size)
    (here / "kernel").write_bytes(kernel)
    (here / "initrd").write_bytes(initrd)
    arguments = ["--realm", "-c", str(vcpus), "-m", "300", "-k", "kernel", "-i", "initrd"]
    arguments += [f"--measurement-algo={algorithm}"] + (["--islet"] if islet else [])
    measurement = measure_arguments(arguments, cwd=here)
    reference = ReferenceLaunch(
        algorithm=algorithm,
        debug_points=0 if islet else 2,
        entry=RAM + text_offset,
        kernel=kernel,
        memory_size=image_size,
        initrd_at=(DTB - len(initrd) - 4 + 3) // 4 * 4,
        initrd=initrd,
        dtb_at=DTB,
        dtb=measurement.dtb,
        vcpus=vcpus,
    )
    assert measurement.rim == reference_rim(reference)
    assert sum(region.size for region in measurement.regions) % PAGE == 0
    chosen = read_tree(measurement.dtb).child("chosen")
    assert chosen.numbers("linux,initrd-start") == [reference.initrd_at]
    assert chosen.numbers("linux,initrd-end") == [reference.initrd_at + len(initrd)]


@settings(max_examples=80, deadline=None)
@given(
    vcpus=st.integers(1, 20),
    mib=st.integers(16, 8192),
    irqchip=st.sampled_from(["gicv2", "gicv2m", "gicv3", "gicv3-its"]),
    transports=st.lists(st.sampled_from(["pci", "mmio"]), max_size=40),
    params=st.none() | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60),
    pmu=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    mpidrs=st.none() | st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=16),
)
def test_the_device_tree_reads_back(
    here: Path,
    vcpus: int,
    mib: int,
    irqchip: str,
    transports: list[str],
    params: str | None,
    pmu: bool,
    seed: int,
    mpidrs: list[int] | None,
) -> None:
    (here / "kernel").write_bytes(image(64, 0, 64))
    vcpus = vcpus if mpidrs is None else len(mpidrs)
    arguments = ["--realm", "--nodefaults", "-c", str(vcpus), "-m", str(mib), "-k", "kernel", "--irqchip", irqchip]
    arguments += ["--kaslr-seed", str(seed)] + (["--pmu"] if pmu else [])
    arguments += [] if params is None else [f"--params={params}"]
    arguments += [] if mpidrs is None else ["--mpidrs", ",".join(f"{mpidr:x}" for mpidr in mpidrs)]
    for transport in transports or ["none"]:
        arguments += ["-n", f"trans={transport}" if transports else "mode=none"]
    root = read_tree(measure_arguments(arguments, cwd=here).dtb)

    expected = ["chosen", "memory", "cpus", "intc", "timer"] + (["pmu"] if pmu else [])
    assert [child.name for child in root.children][: len(expected)] == expected
    assert [child.name for child in root.children][-3:] == ["pci", "psci", "aliases"]
    assert root.child("memory").numbers("reg") == [RAM, mib << 20]
    chosen = root.child("chosen")
    assert chosen.numbers("kaslr-seed") == [seed]
    assert chosen.properties.get("bootargs") == (None if params is None else params.encode() + b"\0")
    cpus = root.child("cpus").children
    affinities = [mpidr & 0xFF00FFFFFF for mpidr in (mpidrs or range(min(vcpus, 16)))]
    assert [cpu.name for cpu in cpus] == [f"cpu@{affinity:x}" for affinity in affinities]
    assert all(("enable-method" in cpu.properties) == (len(cpus) > 1) for cpu in cpus)

    pci = root.child("pci").cells("interrupt-map")
    lines = [4 + index for index, transport in enumerate(transports) if transport == "pci"]
    assert [pci[start + 8] for start in range(0, len(pci), 10)] == lines
    assert [pci[start] for start in range(0, len(pci), 10)] == [(slot & 31) << 11 for slot in range(len(lines))]
    mmio = [child for child in root.children if child.name.startswith("virtio@")]
    lines = [4 + index for index, transport in enumerate(transports) if transport == "mmio"]
    assert [node.cells("interrupts") for node in mmio] == [[0, line, 1] for line in lines]
    assert ("msi-parent" in root.child("pci").properties) == (irqchip in ("gicv2m", "gicv3-its"))


def test_a_shared_page_holds_both_files(here: Path) -> None:
    """The page where the kernel ends and the initrd begins is measured with the kernel alone, then with both."""
    initrd = b"i" * 5000
    start = DTB - 5004 + 3 - (DTB - 5004 + 3) % 4
    kernel_end = start - 10
    (here / "initrd").write_bytes(initrd)
    arguments = ["--realm", "-c", "1", "-m", "256", "-k", "kernel", "-i", "initrd"]
    rims = set()
    for last in (b"k", b"l"):
        (here / "kernel").write_bytes(image(64, kernel_end - 65 - RAM, 65) + last)
        rims.add(measure_arguments(arguments, cwd=here).rim)
    assert len(rims) == 2
    (here / "kernel").write_bytes(image(64, kernel_end - 65 - RAM, 65) + b"k" * 12)
    with pytest.raises(InputError, match="initrd"):
        measure_arguments(arguments, cwd=here)
