"""Building images: reproducible, complete, faithful to root file systems."""

from __future__ import annotations

import io
import json
import os
import stat
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from islet_cli.errors import InputError
from islet_cli.oci import build, elf, layers, layout, libraries, source
from islet_cli.oci.build import BuiltImage, build_image
from islet_cli.oci.documents import Config, parse_config

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def config_of(built: BuiltImage) -> Config:
    loaded = layout.load(built.layout)
    assert not loaded.warnings
    return parse_config(loaded.read(loaded.manifests[loaded.tags[built.tag].digest].config))


def members(built: BuiltImage) -> dict[str, tarfile.TarInfo]:
    """The entries of the image's layer, checked against its diff_id on the way."""
    loaded = layout.load(built.layout)
    (layer,) = loaded.manifests[loaded.tags[built.tag].digest].layers
    assert [layers.diff_id(built.layout, layer)] == list(config_of(built).diff_ids)
    data = b"".join(layers.decompressed(built.layout, layer))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = [info.name for info in archive.getmembers()]
        assert names == sorted(names, key=os.fsencode)
        return {info.name: info for info in archive.getmembers()}


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def make_elf(
    path: Path,
    *,
    machine: int = 62,
    interpreter: str | None = None,
    needed: tuple[str, ...] = (),
    runpath: str = "",
    rpath: str = "",
) -> Path:
    """Write a little ELF file that has just the tables a loader looks at."""
    strings = b"\0"
    tags: list[tuple[int, int]] = []
    for tag, text in [*((1, name) for name in needed), (29, runpath), (15, rpath)]:
        if text:
            tags.append((tag, len(strings)))
            strings += text.encode() + b"\0"
    base, count = 0x10000, 3 if interpreter else 2
    at = 64 + 56 * count
    interp = (interpreter or "").encode() + b"\0"
    table = at + len(interp)
    dynamic_at = table + len(strings)
    tags += [(5, base + table), (10, len(strings)), (0, 0)]
    dynamic = b"".join(struct.pack("<QQ", *pair) for pair in tags)
    size = dynamic_at + len(dynamic)
    headers = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096)
    headers += struct.pack("<IIQQQQQQ", 2, 4, dynamic_at, base, base, len(dynamic), len(dynamic), 8)
    if interpreter:
        headers += struct.pack("<IIQQQQQQ", 3, 4, at, base, base, len(interp), len(interp), 1)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = ident + struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, base, 64, 0, 0, 64, 56, count, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + headers + interp + strings + dynamic)
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def _no_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_two_builds_are_the_same_bytes(tmp_path: Path, compression: Any) -> None:
    program = make_elf(tmp_path / "one/My_App")
    first = build_image(program, tmp_path / "a", name="x", compression=compression)
    moved = make_elf(tmp_path / "two/My_App")
    os.utime(moved, (1_900_000_000, 1_900_000_000))
    second = build_image(moved, tmp_path / "b", name="x", compression=compression)
    assert tree(first.layout) == tree(second.layout)
    assert first.manifest_digest == second.manifest_digest
    assert {info.mtime for info in members(first).values()} == {0}
    assert config_of(first).created == "1970-01-01T00:00:00Z"


def test_source_date_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    for name, when in (("old", 1000), ("new", 2_000_000_000)):
        (root / "etc" / name).write_text(name)
        os.utime(root / "etc" / name, (when, when))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    built = build_image(root, tmp_path / "out", name="x", entrypoint=["/bin/x"])
    times = {name: info.mtime for name, info in members(built).items()}
    assert (times["etc/old"], times["etc/new"]) == (1000, 86400)
    assert config_of(built).created == "1970-01-02T00:00:00Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(InputError) as caught:
        build_image(root, tmp_path / "out2", name="x", entrypoint=["/bin/x"])
    assert caught.value.code == "epoch_invalid"


def test_static_program(tmp_path: Path) -> None:
    built = build_image(
        make_elf(tmp_path / "prog", machine=183),
        tmp_path / "out",
        name="prog",
        tag="v1",
        cmd=["--serve"],
        env=["A=b=c"],
        user="7:8",
        workdir="/tmp",
        version="1.2",
        security_version=4,
    )
    config = config_of(built)
    assert (config.architecture, config.os) == ("arm64", "linux")
    assert config.raw["config"] == {
        "User": "7:8",
        "Env": ["A=b=c"],
        "Entrypoint": ["/app/prog"],
        "Cmd": ["--serve"],
        "WorkingDir": "/tmp",
        "Labels": {
            "io.islet.application": "prog",
            "io.islet.security-version": "4",
            "org.opencontainers.image.version": "1.2",
        },
    }
    found = members(built)
    assert set(found) == {"app", "app/prog", "dev", "etc", "proc", "run", "sys", "tmp"}
    assert (found["app/prog"].mode, found["tmp"].mode) == (0o755, 0o1777)
    assert {(info.uid, info.gid, info.uname) for info in found.values()} == {(0, 0, "")}
    described = build.describe(built.layout, "v1")
    assert described == BuiltImage(
        built.layout,
        "v1",
        built.manifest_digest,
        built.config_digest,
        built.unpacked_bytes,
        built.compressed_bytes,
        "prog",
    )


