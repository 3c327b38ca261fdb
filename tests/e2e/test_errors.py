"""What a user is told when something is missing, busy, full, unreadable, malformed or not theirs.

Every case runs the real command and asks for the same: the documented exit code, one line `error: …` that names
the input, a line `hint: …` where something can be done, and nothing else on stderr.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .conftest import Islet, Result, wait_until

NOBODY = 65534
SMALL_DISK_MIB = 8
REFUSED, WRONG_INPUT, MISSING, FAILED = 1, 2, 3, 4

root_only = pytest.mark.root


def require_error(result: Result, error: str, hint: str | None = None) -> None:
    """Require exactly one error line that holds `error` and at most one hint line that holds `hint`."""
    lines = result.err.splitlines()
    assert lines, "nothing on stderr"
    assert lines[0].startswith("error: "), result.err
    assert error in lines[0], result.err
    assert "internal fault" not in result.err, result.err
    assert [line for line in lines[1:] if not line.startswith("hint: ")] == [], result.err
    assert len(lines) <= 2, result.err
    if hint is not None:
        assert len(lines) == 2, f"no hint: {result.err}"
        assert hint in lines[1], result.err


@pytest.fixture(scope="session")
def plain_workspace(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """A workspace as `islet init` leaves it, made once."""
    root = tmp_path_factory.mktemp("plain") / "w"
    Islet(root.parent, environment)("init", root, "--listen", "127.0.0.1:0")
    return root


@pytest.fixture
def plain(plain_workspace: Path, environment: dict[str, str], tmp_path: Path) -> Iterator[Islet]:
    """A fresh copy of it, without a realm image; its services are stopped at the end."""
    root = tmp_path / "w"
    shutil.copytree(plain_workspace, root, symlinks=True)
    command = Islet(root, environment)
    yield command
    if any((command.state / "log").glob("*.log")):
        command("down", code=None)


@pytest.fixture(scope="session")
def image(plain_workspace: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed image `sample:v1` whose one layer is larger than the small disk."""
    place = tmp_path_factory.mktemp("image")
    source = place / "source"
    source.mkdir()
    program = source / "start"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    (source / "noise").write_bytes(os.urandom((SMALL_DISK_MIB + 2) << 20))
    layout = place / "layout"
    islet = Islet(plain_workspace, environment)
    islet("image", "build", source, "-o", layout, "--tag", "v1", "--name", "sample", "--entrypoint", "/start")
    islet("sign", layout)
    return layout


# ------------------------------------------------------------------------------ something is missing


def path_without_qemu(tmp_path: Path) -> str:
    """A search path that has every program of this one's but QEMU."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for part in os.environ["PATH"].split(os.pathsep):
        for program in Path(part).glob("*") if part else ():
            link = directory / program.name
            if not program.name.startswith("qemu-") and not link.is_symlink():
                link.symlink_to(program)
    return str(directory)


def test_without_a_workspace_the_command_says_how_to_make_one(environment: dict[str, str], tmp_path: Path) -> None:
    islet = Islet(tmp_path, {key: value for key, value in environment.items() if key != "ISLET_WORKSPACE"})
    require_error(islet("registry", "up", code=MISSING), "no islet.toml", "islet init")


@pytest.mark.parametrize("service", ["platform", "registry", "warden"])
def test_a_service_that_is_not_running_is_named(plain: Islet, service: str) -> None:
    require_error(plain(service, "status", code=MISSING), f"the {service} is not running", f"islet {service} up")


def test_publishing_without_a_realm_image(plain: Islet) -> None:
    require_error(plain("realm", "publish", code=WRONG_INPUT), "vmlinuz", "islet realm build")


def test_measuring_without_a_realm_image(plain: Islet) -> None:
    require_error(plain("rim", "compute", "--realm", "realm.toml", code=WRONG_INPUT), "vmlinuz", "islet realm build")


def test_creating_a_realm_without_its_image(plain: Islet) -> None:
    for service in ("platform", "warden"):
        plain(service, "up")
    bare = plain("realm", "create", "--name", "one", "--no-metadata", code=WRONG_INPUT)
    require_error(bare, "vmlinuz", "islet realm build")
    require_error(plain("realm", "create", "--name", "one", code=None), "metadata.bin", "islet realm publish")


def test_realm_commands_without_a_warden(plain: Islet) -> None:
    for command in (("list",), ("start", "one"), ("inspect", "one")):
        require_error(plain("realm", *command, code=MISSING), "warden", "islet warden up")


def test_a_realm_that_is_unknown(plain: Islet) -> None:
    plain("warden", "up")
    require_error(plain("realm", "start", "ghost", code=WRONG_INPUT), "ghost")
    require_error(plain("app", "list", "ghost", code=WRONG_INPUT), "ghost")


@pytest.fixture
def bootable(plain: Islet) -> Islet:
    """A workspace with a realm image that can be measured and published; no test lets it run."""
    directory = plain.state / "realms" / "default"
    directory.mkdir(mode=0o700)
    kernel = bytearray(8192)
    kernel[0x202:0x206] = b"HdrS"
    (directory / "vmlinuz").write_bytes(kernel)
    (directory / "initramfs.cpio.zst").write_bytes(bytes(4096))
    plain("realm", "publish")
    return plain


def test_a_realm_without_qemu_names_the_package(bootable: Islet, tmp_path: Path) -> None:
    """The warden's own search path counts: it starts QEMU."""
    bootable("platform", "up")
    bootable("warden", "up", env={"PATH": path_without_qemu(tmp_path)})
    bootable("realm", "create", "--name", "one")
    refused = bootable("realm", "start", "one", code=MISSING)
    require_error(refused, "qemu-system-x86_64 is not installed", "apt-get install qemu-system-x86")
    described = next(realm for realm in bootable("realm", "list", "--json").json() if realm["name"] == "one")
    assert described["state"] == "Halted"
    assert "not installed" in described["last_error"]


