"""The realm manifest: its defaults, its paths, and everything that it refuses."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from islet_cli.errors import InputError
from islet_cli.launch.manifest import Manifest, load_manifest, parse_manifest

HEAD = 'schema = 1\nname = "web"\nid = "local.islet.web"\nsvn = 3\n'
PATH = Path("/work space/realm.toml")
KEY = "ab" * 32


def parse(body: str = "", head: str = HEAD) -> Manifest:
    return parse_manifest((head + body).encode(), PATH)


def refusal(body: str = "", head: str = HEAD) -> InputError:
    with pytest.raises(InputError) as refused:
        parse(body, head)
    assert refused.value.code == "bad-config"
    assert refused.value.message.startswith(f"{PATH}: ")
    assert "\n" not in refused.value.message
    return refused.value


def test_defaults() -> None:
    manifest = parse()
    launch, policy, devices = manifest.launch, manifest.policy, manifest.devices
    assert (manifest.version, manifest.svn, manifest.path) == ("1.0.0", 3, PATH)
    assert (launch.vmm, launch.profile, launch.hash_algo) == ("kvmtool", "tf-rmm", "sha256")
    assert (launch.vcpus, launch.memory_mib, launch.cmdline) == (2, 512, "quiet loglevel=3 panic=-1")
    assert (launch.console, launch.irqchip, launch.sve_vl, launch.pmu, launch.pmu_counters) == (
        "serial",
        "gicv3",
        0,
        False,
        0,
    )
    assert launch.metadata is True
    assert manifest.personalization == bytes(64)
    assert (policy.sealing_svn, policy.min_svn, policy.sealing_flags) == (1, 1, ["RealmId"])
    assert (policy.offline, policy.forward_output, policy.token_challenge, policy.compat) == (
        True,
        True,
        "hashed",
        False,
    )
    assert (policy.vendors, policy.registries, policy.applications) == ([], [], [])
    assert (devices.disk_layout, devices.nics, devices.vsock, devices.internet) == ("shared", 1, True, False)


def test_paths_are_relative_to_the_manifest() -> None:
    manifest = parse('[image]\ninitramfs = "/abs/initramfs"\nlock = "sub/web.lock"\n')
    assert manifest.kernel_path == PATH.parent / ".islet/realms/web/vmlinuz"
    assert manifest.initramfs_path == Path("/abs/initramfs")
    assert manifest.lock_path == PATH.parent / "sub/web.lock"
    assert parse().initramfs_path == PATH.parent / ".islet/realms/web/initramfs.cpio.zst"


@pytest.mark.parametrize(("machine", "arch"), [("AMD64", "x86_64"), ("arm64", "aarch64"), ("aarch64", "aarch64")])
def test_architecture_defaults_to_the_host(monkeypatch: pytest.MonkeyPatch, machine: str, arch: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert parse().arch == arch


def test_an_unsupported_host_must_name_the_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(InputError, match="riscv64") as refused:
        parse()
    assert refused.value.hint is not None and "image.arch" in refused.value.hint
    assert parse('[image]\narch = "aarch64"\n').arch == "aarch64"


def test_output_is_forwarded_by_emulated_images_only() -> None:
    assert parse('[image]\nrsi = "device"\n').policy.forward_output is False
    assert parse('[image]\nrsi = "device"\n[policy]\nforward_output = true\n').policy.forward_output is True
    assert parse("[policy]\nforward_output = false\n").policy.forward_output is False


def test_applications_and_personalization() -> None:
    body = f'[launch]\npersonalization = "tenant ä"\n[policy]\nvendors = ["{KEY}"]\n'
    body += f'[[policy.applications]]\nname = "a/b"\nvendor = "{KEY}"\n[[policy.applications]]\nname = "c"\n'
    manifest = parse(body + "min_security_version = 4\n")
    assert [(a.name, a.vendor, a.min_security_version) for a in manifest.policy.applications] == [
        ("a/b", KEY, 0),
        ("c", None, 4),
    ]
    assert manifest.personalization == "tenant ä".encode().ljust(64, b"\0")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("colour = 1\n", "colour"),
        ("[launch]\nmemory = 1\n", "memory"),
        ("[launch]\nvcpus = 0\n", "vcpus"),
        ("[launch]\nvcpus = 17\n", "vcpus"),
        ("[launch]\nvcpus = 1.5\n", "vcpus"),
        ("[launch]\nmemory_mib = 8\n", "memory_mib"),
        ("[launch]\nmemory_mib = 99999999999999999999\n", "memory_mib"),
        ("[launch]\nsve_vl = 200\n", "sve_vl"),
        ("[launch]\npmu_counters = 32\n", "pmu_counters"),
        ('[launch]\nvmm = "qemu"\n', "vmm"),
        ('[launch]\nprofile = "arm"\n', "profile"),
        ('[launch]\nhash_algo = "sha384"\n', "hash_algo"),
        ('[launch]\nirqchip = "gicv4"\n', "irqchip"),
        ('[launch]\ncmdline = "a\\u0000b"\n', "cmdline"),
        ('[launch]\ncmdline = "a\\nb"\n', "cmdline"),
        (f'[launch]\ncmdline = "{"x" * 1985}"\n', "cmdline"),
        (f'[launch]\npersonalization = "{"ä" * 33}"\n', "personalization"),
        ('[launch]\npersonalization = "a\\u0000b"\n', "personalization"),
        ("[devices]\nnics = -1\n", "nics"),
        ('[devices]\ndisk_layout = "none"\n', "disk_layout"),
        ('[image]\nkernel = ""\n', "kernel"),
        ('[image]\nrsi = "emulated"\n', "rsi"),
        ("[policy]\nsealing_svn = 4\n", "sealing_svn"),
        ("[policy]\nmin_svn = 4\n", "min_svn"),
        ("[policy]\nmin_svn = 0\n", "min_svn"),
        ('[policy]\nsealing_flags = ["Key"]\n', "sealing_flags"),
        ('[policy]\nsealing_flags = ["Rim", "Rim"]\n', "sealing_flags"),
        ('[policy]\nvendors = ["AB"]\n', "vendors"),
        ('[policy]\nregistries = ["http://host"]\n', "registries"),
        ('[policy]\ntoken_challenge = "none"\n', "token_challenge"),
        ('[[policy.applications]]\nname = "UPPER"\n', "name"),
        ('[[policy.applications]]\nname = "a"\n[[policy.applications]]\nname = "a"\n', "a twice"),
        (f'[policy]\nvendors = ["{"00" * 32}"]\n[[policy.applications]]\nname = "a"\nvendor = "{KEY}"\n', KEY),
        ("[launch\n", "line"),
        ("x = " + "[" * 50000 + "\n", "recursion"),
    ],
)
def test_refusals_name_what_is_wrong(body: str, named: str) -> None:
    assert named in refusal(body).message


@pytest.mark.parametrize(
    ("head", "named"),
    [
        ('schema = 2\nname = "a"\nid = "a"\n', "schema"),
        ('name = "a"\nid = "a"\n', "schema"),
        ('schema = 1\nid = "a"\n', "name"),
        ('schema = 1\nname = "a"\n', "id"),
        ('schema = 1\nname = "Web"\nid = "a"\n', "name"),
        ('schema = 1\nname = "a-b\\n"\nid = "a"\n', "name"),
        (f'schema = 1\nname = "{"a" * 33}"\nid = "a"\n', "name"),
        ('schema = 1\nname = "a"\nid = ""\n', "id"),
        ('schema = 1\nname = "a"\nid = "\\u0007"\n', "id"),
        ('schema = 1\nname = "a"\nid = "a"\nversion = "1.0"\n', "version"),
        ('schema = 1\nname = "a"\nid = "a"\nversion = "1.0.18446744073709551616"\n', "2^64-1"),
        ('schema = 1\nname = "a"\nid = "a"\nsvn = 0\n', "svn"),
    ],
)
def test_the_head_is_checked(head: str, named: str) -> None:
    assert named in refusal(head=head).message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"realm\.toml: No such file"):
        load_manifest(tmp_path / "realm.toml")


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "realm.toml").write_text(HEAD)
    monkeypatch.chdir(tmp_path)
    assert load_manifest("realm.toml").directory == tmp_path