def test_libraries_beside_the_program(tmp_path: Path) -> None:
    """$ORIGIN in the image is where the program stands there, not where it stands here."""
    make_elf(tmp_path / "lib/libdeep.so")
    make_elf(tmp_path / "lib/liba.so.1.2", needed=("libdeep.so",), runpath="$ORIGIN")
    (tmp_path / "lib/liba.so.1").symlink_to("liba.so.1.2")
    program = make_elf(tmp_path / "bin/prog", needed=("liba.so.1",), runpath="${ORIGIN}/../lib")
    found = members(build_image(program, tmp_path / "out", name="x"))
    assert {name for name in found if name.startswith("lib/")} == {"lib/liba.so.1", "lib/libdeep.so"}
    assert found["lib/liba.so.1"].isreg()


def test_rpath_is_inherited_and_runpath_is_not(tmp_path: Path) -> None:
    make_elf(tmp_path / "lib/libdeep.so")
    make_elf(tmp_path / "lib/liba.so", needed=("libdeep.so",))
    program = make_elf(tmp_path / "p", needed=("liba.so",), rpath="$ORIGIN/lib")
    assert "app/lib/libdeep.so" in members(build_image(program, tmp_path / "out", name="x"))
    program = make_elf(tmp_path / "p", needed=("liba.so",), runpath="$ORIGIN/lib")
    with pytest.raises(InputError, match=r"libdeep\.so") as caught:
        build_image(program, tmp_path / "out2", name="x")
    assert caught.value.code == "library-missing"


def test_missing_things(tmp_path: Path) -> None:
    for options in ({"needed": ("libnowhere.so.9",)}, {"interpreter": "/lib/ld-nowhere.so"}):
        with pytest.raises(InputError) as caught:
            build_image(make_elf(tmp_path / "p", **options), tmp_path / "out", name="x")
        assert caught.value.code == "library-missing"
    assert not (tmp_path / "out").exists()


def test_libraries_of_another_machine_do_not_count(tmp_path: Path) -> None:
    make_elf(tmp_path / "one/liba.so", machine=183)
    make_elf(tmp_path / "two/liba.so")
    program = make_elf(tmp_path / "p", needed=("liba.so",), runpath="$ORIGIN/one:$ORIGIN/two")
    found = members(build_image(program, tmp_path / "out", name="x"))
    assert "app/two/liba.so" in found and "app/one/liba.so" not in found


def test_configured_directories_need_a_search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_elf(tmp_path / "extra/liba.so")
    conf = tmp_path / "ld.so.conf"
    (tmp_path / "conf.d").mkdir()
    conf.write_text("include conf.d/*.conf  # more\n")
    (tmp_path / "conf.d/a.conf").write_text(f"{tmp_path}/extra/\n")
    assert libraries.configured_directories(conf) == [f"{tmp_path}/extra"]
    monkeypatch.setattr(libraries, "configured_directories", lambda: [f"{tmp_path}/extra"])
    built = build_image(make_elf(tmp_path / "p", needed=("liba.so",)), tmp_path / "out", name="x")
    assert config_of(built).raw["config"]["Env"] == [f"LD_LIBRARY_PATH={tmp_path}/extra"]
    assert f"{tmp_path}/extra/liba.so".lstrip("/") in members(built)


@pytest.mark.root
@pytest.mark.parametrize("program", ["/usr/bin/ls", "/usr/bin/busybox"])
def test_real_programs_run(tmp_path: Path, program: str) -> None:
    if not Path(program).exists():
        pytest.skip(f"{program} is not installed")
    built = build_image(Path(program), tmp_path / "out", name="x")
    loaded = layout.load(built.layout)
    (layer,) = loaded.manifests[built.manifest_digest].layers
    (tmp_path / "root").mkdir()
    with tarfile.open(fileobj=io.BytesIO(b"".join(layers.decompressed(built.layout, layer)))) as archive:
        archive.extractall(tmp_path / "root", filter="tar")
    command = config_of(built).raw["config"]["Entrypoint"]
    done = subprocess.run(["chroot", str(tmp_path / "root"), *command], capture_output=True, check=True)
    assert done.stdout