def test_a_realm_without_a_platform(bootable: Islet) -> None:
    bootable("warden", "up")
    bootable("realm", "create", "--name", "one")
    require_error(bootable("realm", "start", "one", code=MISSING), "platform is not reachable", "islet platform up")


def test_a_realm_whose_files_are_gone(bootable: Islet) -> None:
    """The warden keeps copies, so what counts is what is in its own directory."""
    for service in ("platform", "warden"):
        bootable(service, "up")
    bootable("realm", "create", "--name", "one")
    next((bootable.state / "warden").glob("*/kernel-*")).unlink()
    require_error(bootable("realm", "start", "one", code=None), "kernel-")


def test_the_doctor_names_what_is_missing(plain: Islet, tmp_path: Path) -> None:
    told = plain("doctor", code=None, env={"PATH": path_without_qemu(tmp_path)})
    assert "qemu-system" in told.out
    assert "apt-get install" in told.out


# ------------------------------------------------------------------------------------ a busy port


def test_a_busy_port_of_the_registry(plain: Islet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        require_error(plain("registry", "serve", "--listen", address, code=MISSING), address, "--listen")
        settings = plain.root / "islet.toml"
        settings.write_text(settings.read_text().replace("127.0.0.1:0", address))
        require_error(plain("registry", "up", code=MISSING), f"{address}: the port is in use", "islet.toml")


def test_a_busy_published_port(bootable: Islet) -> None:
    for service in ("platform", "warden"):
        bootable(service, "up")
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        bootable("realm", "create", "--name", "one", "-p", f"{port}:80")
        refused = bootable("realm", "start", "one", code=MISSING)
        require_error(refused, f"port 127.0.0.1:{port} cannot be published: Address already in use", "0:GUEST")


def test_an_address_of_another_machine(plain: Islet) -> None:
    require_error(
        plain("registry", "serve", "--listen", "192.0.2.1:0", code=WRONG_INPUT), "192.0.2.1:0: not an address"
    )


# ------------------------------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_MIB}m,mode=0755", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def contents(directory: Path) -> dict[str, bytes | None]:
    """Every file below, whole; directories as None."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
        # What is held while a command runs, and nothing more.
        if path.name != ".lock" and not path.name.endswith(".lock")
    }


FullDisk = Callable[[Islet, Path, Path], Result]

FULL_DISK: dict[str, FullDisk] = {
    "image build": lambda islet, image, disk: islet(
        "image", "build", image.parent / "source", "-o", disk / "built", "--entrypoint", "/start", code=FAILED
    ),
    "image unpack": lambda islet, image, disk: islet("image", "unpack", image, disk / "unpacked", code=FAILED),
    "sign into a new layout": lambda islet, image, disk: islet("sign", image, "--into", disk / "signed", code=FAILED),
    "registry add": lambda islet, image, disk: islet("registry", "add", image, "--root", disk / "store", code=FAILED),
}


@root_only
@pytest.mark.parametrize("command", FULL_DISK)
def test_a_full_disk_is_named_and_leaves_nothing(plain: Islet, image: Path, small_disk: Path, command: str) -> None:
    (small_disk / "store").mkdir()
    before = contents(small_disk)
    require_error(FULL_DISK[command](plain, image, small_disk), "No space left on device", "free some space")
    assert contents(small_disk) == before


@root_only
def test_a_full_disk_keeps_the_application_that_is_there(
    plain: Islet, image: Path, small_disk: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    plain("image", "build", "/bin/true", "-o", first, "--tag", "v0", "--name", "sample")
    plain("registry", "add", first, "--root", small_disk)
    before = contents(small_disk)
    require_error(plain("registry", "add", image, "--root", small_disk, code=FAILED), "No space left on device")
    assert contents(small_disk) == before
    assert [item["name"] for item in plain("registry", "list", "--root", small_disk, "--json").json()] == ["sample"]
    plain("registry", "check", "--root", small_disk)


@root_only
def test_a_full_disk_under_the_realm_image(environment: dict[str, str], small_disk: Path) -> None:
    root = small_disk / "w"
    Islet(small_disk, environment)("init", root, "--listen", "127.0.0.1:0")
    islet = Islet(root, environment)
    result = islet("realm", "build", code=FAILED)
    require_error(result, "MiB free, a realm image needs", "free some space")
    assert not list((root / ".islet" / "realms").rglob("vmlinuz"))
    assert not list((root / ".islet" / "realms").rglob("initramfs*"))


def fill(disk: Path) -> None:
    """Leave not one byte free."""
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (1 << 16, 512):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


@root_only
def test_a_full_disk_keeps_a_key_whole_or_absent(plain: Islet, small_disk: Path) -> None:
    fill(small_disk)
    require_error(plain("key", "generate", "-o", small_disk / "new.prv", code=FAILED), "new.prv", "free some space")
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


@root_only
def test_a_full_disk_under_a_workspace(environment: dict[str, str], small_disk: Path) -> None:
    """What runs goes on, without its log; what must write says so."""
    root = small_disk / "w"
    Islet(small_disk, environment)("init", root, "--listen", "127.0.0.1:0")
    islet = Islet(root, environment)
    shutil.rmtree(islet.state / "platform")
    fill(small_disk)
    islet("registry", "up")
    islet("registry", "status")
    require_error(islet("platform", "up", code=FAILED), "No space left on device", "free some space")
    require_error(Islet(small_disk, environment)("init", small_disk / "other", code=None), "No space left on device")
    assert not (small_disk / "other" / "islet.toml").exists()
    islet("down")


# ------------------------------------------------------------------------------- somebody else's things


def as_nobody(islet: Islet, *arguments: str | Path) -> Result:
    """Run the command as a user who is neither root nor the owner of anything."""
    done = subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *islet.argv(*arguments)],
        cwd="/",
        env={key: value for key, value in islet.environment.items() if key != "XDG_RUNTIME_DIR"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def nobody(plain_workspace: Path, environment: dict[str, str]) -> None:
    """Other users can run the installed command at all; in a closed home directory they cannot."""
    if as_nobody(Islet(plain_workspace, environment), "--version").code != 0:
        pytest.skip("the installed command is closed to other users")


@pytest.fixture
def public_path(tmp_path: Path) -> Iterator[Path]:
    """`tmp_path` with every directory above it open to others for the length of the test."""
    with ExitStack() as stack:
        for directory in (tmp_path, *tmp_path.parents):
            mode = directory.stat().st_mode & 0o7777
            if not mode & 0o001:
                stack.callback(directory.chmod, mode)
                directory.chmod(mode | 0o005)
        yield tmp_path


@root_only
@pytest.mark.usefixtures("nobody")
def test_an_unreadable_key(plain: Islet, public_path: Path) -> None:
    key = public_path / "secret.prv"
    plain("key", "generate", "-o", key)
    for arguments in (("key", "show", key), ("key", "public", "-i", key, "-o", "/dev/null")):
        result = as_nobody(plain, *arguments)
        assert result.code == WRONG_INPUT
        require_error(result, str(key), "owner and mode")


@root_only
@pytest.mark.usefixtures("nobody")
def test_a_workspace_of_another_user(plain: Islet, public_path: Path) -> None:
    result = as_nobody(plain, "registry", "list", "--workspace", plain.root)
    assert result.code == WRONG_INPUT
    require_error(result, f"{plain.root}: belongs to user {os.geteuid()}, not to you", "your own")


@root_only
def test_the_state_of_another_user(plain: Islet) -> None:
    os.chown(plain.state, NOBODY, NOBODY)
    require_error(plain("registry", "list", code=WRONG_INPUT), f".islet: belongs to user {NOBODY}", "your own")
    os.chown(plain.state, os.geteuid(), os.getegid())


def test_a_workspace_that_others_may_write(plain: Islet) -> None:
    plain.root.chmod(0o777)
    require_error(plain("registry", "list", code=WRONG_INPUT), "writable by other users", f"chmod go-w {plain.root}")
    plain.root.chmod(0o755)


@root_only
def test_a_run_directory_of_another_user(plain: Islet, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "islet").mkdir(parents=True)
    os.chown(run / "islet", NOBODY, NOBODY)
    result = plain("platform", "up", code=WRONG_INPUT, env={"XDG_RUNTIME_DIR": str(run)})
    require_error(result, f"{run / 'islet'}: belongs to user {NOBODY}", "your own")


@root_only
@pytest.mark.parametrize("service", ["platform", "warden"])
def test_the_sockets_of_a_service_are_closed_to_others(plain: Islet, public_path: Path, service: str) -> None:
    """Another user's program cannot even connect: 0600 in 0700; and the service looks at who is there."""
    plain(service, "up")
    path = wait_until(
        lambda: next(Path(plain.environment["XDG_RUNTIME_DIR"]).glob(f"islet/*/{service}.sock"), None),
        f"{service}.sock",
    )
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    program = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
    done = subprocess.run(
        [
            "setpriv",
            f"--reuid={NOBODY}",
            f"--regid={NOBODY}",
            "--clear-groups",
            "/usr/bin/env",
            "python3",
            "-c",
            program,
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "PermissionError" in done.stderr
    plain(service, "down")


# ------------------------------------------------------------------------------------ malformed input


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("schema = 1\n[registry]\nlisten = 5\n", "registry.listen"),
        ("schema = 1\n[regisry]\n", "regisry"),
        ("schema = 2\n", "schema"),
        ("schema =", "islet.toml"),
        ("\xff\xfe", "islet.toml"),
    ],
)
def test_a_malformed_islet_toml(plain: Islet, text: str, problem: str) -> None:
    (plain.root / "islet.toml").write_bytes(text.encode("latin-1"))
    result = plain("registry", "list", code=WRONG_INPUT)
    require_error(result, "islet.toml: ")
    assert problem in result.err


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("vcpus = 2", "vcpus = 0"), "launch.vcpus"),
        (("vcpus = 2", "vcpu = 2"), "vcpu"),
        (("svn = 1\n", "svn = 0\n"), "svn"),
        (("sealing_svn = 1", "sealing_svn = 2"), "policy.sealing_svn = 2 is above svn = 1"),
        (("[launch]", "[launch"), "realm.toml"),
    ],
)
@pytest.mark.parametrize("command", ["build", "publish"])
def test_a_malformed_realm_toml(plain: Islet, change: tuple[str, str], problem: str, command: str) -> None:
    file = plain.root / "realm.toml"
    text = file.read_text()
    assert change[0] in text
    file.write_text(text.replace(*change, 1))
    result = plain("realm", command, code=WRONG_INPUT)
    require_error(result, f"{file}: ")
    assert problem in result.err


