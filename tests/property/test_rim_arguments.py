"""Whatever stands on the command line, the answer is a measurement or an `IsletError`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from islet_cli.errors import InputError, IsletError
from islet_cli.launch.manifest import parse_manifest
from islet_cli.launch.plan import LaunchPlan, lkvm_arguments
from islet_cli.rim import numbers
from islet_cli.rim.measure import measure_arguments, measure_plan
from islet_cli.rim.options import OPTIONS

NAMES = [option.name for option in OPTIONS]
SHORT = [option.short for option in OPTIONS if option.short]
VALUES = [
    *["1", "0", "-1", "256", "4G", "64M@4G", "0x10", "99999999999999999999", "", "-", "gicv3", "mmio", "sha512"],
    *["virtio", "kernel", "initrd", "missing", ".", "mode=none", "trans=mmio,mode=user", "scsi:x", "root=/dev/x"],
]


@st.composite
def words(draw: st.DrawFn) -> str:
    """One word that looks like an argument, complete or not."""
    name = draw(st.sampled_from(NAMES))
    name = name[: draw(st.integers(1, len(name)))] if draw(st.booleans()) else name
    value = draw(st.sampled_from(VALUES) | st.text(max_size=20))
    form = draw(st.sampled_from(["--{n}", "--{n}={v}", "--no-{n}", "-{s}{v}", "-{s}", "{v}"]))
    return form.replace("{n}", name).replace("{s}", draw(st.sampled_from(SHORT))).replace("{v}", value)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("arguments")
    (directory / "kernel").write_bytes(bytes(100))
    (directory / "initrd").write_bytes(bytes(100))
    return directory


@settings(max_examples=400, deadline=None)
@given(st.lists(words(), max_size=8), st.booleans())
@example(["-m", "15E"], True)
@example(["-k", "a\nb"], True)
@example(["-d", "a\nb"], True)
@example(["--a\nb"], True)
@example(["a\nb"], True)
@example(["-m17592186044415M"], True)
@example(["-c2147483647"], True)
def test_only_islet_errors(here: Path, arguments: list[str], usable: bool) -> None:
    base = ["--realm", "-c", "1", "-k", "kernel", "-i", "initrd"] if usable else []
    try:
        measurement = measure_arguments([*base, *arguments], cwd=here)
    except IsletError as error:
        assert error.exit_code == 2
        assert "\n" not in error.message
    else:
        assert len(measurement.rim) in (32, 64)
    assert sorted(path.name for path in here.iterdir()) == ["initrd", "kernel"]


@given(st.text(max_size=30), st.sampled_from([0, 10, 16]))
def test_numbers_stay_in_range(text: str, base: int) -> None:
    assert 0 <= numbers.strtoull(text, base) < 2**64
    assert -(2**63) <= numbers.strtol(text, base) < 2**63


@given(st.integers(-(2**63), 2**63 - 1), st.sampled_from(["{:d}", "{:#x}", "{:#o}"]))
def test_numbers_round_trip(value: int, form: str) -> None:
    text = form.format(value).replace("0o", "0")
    assert numbers.strtol(text) == value
    assert numbers.strtoull(text) == value % 2**64


PLANS = st.builds(
    LaunchPlan,
    profile=st.sampled_from(["tf-rmm", "islet"]),
    hash_algo=st.sampled_from(["sha256", "sha512"]),
    kernel=st.just("/kernel"),
    kernel_sha256=st.none(),
    initramfs=st.just("/initrd"),
    initramfs_sha256=st.none(),
    cmdline=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80),
    vcpus=st.integers(1, 16),
    memory_mib=st.integers(16, 4096),
    console=st.sampled_from(["serial", "virtio"]),
    irqchip=st.sampled_from(["gicv2", "gicv2m", "gicv3", "gicv3-its"]),
    sve_vl=st.integers(0, 16).map(lambda step: step * 128),
    pmu=st.booleans(),
    pmu_counters=st.integers(0, 31),
    disks=st.integers(0, 4),
    nics=st.integers(0, 8),
    vsock=st.booleans(),
    personalization=st.binary(min_size=64, max_size=64).map(bytes.hex),
)


@settings(max_examples=80, deadline=None)
@given(PLANS)
def test_a_plan_measures_as_its_command_line(here: Path, plan: LaunchPlan) -> None:
    kernel, initramfs = here / "kernel", here / "initrd"
    measurement = measure_plan(plan, kernel=kernel, initramfs=initramfs)
    text = plan.to_json() | {"kernel": str(kernel), "initramfs": str(initramfs), "personalization": "61" + "00" * 63}
    on_disk = LaunchPlan.from_json(json.loads(json.dumps(text)))
    assert measurement == measure_arguments(lkvm_arguments(on_disk))
    assert (measurement.profile, measurement.hash_algo) == (plan.profile, plan.hash_algo)
    assert measurement.bootargs.endswith(plan.cmdline)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(PLANS, st.dictionaries(st.sampled_from(list(LaunchPlan.__dataclass_fields__)), JSON, max_size=4), JSON)
def test_a_plan_from_json_is_valid_or_refused(plan: LaunchPlan, changes: dict[str, Any], other: Any) -> None:
    for value in (plan.to_json() | changes, other):
        try:
            read = LaunchPlan.from_json(value)
        except InputError as error:
            assert error.code == "launch"
        else:
            assert read.to_json() == value


SNIPPETS = st.sampled_from(
    [
        "schema = 1\n",
        'name = "a"\n',
        'id = "a"\n',
        "[launch]\n",
        "vcpus = 3\n",
        "[policy]\n",
        'sealing_flags = ["Rim"]\n',
        "[[policy.applications]]\n",
        "svn = 18446744073709551616\n",
    ]
)


@given(st.lists(SNIPPETS | st.text(max_size=20), max_size=12).map("".join).map(str.encode) | st.binary(max_size=60))
def test_a_manifest_is_read_or_refused(data: bytes) -> None:
    try:
        manifest = parse_manifest(data, Path("/realm.toml"))
    except InputError as error:
        assert error.code == "bad-config"
    else:
        assert manifest.schema == 1
