"""The parts of the realm image builder that need no network."""

from __future__ import annotations

import io
import json
import lzma
import os
import stat
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml

from islet_cli.errors import InputError, IsletError, UnavailableError
from islet_cli.launch.manifest import parse_manifest
from islet_cli.realm_image import bundle, config_yml, cpio, elf, imports, islet_files, modules, sbom
from islet_cli.realm_image import lock as lockfile
from islet_cli.realm_image.arch import ARCHES, buildable, host
from islet_cli.realm_image.debfile import members
from islet_cli.realm_image.lock import IsletFiles, Package, RealmLock
from islet_cli.realm_image.packages import PackageStore, data_lines

SELF = Path(os.path.realpath("/proc/self/exe"))


def manifest(text: str = "", path: str = "/w/realm.toml"):
    return parse_manifest(f'schema = 1\nname = "default"\nid = "local.islet.default"\n{text}'.encode(), Path(path))


# --- architectures ---------------------------------------------------------------------------------------------------


def test_only_this_machines_architecture_is_built():
    assert buildable(host()).name == host()
    other = next(name for name in ARCHES if name != host())
    with pytest.raises(UnavailableError) as refused:
        buildable(other)
    assert refused.value.code == "foreign-arch"
    with pytest.raises(InputError):
        buildable("riscv64")


# --- ELF -------------------------------------------------------------------------------------------------------------


def test_facts_of_a_program():
    found = elf.facts(SELF.read_bytes(), what="python")
    assert found.machine == buildable(host()).elf_machine
    assert "libc.so.6" in found.needed
    assert any(version.startswith("GLIBC_2.") for version in found.versions)


def test_a_trimmed_program_still_runs(tmp_path):
    original = Path("/bin/echo").read_bytes()
    program = tmp_path / "echo"
    program.write_bytes(elf.trimmed(original, what="echo"))
    program.chmod(0o755)
    assert program.stat().st_size <= len(original)
    assert subprocess.run([program, "yes"], capture_output=True, check=True).stdout == b"yes\n"


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x7fELF\x02\x01" + bytes(58), b"\x7fELF\x01\x01" + bytes(100)])
def test_a_damaged_elf_file_is_refused(data):
    for read in (elf.facts, elf.trimmed, elf.module_info):
        with pytest.raises(InputError) as refused:
            read(data, what="thing")
        assert refused.value.code == "bad-elf"


# --- packages --------------------------------------------------------------------------------------------------------


def deb(files: dict[str, bytes], links: dict[str, str] | None = None, *, name: str = "data.tar.xz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, data in files.items():
            member = tarfile.TarInfo(f"./{path}")
            member.size, member.mode = len(data), 0o755 if path.startswith("bin/") else 0o644
            archive.addfile(member, io.BytesIO(data))
        for path, target in (links or {}).items():
            member = tarfile.TarInfo(f"./{path}")
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    payload = lzma.compress(buffer.getvalue()) if name.endswith(".xz") else buffer.getvalue()
    out = b"!<arch>\n"
    for part, data in (("debian-binary", b"2.0\n"), (name, payload)):
        out += (
            f"{part:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}".encode()
            + b"`\n"
            + data
            + b"\n" * (len(data) % 2)
        )
    return out


def test_members_of_a_package():
    found = {item.path: item for item in members(deb({"bin/x": b"1", "etc/y": b"22"}, {"lib": "usr/lib"}), what="p")}
    assert found["bin/x"].executable and found["bin/x"].data == b"1"
    assert not found["etc/y"].executable
    assert found["lib"].target == "usr/lib"


@pytest.mark.parametrize(
    "data",
    [b"", b"!<arch>\n", deb({"a": b"1"})[:-20], deb({"a": b"1"}, name="data.tar.zst"), deb({}).replace(b"`\n", b"??")],
)
def test_a_damaged_package_is_refused(data):
    with pytest.raises(InputError) as refused:
        list(members(data, what="p.deb"))
    assert refused.value.code == "bad-package" and "p.deb" in refused.value.message


def package(data: bytes, name: str = "thing") -> Package:
    import hashlib

    digest = hashlib.sha256(data).hexdigest()
    return Package(name=name, version="1-1", architecture="amd64", size=len(data), sha256=digest, path=f"pool/{name}")


def test_kept_packages_are_used_and_damaged_ones_are_not(tmp_path, monkeypatch):
    data = b"the package"
    item = package(data)
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / f"{item.sha256}.deb").write_bytes(data)
    store = PackageStore(buildable(host()), tmp_path / "own", [shared])
    assert store.read([item]) == {"thing": data}
    (shared / f"{item.sha256}.deb").unlink()
    assert store.read([item]) == {"thing": data}, "kept in the build's own directory"

    (tmp_path / "own" / f"{item.sha256}.deb").write_bytes(b"damaged")
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UnavailableError) as refused:
        store.read([item])
    assert refused.value.code == "no-apt" and "--package-cache" in (refused.value.hint or "")