@pytest.mark.parametrize("text", ["not = [toml", "schema = 1\n", 'schema = 1\ncreated = "yesterday"\n'])
def test_a_malformed_lock(plain: Islet, text: str) -> None:
    (plain.root / "realm.lock").write_text(text)
    require_error(plain("realm", "build", code=WRONG_INPUT), "realm.lock: ")


def test_realm_commands_refuse_what_makes_no_sense(bootable: Islet, garbage: Path) -> None:
    for service in ("platform", "warden"):
        bootable(service, "up")
    create = ("realm", "create", "--name")
    require_error(bootable(*create, "NO", code=WRONG_INPUT), "realm name 'NO'")
    require_error(
        bootable(*create, "one", "-p", "5", code=WRONG_INPUT), "-p 5: expected [ADDRESS:]HOST:GUEST", "8080:80"
    )
    require_error(
        bootable(*create, "one", "--metadata", garbage / "text", code=WRONG_INPUT), "a metadata block has 432"
    )
    require_error(bootable(*create, "one", "--from", garbage, code=WRONG_INPUT), "realm.toml", "islet realm publish")
    bootable(*create, "one")
    require_error(bootable(*create, "one", code=FAILED), "named one exists already", "--name")
    require_error(bootable("app", "create", "one", "sample", code=MISSING), "the registry", "islet registry up")
    require_error(bootable("realm", "reboot", "one", code=FAILED), "one is Halted", "islet realm start one")
    bootable("app", "create", "one", "sample", "--registry", "127.0.0.1:5")
    require_error(bootable("app", "logs", "one", "sample", code=FAILED), "one is Halted", "islet realm start one")
    require_error(bootable("app", "reformat", "one", "sample", code=WRONG_INPUT), "would be lost", "--yes")
    require_error(bootable("app", "stop", "one", "other", code=WRONG_INPUT), "no application other")