def test_script(tmp_path: Path) -> None:
    script = tmp_path / "hello.sh"
    script.write_text("#!/bin/sh -e\necho hello\n")
    built = build_image(script, tmp_path / "out", name="x")
    found = members(built)
    assert found["app/hello.sh"].mode == 0o755
    assert found["bin/sh"].isreg()
    assert built.warnings and "interpreter" in built.warnings[0]
    script.write_text("#!/nowhere/interpreter\n")
    with pytest.raises(InputError) as caught:
        build_image(script, tmp_path / "out2", name="x")
    assert caught.value.code == "library-missing"


@pytest.mark.parametrize("content", [b"just text", b"", b"#!relative\n", b"\x7fELF", b"\x7fELF" + bytes(100)])
def test_files_that_are_no_programs(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(InputError) as caught:
        build_image(tmp_path / "f", tmp_path / "out", name="x")
    assert caught.value.code in {"not-executable", "elf_invalid"}


def test_directory(tmp_path: Path) -> None:
    directory = tmp_path / "project"
    make_elf(directory / "server")
    (directory / "data").mkdir()
    (directory / "data/page.html").write_text("page")
    (directory / "data/page.html").chmod(0o600)
    built = build_image(directory, tmp_path / "out", name="x")
    execution = config_of(built).raw["config"]
    assert (execution["Entrypoint"], execution["WorkingDir"]) == (["/app/server"], "/app")
    found = members(built)
    # The umask of whoever cloned the project must not change the image.
    assert (found["app/data/page.html"].mode, found["app/server"].mode) == (0o644, 0o755)
    make_elf(directory / "other")
    with pytest.raises(InputError) as caught:
        build_image(directory, tmp_path / "out2", name="x")
    assert caught.value.code == "no-entrypoint"
    chosen = build_image(directory, tmp_path / "out3", name="x", entrypoint=["other", "-v"])
    assert config_of(chosen).raw["config"]["Entrypoint"] == ["/app/other", "-v"]


@pytest.fixture
def root_file_system(tmp_path: Path) -> Path:
    root = tmp_path / "rootfs"
    make_elf(root / "usr/bin/tool")
    (root / "bin").symlink_to("usr/bin")
    (root / "etc").mkdir()
    (root / "etc/one").write_bytes(b"content")
    os.link(root / "etc/one", root / "etc/two")
    (root / "etc/absolute").symlink_to("/etc/one")
    (root / "etc/dangling").symlink_to("../../../nowhere")
    (root / "etc/empty").mkdir(mode=0o700)
    (root / os.fsdecode(b"etc/\xff\xfe")).write_bytes(b"bytes")
    (root / ("etc/" + "x" * 120)).write_bytes(b"long")
    (root / "usr/bin/tool").chmod(0o4755)
    os.mkfifo(root / "etc/pipe")
    return root


def test_root_file_system(tmp_path: Path, root_file_system: Path) -> None:
    built = build_image(root_file_system, tmp_path / "out", name="x", entrypoint=["/bin/tool"])
    found = members(built)
    assert "app" not in found
    assert (found["bin"].issym(), found["bin"].linkname) == (True, "usr/bin")
    assert (found["etc/two"].islnk(), found["etc/two"].linkname) == (True, "etc/one")
    assert found["etc/absolute"].linkname == "/etc/one"
    assert found["etc/pipe"].isfifo()
    assert found["etc/empty"].mode == 0o700
    assert found["usr/bin/tool"].mode == 0o4755
    assert os.fsdecode(b"etc/\xff\xfe") in found
    assert "etc/" + "x" * 120 in found
    assert config_of(built).architecture == "amd64"
    assert build.describe(built.layout, "latest").unpacked_bytes == built.unpacked_bytes
    again = build_image(root_file_system, tmp_path / "again", name="x", entrypoint=["/bin/tool"])
    assert tree(again.layout) == tree(built.layout)
    with pytest.raises(InputError) as caught:
        build_image(root_file_system, tmp_path / "none", name="x")
    assert caught.value.code == "no-entrypoint"


@pytest.mark.root
def test_owners_capabilities_and_devices(tmp_path: Path, root_file_system: Path) -> None:
    os.chown(root_file_system / "etc/one", 12, 3_000_000)
    os.setxattr(root_file_system / "usr/bin/tool", "security.capability", CAPABILITY)
    os.mknod(root_file_system / "etc/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    built = build_image(root_file_system, tmp_path / "out", name="x", entrypoint=["/bin/tool"])
    found = members(built)
    assert (found["etc/one"].uid, found["etc/one"].gid) == (12, 3_000_000)
    value = found["usr/bin/tool"].pax_headers["SCHILY.xattr.security.capability"]
    assert value.encode("utf-8", "surrogateescape") == CAPABILITY
    assert "etc/null" not in found
    assert any("etc/null" in warning for warning in built.warnings)


def test_links_of_a_root_file_system_are_followed_inside_it(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/tool").write_text("inside")
    (tmp_path / "link").symlink_to("/bin/tool")
    (tmp_path / "up").symlink_to("../../../../bin/tool")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "shadow").symlink_to("/etc/passwd")
    for name in ("bin/tool", "link", "up"):
        assert source.resolve_inside(tmp_path, name) == tmp_path / "bin/tool"
    for name in ("loop", "shadow", "bin", "nowhere"):
        assert source.resolve_inside(tmp_path, name) is None


def test_existing_output(tmp_path: Path) -> None:
    program = make_elf(tmp_path / "p")
    output = tmp_path / "out"
    build_image(program, output, name="x")
    before = tree(output)
    with pytest.raises(InputError) as caught:
        build_image(program, output, name="y")
    assert caught.value.code == "exists" and tree(output) == before
    build_image(program, output, name="y", force=True)
    assert layout.load(output).tags and tree(output) != before
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("keep me")
    with pytest.raises(InputError):
        build_image(program, precious, name="x", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "p", "precious"]


def test_a_file_that_changes_meanwhile(tmp_path: Path, root_file_system: Path) -> None:
    def grow(_done: int, _total: int) -> None:
        with (root_file_system / "usr/bin/tool").open("ab") as file:
            file.write(b"more")

    with pytest.raises(InputError) as caught:
        build_image(root_file_system, tmp_path / "out", name="x", entrypoint=["/bin/tool"], report=grow)
    assert caught.value.code == "changed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rootfs"]


@pytest.mark.parametrize(
    "options",
    [
        {"name": "Upper"},
        {"tag": "a/b"},
        {"env": ["novalue"]},
        {"env": ["=x"]},
        {"workdir": "relative"},
        {"user": "a:"},
        {"user": ":b"},
        {"cmd": ["a\0b"]},
        {"arch": "riscv64"},
        {"arch": "arm64"},
        {"security_version": 1 << 64},
        {"entrypoint": [""]},
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        build_image(make_elf(tmp_path / "p"), tmp_path / "out", **{"name": "x", **options})
    assert not (tmp_path / "out").exists()


def test_damaged_elf(tmp_path: Path) -> None:
    whole = make_elf(tmp_path / "p", interpreter="/lib/ld.so", needed=("liba.so",)).read_bytes()
    assert elf.read(tmp_path / "p") == elf.Elf("amd64", "/lib/ld.so", ("liba.so",), (), ())
    for size in range(5, len(whole), 7):
        (tmp_path / "p").write_bytes(whole[:size])
        with pytest.raises(InputError) as caught:
            elf.read(tmp_path / "p")
        assert caught.value.code == "elf_invalid"


def test_configuration_is_compact_json(tmp_path: Path) -> None:
    built = build_image(make_elf(tmp_path / "p"), tmp_path / "out", name="x")
    data = (built.layout / "blobs/sha256" / built.config_digest.hex).read_bytes()
    assert data == json.dumps(json.loads(data), separators=(",", ":"), ensure_ascii=False).encode()


def test_a_plug_in_of_a_directory_may_lack_something(tmp_path: Path) -> None:
    directory = tmp_path / "project"
    make_elf(directory / "server")
    make_elf(directory / "plugin.so", needed=("libnowhere.so",))
    make_elf(directory / "firmware.img", machine=15).chmod(0o644)
    built = build_image(directory, tmp_path / "out", name="x")
    assert built.warnings == ("/app/plugin.so: libnowhere.so was not found",)


def test_a_script_of_a_directory_brings_its_interpreter(tmp_path: Path) -> None:
    directory = tmp_path / "project"
    directory.mkdir()
    (directory / "start.sh").write_text("#!/bin/sh\n")
    (directory / "start.sh").chmod(0o755)
    built = build_image(directory, tmp_path / "out", name="x")
    found = members(built)
    assert "bin/sh" in found and "app/start.sh" in found
    assert config_of(built).architecture in {"amd64", "arm64"}
