"""The launch plan: made from a manifest, carried as JSON, written out as a command line."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest

from islet_cli.errors import InputError
from islet_cli.launch.manifest import Manifest, parse_manifest
from islet_cli.launch.plan import LaunchPlan, lkvm_arguments, plan_of

PLAN = LaunchPlan(
    kernel="/k",
    kernel_sha256="00" * 32,
    initramfs="/i",
    initramfs_sha256=None,
    cmdline="quiet loglevel=3 panic=-1",
    vcpus=2,
    memory_mib=512,
)
JSON_MEMBERS = (
    "schema vmm profile hash_algo kernel kernel_sha256 initramfs initramfs_sha256 cmdline vcpus memory_mib "
    "console irqchip sve_vl pmu pmu_counters disks nics vsock personalization"
)


def manifest(tmp_path: Path, body: str = "") -> Manifest:
    head = 'schema = 1\nname = "web"\nid = "x"\n[image]\nkernel = "k"\ninitramfs = "i"\n'
    return parse_manifest((head + body).encode(), tmp_path / "realm.toml")


def test_a_plan_of_a_manifest_has_absolute_paths_and_digests(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(b"kernel")
    (tmp_path / "i").write_bytes(b"initramfs" * 300_000)
    plan = plan_of(manifest(tmp_path, '[launch]\npersonalization = "a"\n[devices]\nnics = 2\nvsock = false\n'))
    assert plan.kernel == str(tmp_path / "k")
    assert plan.kernel_sha256 == hashlib.sha256(b"kernel").hexdigest()
    assert plan.initramfs_sha256 == hashlib.sha256(b"initramfs" * 300_000).hexdigest()
    assert (plan.disks, plan.nics, plan.vsock) == (1, 2, False)
    assert plan.personalization == "61" + "00" * 63


def test_other_files_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    plan = plan_of(manifest(tmp_path), kernel=Path("other"), initramfs=tmp_path / "other")
    assert plan.kernel == plan.initramfs == str(tmp_path / "other")


def test_a_missing_image_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        plan_of(manifest(tmp_path))
    assert (refused.value.code, refused.value.hint) == ("no-such-file", "run: islet realm build")


def test_per_application_disks_are_those_of_the_policy(tmp_path: Path) -> None:
    (tmp_path / "k").touch()
    (tmp_path / "i").touch()
    body = '[devices]\ndisk_layout = "per-application"\n'
    applications = "".join(f'[[policy.applications]]\nname = "a{number}"\n' for number in range(3))
    assert plan_of(manifest(tmp_path, body)).disks == 0
    assert plan_of(manifest(tmp_path, body + applications)).disks == 3


def test_json_has_the_members_of_the_format_and_comes_back() -> None:
    assert list(PLAN.to_json()) == JSON_MEMBERS.split()
    assert LaunchPlan.from_json(PLAN.to_json()) == PLAN


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"colour": 1}, "colour"),
        ({"schema": 2}, "schema"),
        ({"kernel": "relative"}, "kernel"),
        ({"kernel": "/a\0b"}, "kernel"),
        ({"kernel_sha256": "AB" * 32}, "kernel_sha256"),
        ({"vcpus": "2"}, "vcpus"),
        ({"vcpus": True}, "vcpus"),
        ({"vcpus": 17}, "vcpus"),
        ({"memory_mib": 0}, "memory_mib"),
        ({"cmdline": "a\nb"}, "cmdline"),
        ({"cmdline": "\ud800"}, "launch plan"),
        ({"disks": 5}, "disks"),
        ({"vsock": 1}, "vsock"),
        ({"personalization": ""}, "personalization"),
        ({"vmm": None}, "vmm"),
    ],
)
def test_json_is_read_strictly(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as refused:
        LaunchPlan.from_json(PLAN.to_json() | change)
    assert refused.value.code == "launch"
    assert named in refused.value.message


def test_a_missing_member_is_named() -> None:
    value = PLAN.to_json()
    del value["irqchip"]
    with pytest.raises(InputError, match="irqchip"):
        LaunchPlan.from_json(value)
    with pytest.raises(InputError, match="not an object"):
        LaunchPlan.from_json([])


def test_the_command_line_is_that_of_the_format() -> None:
    expected = (
        "-c 2 -k /k -i /i -p CMDLINE -m 512 -n mode=tap --vsock 3 --console serial --irqchip=gicv3 "
        "--disable-sve --debug --realm --restricted_mem --measurement-algo=sha256 -d /dev/null"
    )
    assert " ".join(lkvm_arguments(PLAN)).replace(PLAN.cmdline, "CMDLINE") == expected
    assert PLAN.cmdline in lkvm_arguments(PLAN)


def test_the_command_line_follows_the_plan() -> None:
    plan = dataclasses.replace(
        PLAN,
        cmdline="",
        nics=0,
        disks=2,
        vsock=False,
        profile="islet",
        hash_algo="sha512",
        sve_vl=256,
        pmu=True,
        pmu_counters=6,
        personalization=b"rpv".hex() + "00" * 61,
    )
    expected = (
        "-c 2 -k /k -i /i -m 512 -n mode=none --console serial --irqchip=gicv3 --sve-vl 256 --pmu "
        "--pmu-counters 6 --debug --realm --restricted_mem --measurement-algo=sha512 --realm-pv rpv --islet "
        "-d a -d b"
    )
    assert lkvm_arguments(plan, disks=["a", "b"]) == expected.split()
    assert "--islet" not in lkvm_arguments(plan, measurer=False)


def test_devices_given_must_be_those_of_the_plan() -> None:
    assert "tapif=t0" in lkvm_arguments(PLAN, nics=["tapif=t0"], vsock_cid=9)
    for wrong in ({"disks": []}, {"nics": ["a", "b"]}, {"vsock_cid": 0}):
        with pytest.raises(InputError):
            lkvm_arguments(PLAN, **wrong)  # type: ignore[arg-type]


def test_a_personalization_that_no_argument_can_carry() -> None:
    with pytest.raises(InputError, match="zero byte"):
        lkvm_arguments(dataclasses.replace(PLAN, personalization="0001" + "00" * 62))