def test_a_broken_realm_is_shown_with_its_cause(bootable: Islet) -> None:
    for service in ("platform", "warden"):
        bootable(service, "up")
    bootable("realm", "create", "--name", "one")
    bootable("warden", "down")
    launch = next((bootable.state / "warden").glob("*/launch.json"))
    launch.write_text("garbage")
    bootable("warden", "up")
    assert "launch.json: not valid JSON" in bootable("realm", "list").out
    refused = bootable("realm", "start", launch.parent.name, code=FAILED)
    require_error(refused, "launch.json: not valid JSON")


def test_a_damaged_disk_is_left_as_it_is(bootable: Islet) -> None:
    for service in ("platform", "warden"):
        bootable(service, "up")
    bootable("realm", "create", "--name", "one")
    disk = next((bootable.state / "warden").glob("*/disk.raw"))
    noise = os.urandom(disk.stat().st_size)
    disk.write_bytes(noise)
    require_error(bootable("realm", "start", "one", code=FAILED), "disk.raw", "restore the disk file")
    assert disk.read_bytes() == noise


def test_a_metadata_block_for_another_realm(bootable: Islet) -> None:
    for service in ("platform", "warden"):
        bootable(service, "up")
    (bootable.state / "realms" / "default" / "initramfs.cpio.zst").write_bytes(bytes(8192))
    bootable("realm", "create", "--name", "one")
    refused = bootable("realm", "start", "one", code=None)
    require_error(refused, "the metadata block is for RIM")
    assert refused.code in (REFUSED, FAILED)