def test_without_apt_resolving_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UnavailableError) as refused:
        PackageStore(buildable(host()), tmp_path / "own").resolve(kernel=True)
    assert refused.value.code == "no-apt"
    assert "--kernel" in (refused.value.hint or "") and "--modules" in (refused.value.hint or "")


# --- kernel modules --------------------------------------------------------------------------------------------------


def module(depends: str = "") -> bytes:
    """A minimal object file with a `.modinfo` section."""
    info = f"license=GPL\0depends={depends}\0name=x\0".encode()
    names = b"\0.modinfo\0.shstrtab\0"
    header = 64
    table = header + len(info) + len(names)
    out = bytearray(b"\x7fELF\x02\x01\x01" + bytes(57))
    struct.pack_into("<Q", out, 40, table)
    struct.pack_into("<HHH", out, 58, 64, 3, 2)

    def section(name: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQ", name, 1, 0, 0, offset, size) + bytes(24)

    sections = bytes(64) + section(1, header, len(info)) + section(10, header + len(info), len(names))
    return bytes(out) + info + names + sections


def complete() -> dict[str, bytes]:
    names = [line.split()[0] for line in data_lines("modules.txt")]
    return {f"lib/modules/6/kernel/{name}.ko": module() for name in names}


def test_modules_load_after_what_they_depend_on():
    available = complete() | {
        "lib/modules/6/kernel/virtio_pci.ko": module("virtio_ring,virtio"),
        "lib/modules/6/kernel/virtio.ko": module("virtio_ring"),
        "lib/modules/6/kernel/virtio_ring.ko": module(),
        "lib/modules/6/kernel/virtio_blk.ko": module("virtio,virtio_ring"),
    }
    chosen = modules.select(available, builtin=set(), arch=buildable(host()))
    assert chosen.early[:3] == ["virtio_ring.ko", "virtio.ko", "virtio_pci.ko"]
    assert "virtio.ko" not in chosen.late, "loaded once"
    assert "dm_mod.ko" in chosen.late
    assert set(chosen.files) == {*chosen.early, *chosen.late, *chosen.vsock}


def test_a_missing_module_is_an_error_unless_built_in_or_optional():
    available = complete()
    del available["lib/modules/6/kernel/dm-crypt.ko"]
    with pytest.raises(UnavailableError) as refused:
        modules.select(available, builtin=set(), arch=buildable(host()))
    assert "dm_crypt" in refused.value.message
    modules.select(available, builtin={"dm_crypt"}, arch=buildable(host()))
    modules.select(available, builtin=None, arch=buildable(host()))
    del available["lib/modules/6/kernel/rsi.ko"]
    modules.select(available, builtin={"dm_crypt"}, arch=buildable(host()))


def test_module_forms():
    data = module()
    signed = data + b"signature" + struct.pack(">BBBBB3xI", 0, 0, 2, 0, 0, 9) + b"~Module signature appended~\n"
    assert modules.unsigned(signed) == data
    assert modules.unsigned(data) == data
    assert modules.unpacked("a/x.ko.xz", lzma.compress(data)) == data
    with pytest.raises(InputError):
        modules.unpacked("a/x.ko.zst", data)
    assert modules.builtin_names("kernel/fs/ext4/ext4.ko\nkernel/drivers/md/dm-mod.ko\n") == {"ext4", "dm_mod"}


# --- Python ----------------------------------------------------------------------------------------------------------


def test_imports_are_found_in_source():
    source = b"""
from __future__ import annotations
import os.path, sys as system
from typing import TYPE_CHECKING
from . import sibling
from ..up import name
if TYPE_CHECKING:
    import never
else:
    import other
def later():
    import lazy
"""
    found = imports.imported_names(source, "a.b.c", is_package=False)
    assert {"os.path", "sys", "a.b.sibling", "a.up", "a.up.name", "other", "lazy"} <= found
    assert "never" not in found
    assert "lazy" not in imports.imported_names(source, "a.b.c", is_package=False, lazy=False)
    with pytest.raises(InputError):
        imports.imported_names(b"def", "x", is_package=False)


def test_closure_follows_imports_and_packages():
    sources = {
        "a/__init__.py": b"",
        "a/b.py": b"import c",
        "c.py": b"import d\nimport heavy",
        "d.py": b"",
        "heavy.py": b"",
        "unused.py": b"",
    }
    assert imports.closure(sources, ["a.b"], denied=frozenset({"heavy"})) == {"a/__init__.py", "a/b.py", "c.py", "d.py"}


def test_what_a_realm_imports_at_start_is_in_it():
    """Of third parties the realm's modules import only what the image carries, and nothing heavy when they load."""
    files = {path: data for path, data in islet_files.collect().files.items() if path.startswith("islet_cli/")}
    allowed = set(__import__("sys").stdlib_module_names) | {"islet_cli", "cryptography", "yaml"}
    for path, data in files.items():
        if path.endswith(".py"):
            name, is_package = imports.module_name(path)
            at_import = imports.imported_names(data, name, is_package=is_package, lazy=False)
            assert {item.partition(".")[0] for item in at_import} <= allowed, path
            assert not {item for item in at_import if item.startswith(("cryptography", "yaml", "asyncio"))}, path


def test_native_modules_must_fit_the_realm():
    arch = buildable(host())
    native = {"islet_cli/_native.abi3.so": SELF.read_bytes()}
    with pytest.raises(UnavailableError) as refused:
        islet_files.require_loadable(native, arch=arch, glibc=(2, 1))
    assert refused.value.code == "libc-too-new" and "glibc" in refused.value.message
    islet_files.require_loadable(native, arch=arch, glibc=(9, 9))
    other = next(item for item in ARCHES.values() if item.name != host())
    with pytest.raises(UnavailableError):
        islet_files.require_loadable(native, arch=other, glibc=(9, 9))
    assert islet_files.glibc_version("2.36-9+deb12u14") == (2, 36)


# --- lock ------------------------------------------------------------------------------------------------------------


def lock() -> RealmLock:
    return RealmLock(
        created=1_700_000_000,
        arch="x86_64",
        islet=IsletFiles(version="0.1.0", files="ab" * 32),
        package=[package(b"one", "a"), package(b"two", "b")],
    )


def test_a_lock_survives_its_file(tmp_path):
    path = tmp_path / "realm.lock"
    assert lockfile.load(path) is None
    lockfile.save(path, lock())
    assert lockfile.load(path) == lock()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("schema = 1", "schema = 2"),
        ("created = 1700000000", "created = -1"),
        ('name = "b"', 'name = "a"'),
        ('name = "a"', 'name = "-o=Dpkg::Pre-Invoke"'),
        ('version = "1-1"', 'version = "1 1"'),
        ('arch = "x86_64"', 'arch = "x86_64"\nextra = 1'),
        ("ab" * 32, "zz" * 32),
    ],
)
def test_a_malformed_lock_is_refused(old, new):
    text = lock().to_toml()
    assert old in text
    with pytest.raises(InputError):
        lockfile.parse(text.replace(old, new).encode(), what="realm.lock")


