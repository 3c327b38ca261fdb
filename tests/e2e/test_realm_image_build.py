"""Building realm images from packages: bit identity, locks, and what a changed input changes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from .conftest import Islet


def clone(source: Path, target: Path) -> Path:
    """A workspace elsewhere with the same public keys, manifest and lock, and nothing built."""
    target.mkdir(mode=0o700, parents=True)
    for name in ("islet.toml", "realm.toml", "realm.lock"):
        shutil.copy(source / name, target / name)
    state = target / ".islet"
    state.mkdir(mode=0o700)
    for name in ("keys", "registry-tls"):
        shutil.copytree(source / ".islet" / name, state / name)
    return target


def image_of(root: Path) -> tuple[bytes, bytes]:
    directory = root / ".islet/realms/default"
    return (directory / "vmlinuz").read_bytes(), (directory / "initramfs.cpio.zst").read_bytes()


def test_two_builds_from_one_lock_are_bit_identical(
    built_workspace: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """In other directories, from the package cache alone: the second machine has no network and no cache of its own."""
    packages = tmp_path / "packages"
    shutil.copytree(built_workspace / ".islet/cache/packages", packages)
    for name in ("one", "two/deeper/with a blank"):
        root = clone(built_workspace, tmp_path / name)
        offline = {**environment, "XDG_CACHE_HOME": str(tmp_path / f"cache-{len(name)}"), "no_proxy": "*"}
        (tmp_path / f"cache-{len(name)}").mkdir(mode=0o700)
        islet = Islet(root, {**offline, "APT_CONFIG": "/nonexistent"})
        built = islet("realm", "build", "--package-cache", packages, "--json").json()
        assert built["reused"] is False
        assert image_of(root) == image_of(built_workspace)
        assert (root / ".islet/realms/default/packages.spdx.json").read_bytes() == (
            built_workspace / ".islet/realms/default/packages.spdx.json"
        ).read_bytes()


def test_an_unchanged_image_is_used_again_and_a_damaged_one_is_not(islet: Islet) -> None:
    before = image_of(islet.root)
    assert islet("realm", "build", "--json").json()["reused"] is True
    path = islet.root / ".islet/realms/default/initramfs.cpio.zst"
    path.write_bytes(before[1][:-1] + b"x")
    assert islet("realm", "build", "--json").json()["reused"] is False
    assert image_of(islet.root) == before


def test_the_policy_is_measured(islet: Islet) -> None:
    before = islet("realm", "publish", "--json").json()["rim"]
    with (islet.root / "realm.toml").open("a") as manifest:
        manifest.write("offline = false\n")  # [policy] is the last table
    assert islet("realm", "build", "--json").json()["reused"] is False
    assert islet("realm", "publish", "--json").json()["rim"] != before


def test_other_installed_files_than_the_locked_ones_are_noticed(islet: Islet) -> None:
    path = islet.root / "realm.lock"
    locked = msgspec.toml.decode(path.read_bytes())
    path.write_text(path.read_text().replace(locked["islet"]["files"], "00" * 32))
    result = islet("realm", "build", code=2)
    assert "installed islet files" in result.err and "--update-lock" in result.err


def test_an_image_holds_no_sources_and_small(built_workspace: Path, tmp_path: Path) -> None:
    archive = image_of(built_workspace)[1]
    assert len(archive) < 16 << 20
    plain = subprocess.run(["zstd", "-dcq"], input=archive, capture_output=True).stdout
    names = subprocess.run(["busybox", "cpio", "-t"], input=plain, capture_output=True).stdout.decode().split()
    assert "init" in names and "usr/lib/python3.11/islet_cli/appmanager/__main__.pyc" in names
    assert not [name for name in names if name.endswith(".py")]
    assert not [name for name in names if "/test" in name or "getty" in name]


def test_a_bundle_launches_like_its_workspace(islet: Islet, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    published = islet("realm", "publish", "-o", bundle, "--json").json()
    again = islet("rim", "compute", "--realm", bundle / "realm.toml", "--json").json()
    assert again["rim"] == published["rim"] == (bundle / "rim").read_text().strip()
    expected = {"vmlinuz", "initramfs.cpio.zst", "realm.toml", "realm.lock", "rim", "rim.lock", "metadata.bin"}
    assert expected | {"reference-pull.json", "packages.spdx.json"} == {path.name for path in bundle.iterdir()}


def test_another_metadata_signer_than_the_image_names_is_refused(islet: Islet, tmp_path: Path) -> None:
    islet("key", "generate", "-o", tmp_path / "other.prv")
    result = islet("realm", "publish", "-k", tmp_path / "other.prv", code=2)
    assert "another metadata signer" in result.err and "keys.realm" in result.err


@pytest.mark.parametrize("options", [["--modules", "."], ["--kernel", "no-such-kernel"]])
def test_wrong_kernel_options_are_named(islet: Islet, options: list[str]) -> None:
    assert (
        options[0] in islet("realm", "build", *options, code=2).err
        or options[1] in islet("realm", "build", *options, code=2).err
    )


def test_a_kernel_of_the_users(islet: Islet, tmp_path: Path) -> None:
    kernel = tmp_path / "Image"
    kernel.write_bytes(b"some kernel with everything built in")
    result = islet("realm", "build", "--kernel", kernel, code=2)
    assert "kernel" in result.err and "--update-lock" in result.err
    islet("realm", "build", "--kernel", kernel, "--update-lock")
    assert image_of(islet.root)[0] == kernel.read_bytes()
    locked = msgspec.toml.decode((islet.root / "realm.lock").read_bytes())
    assert "kernel" in locked and not [item for item in locked["package"] if item["name"].startswith("linux-image")]
    assert islet("realm", "build", code=2).err.count("kernel") >= 1