@pytest.fixture
def garbage(tmp_path: Path) -> Path:
    """A directory of things that look like what a command wants and are not."""
    place = tmp_path / "garbage"
    place.mkdir()
    (place / "text").write_text("garbage\n")
    (place / "empty").touch()
    (place / "noise").write_bytes(bytes(range(256)) * 16)
    (place / "block").write_bytes(b"\x01" + bytes(431))
    (place / "json").write_text('{"realm": {}}')
    (place / "directory").mkdir()
    layout = place / "layout"
    (layout / "blobs" / "sha256").mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text("garbage")
    with tarfile.open(place / "archive.tar", "w") as archive:
        archive.add(place / "text", "../outside")
    return place


GARBAGE = [
    (("key", "show", "text"), WRONG_INPUT, "text: not a usable key", "SPKI"),
    (("key", "show", "empty"), WRONG_INPUT, "empty: ", None),
    (("key", "public", "-i", "noise", "-o", "out"), WRONG_INPUT, "noise: not a usable key", "SEC1"),
    (("key", "sign", "-k", "text", "-f", "text", "-s", "out"), WRONG_INPUT, "text: not a usable key", "SEC1"),
    (("key", "show", "directory"), WRONG_INPUT, "directory: Is a directory", None),
    (("key", "show", "absent"), WRONG_INPUT, "absent: No such file or directory", None),
    (("metadata", "verify", "-i", "text"), WRONG_INPUT, "text: 8 bytes long, a block has 432", None),
    (("metadata", "verify", "-i", "block"), REFUSED, "block: signature does not hold", None),
    (("metadata", "dump", "-i", "empty"), WRONG_INPUT, "empty: 0 bytes long", None),
    (("metadata", "create", "-m", "text", "-k", "KEY", "-o", "out"), WRONG_INPUT, "text: ", None),
    (("token", "show", "text"), WRONG_INPUT, "text: ", None),
    (("token", "show", "empty"), WRONG_INPUT, "empty: ", None),
    (("token", "verify", "noise", "--allow-emulated"), None, "noise: ", None),
    (("token", "verify", "TOKEN", "--cpak", "text"), WRONG_INPUT, "text: not a usable key", "SPKI"),
    (("token", "verify", "TOKEN", "--reference", "text"), WRONG_INPUT, "text: not valid JSON", None),
    (("token", "verify", "TOKEN", "--reference", "json"), WRONG_INPUT, "json: realm/reference-values", None),
    (("verify", "directory"), WRONG_INPUT, "directory: there is no file oci-layout", "oci-layout"),
    (("verify", "layout"), WRONG_INPUT, "layout: index.json: not valid JSON", None),
    (("verify", "absent"), WRONG_INPUT, "absent: does not exist", "OCI layout"),
    (("sign", "layout"), WRONG_INPUT, "layout: index.json: not valid JSON", None),
    (("registry", "add", "layout"), WRONG_INPUT, "layout: index.json: not valid JSON", None),
    (("registry", "add", "directory"), WRONG_INPUT, "directory: there is no file oci-layout", "oci-layout"),
    (("image", "inspect", "text"), WRONG_INPUT, "text: not a usable archive", "OCI layout directory"),
    (("image", "inspect", "noise"), WRONG_INPUT, "noise: not a usable archive", "OCI layout directory"),
    (("image", "inspect", "archive.tar"), WRONG_INPUT, "archive.tar: member '../outside' leaves the archive", None),
    (("image", "unpack", "layout", "out"), WRONG_INPUT, "layout: index.json: not valid JSON", None),
    (("image", "build", "text", "-o", "out"), WRONG_INPUT, "text: neither an ELF program nor a script", "#!"),
    (("image", "build", "absent", "-o", "out"), WRONG_INPUT, "absent: does not exist", None),
    (("app-manager", "--config", "text"), WRONG_INPUT, "text: the configuration: not a mapping", None),
    (("rim", "compute", "--realm", "text"), WRONG_INPUT, "text: ", None),
    (("run", "text"), 125, "text: neither an ELF program nor a script", "#!"),
    (("run", "absent"), 125, "absent: no such file", "program"),
]