def test_source_date_epoch(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert lockfile.locking_time() == 86400
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    with pytest.raises(InputError):
        lockfile.locking_time()


def test_package_list_names_every_part():
    document = json.loads(sbom.spdx(lock(), name="default", initramfs_sha256="00" * 32, kernel_sha256="11" * 32))
    assert document["spdxVersion"] == "SPDX-2.3"
    names = {item["name"] for item in document["packages"]}
    assert {"a", "b", "islet-cli", "kernel", "default"} <= names
    identities = [item["SPDXID"] for item in document["packages"]]
    assert len(set(identities)) == len(identities)
    assert document["creationInfo"]["created"] == "2023-11-14T22:13:20Z"


# --- configuration and manifest --------------------------------------------------------------------------------------


def test_configuration_is_yaml_with_the_measured_policy():
    text = "[policy]\nsealing_svn = 2\nmin_svn = 2\noffline = false\n"
    value = yaml.safe_load(
        config_yml.render(config_yml.configuration(manifest("svn = 3\n" + text), metadata_key=b"\x5a" * 96))
    )
    assert value["keysealing"] == {"HkdfSha256": {"RsiSealingKey": {"flags": ["RealmId"], "svn": 2}}}
    assert value["policy"]["metadata"] == {"public_key": "5a" * 96, "realm_id": "local.islet.default", "min_svn": 2}
    assert value["policy"]["offline"] is False and value["policy"]["forward_output"] is True
    assert (value["rsi"], value["control"]) == ("virtio-serial", "virtio-serial")
    assert value["crypto"]["key_bytes"] == 64
    assert value["launcher"]["Oci"]["RaTLS"]["token_resolver"] == "rsi"


def test_configuration_of_real_hardware_and_without_metadata():
    value = config_yml.configuration(manifest('[image]\nrsi = "device"\n'), metadata_key=None)
    assert (value["rsi"], value["control"]) == ("device", "vsock")
    assert "metadata" not in value["policy"]
    assert value["policy"]["forward_output"] is False


def test_the_manager_reads_the_configuration():
    from islet_cli.appmanager import config

    text = '[[policy.applications]]\nname = "hello"\nmin_security_version = 3\n'
    data = config_yml.render(config_yml.configuration(manifest(text), metadata_key=b"\x5a" * 96))
    parsed = config.parse(json.loads(data))
    assert [item.name for item in parsed.policy.applications] == ["hello"]


def test_manifest_text_reads_back(tmp_path):
    text = 'version = "2.1.0"\n[[policy.applications]]\nname = "hello"\n[launch]\npersonalization = "a\\"b"\n'
    original = manifest(text)
    path = tmp_path / "realm.toml"
    path.write_text(bundle.manifest_text(original, {"kernel": "vmlinuz", "initramfs": "i", "lock": "l"}))
    again = parse_manifest(path.read_bytes(), path)
    assert again.launch == original.launch and again.policy == original.policy and again.devices == original.devices
    assert (again.name, again.id, again.version, again.svn) == (original.name, original.id, "2.1.0", original.svn)
    assert again.kernel_path == tmp_path / "vmlinuz"


def test_a_bundle_replaces_only_bundles(tmp_path):
    target = tmp_path / "out"
    source = tmp_path / "kernel"
    source.write_bytes(b"k")
    bundle.place(target, {"rim": b"1\n", "old": b"", "vmlinuz": source}, aside=tmp_path)
    bundle.place(target, {"rim": b"2\n", "vmlinuz": source}, aside=tmp_path)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {"rim": b"2\n", "vmlinuz": b"k"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kernel", "out"], "nothing is left aside"
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis").write_text("do not lose")
    with pytest.raises(InputError):
        bundle.place(other, {"rim": b"1\n"}, aside=tmp_path)
    assert (other / "thesis").read_text() == "do not lose"


# --- init scripts ----------------------------------------------------------------------------------------------------


def test_no_path_leads_to_a_shell_on_the_console():
    root = Path(config_yml.__file__).parent / "data"
    for name in ("init", "realm-init", "dhcp"):
        text = (root / name).read_text()
        assert text.startswith("#!/bin/busybox sh\n")
        code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
        assert "/dev/console" not in code and "getty" not in code and "sulogin" not in code and " login" not in code
    started = (root / "realm-init").read_text()
    assert "< /dev/null" in started
    for setting in ("sysrq", "ctrl-alt-del", "kexec_load_disabled"):
        assert f"/proc/sys/kernel/{setting}" in started


def test_a_tree_refuses_paths_that_leave_it():
    tree = cpio.Tree()
    for path in ("", "/etc", "a//b", "a/../b", "./a", "a\0b", "TRAILER!!!"):
        with pytest.raises(IsletError):
            tree.add(path, cpio.file(b""))
    tree.add("a", cpio.file(b""))
    with pytest.raises(InputError):
        tree.add("a/b", cpio.file(b""))
    with pytest.raises(InputError):
        tree.add("a", cpio.directory())
    assert stat.S_ISREG(tree["a"].mode)


def test_a_policy_that_the_manager_does_not_run_is_refused_when_the_image_is_made(tmp_path):
    text = b'schema = 1\nname = "x"\nid = "org.example.x"\n[policy]\ncompat = true\n'
    manifest = parse_manifest(text, tmp_path / "realm.toml")
    with pytest.raises(InputError, match=r"realm\.toml: policy\.compat") as caught:
        config_yml.configuration(manifest, metadata_key=None)
    assert caught.value.code == "not-supported"