@pytest.mark.parametrize(("arguments", "code", "error", "hint"), GARBAGE, ids=[" ".join(case[0]) for case in GARBAGE])
def test_garbage_is_named(
    plain: Islet, garbage: Path, arguments: tuple[str, ...], code: int | None, error: str, hint: str | None
) -> None:
    token = Path(__file__).parents[2] / "fixtures" / "vectors" / "attestation" / "token_profile_1_0.bin"
    stand_ins = {"KEY": plain.state / "keys" / "realm.pem", "TOKEN": token}
    before = sorted(path.name for path in garbage.iterdir())
    result = plain(
        *(stand_ins.get(word, word) for word in arguments),
        code=code,
        cwd=garbage,
        env={"ISLET_WORKSPACE": str(plain.root)},
    )
    assert result.code in (REFUSED, WRONG_INPUT, 125)
    require_error(result, error, hint)
    assert sorted(path.name for path in garbage.iterdir()) == before, "something was left behind"


def test_usage_errors_name_the_help(plain: Islet) -> None:
    require_error(plain("registry", "add", code=WRONG_INPUT), "Missing argument", "islet registry add --help")
    require_error(
        plain("registry", "serve", "--tls", "maybe", code=WRONG_INPUT), "maybe", "islet registry serve --help"
    )
    require_error(plain("nonsense", code=WRONG_INPUT), "nonsense", "--help")
