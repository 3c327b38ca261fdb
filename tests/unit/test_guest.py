"""Contained processes: what an application sees and what it cannot do. Needs root and namespaces."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from islet_cli import _native
from islet_cli.appmanager.container import LaunchError, NativeContainers, Process, ProcessSpec, identity_files
from islet_cli.appmanager.logring import LogRing
from islet_cli.appmanager.supervise import Supervisor
from islet_cli.errors import InputError, OperationError

BUSYBOX = Path("/bin/busybox")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root file system: busybox, and links that try to lead out."""
    if not BUSYBOX.exists():
        pytest.skip("needs busybox-static")
    base = tmp_path / "root"
    for directory in ("bin", "etc", "tmp"):
        (base / directory).mkdir(parents=True)
    for parent in (base, tmp_path):
        parent.chmod(0o755)
    shutil.copy(BUSYBOX, base / "bin" / "busybox")
    for name in ("sh", "id", "ls", "cat", "grep", "mknod", "mount", "hostname", "sleep", "wc", "kill", "touch"):
        (base / "bin" / name).symlink_to("busybox")
    (base / "etc" / "resolv.conf").symlink_to("../../../../../../../../etc/passwd")
    return base


class Run:
    """One process, its output and its end."""

    def __init__(self, root: Path, *argv: str, **changes: object) -> None:
        self.ring = LogRing()
        self._over = threading.Event()
        self.status = -1
        binds = tuple(identity_files(root.parent / "files", "app", fresh=True))
        members: dict[str, object] = {
            "root": root,
            "argv": argv,
            "env": ("PATH=/bin", "A=1"),
            "cwd": "/",
            "uid": 0,
            "gid": 0,
            "groups": (),
            "hostname": "app",
            "binds": binds,
        }
        self.spec = ProcessSpec(**(members | changes))  # type: ignore[arg-type]
        self.process: Process = NativeContainers().start(self.spec, self.ring.append, self._ended)

    def _ended(self, status: int) -> None:
        self.status = status
        self._over.set()

    def finish(self) -> str:
        assert self._over.wait(20)
        return self.text()

    def text(self) -> str:
        return self.ring.read(0, 1 << 20)[1].decode()

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 20
        while text not in self.text():
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.01)


@pytest.fixture(autouse=True)
def _namespaces(request: pytest.FixtureRequest) -> Iterator[None]:
    """Skip where the surroundings forbid what these tests are about."""
    if request.node.get_closest_marker("root") and os.geteuid() == 0:
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                import ctypes

                flags = 0x00020000 | 0x20000000 | 0x08000000 | 0x04000000
                os._exit(0 if ctypes.CDLL(None).unshare(flags) == 0 else 1)
            finally:
                os._exit(1)
        if os.waitpid(pid, 0)[1] != 0:
            pytest.skip("this machine forbids namespaces")
    yield


def shell(root: Path, script: str, **changes: object) -> str:
    # Standard error joins standard output: two pipes would be read in no certain order.
    return Run(root, "/bin/sh", "-c", f"exec 2>&1; {script}", **changes).finish()


@pytest.mark.root
def test_namespaces_are_its_own(root: Path) -> None:
    out = shell(root, "for n in mnt pid ipc uts net; do ls -l /proc/self/ns/$n; done; echo pid $$; hostname")
    for name in ("mnt", "pid", "ipc", "uts"):
        assert str(Path(f"/proc/self/ns/{name}").readlink()) not in out, name
    assert str(Path("/proc/self/ns/net").readlink()) in out
    assert "pid 2" in out and out.endswith("app\n")


@pytest.mark.root
def test_the_root_is_switched_and_the_old_one_is_gone(root: Path) -> None:
    out = shell(root, "ls /; cat /proc/mounts")
    assert str(root) not in out and "pytest" not in out
    assert set(out.split("\n/dev")[0].split()) >= {"bin", "etc", "proc", "dev", "tmp"}


@pytest.mark.root
def test_dev_holds_the_usual_devices_and_nothing_of_the_realm(root: Path) -> None:
    names = set(shell(root, "ls /dev").split())
    assert names == {
        *("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "fd", "stdin", "stdout", "stderr")
    }


@pytest.mark.root
def test_devices_cannot_be_made_or_used(root: Path) -> None:
    os.mknod(root / "smuggled", 0o20666, os.makedev(1, 3))
    out = shell(root, "mknod /x c 1 3; echo made $?; cat /smuggled; echo read $?; mount -t tmpfs none /tmp; echo $?")
    assert "made 1" in out and "read 1" in out and out.strip().endswith("1")


@pytest.mark.root
def test_privileges_are_few(root: Path) -> None:
    out = Run(root, "/bin/grep", "-E", "^(Cap|NoNewPrivs|SigIgn|SigBlk)", "/proc/self/status").finish()
    values = dict(line.split(":\t") for line in out.splitlines())
    assert values["NoNewPrivs"] == "1" and values["CapInh"] == values["CapAmb"] == "0" * 16
    mknod, sys_admin, sys_ptrace, sys_module = (1 << bit for bit in (27, 21, 19, 16))
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(values[name], 16) & (mknod | sys_admin | sys_ptrace | sys_module) == 0
        assert int(values[name], 16) & 1
    assert values["SigIgn"] == values["SigBlk"] == "0" * 16


@pytest.mark.root
def test_ids_groups_and_no_capabilities_for_others(root: Path) -> None:
    out = shell(root, "id; grep CapEff /proc/self/status", uid=1000, gid=1001, groups=(5, 6))
    assert "uid=1000 gid=1001 groups=5,6" in out and "CapEff:\t" + "0" * 16 in out


@pytest.mark.root
def test_proc_is_guarded(root: Path) -> None:
    out = shell(
        root,
        "(echo 1 > /proc/sys/kernel/sysrq); echo set $?; (echo b > /proc/sysrq-trigger); echo trigger $?;"
        "cat /proc/keys | wc -c; cat /proc/kmsg | wc -c; ls -l /proc/1/fd",
    )
    assert "set 1" in out and "trigger 1" in out
    assert "\n0\n0\n" in out
    assert "-> /" not in out.split("\n0\n0\n")[1]


@pytest.mark.root
def test_only_three_descriptors_are_inherited(root: Path, tmp_path: Path) -> None:
    leak = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        out = shell(root, "ls /proc/self/fd")
    finally:
        os.close(leak)
    assert out.split() == ["0", "1", "2", "3"]  # 3 is what ls reads the directory through


@pytest.mark.root
def test_files_are_bound_read_only_and_links_do_not_lead_out(root: Path) -> None:
    before = Path("/etc/passwd").read_bytes()
    out = shell(root, "cat /run/islet/volume.json; cat /etc/hostname; (echo x > /etc/resolv.conf); echo wrote $?")
    assert '"fresh":true' in out and "app\n" in out and "wrote 1" in out
    assert Path("/etc/passwd").read_bytes() == before
    assert (root / "etc" / "resolv.conf").is_file() and not (root / "etc" / "resolv.conf").is_symlink()


@pytest.mark.root
def test_the_working_directory_is_made_inside(root: Path) -> None:
    out = shell(root, "/bin/busybox pwd; ls -ld .", cwd="/a/b c/d", uid=7, gid=8)
    assert out.startswith("/a/b c/d\n") and (root / "a/b c/d").stat().st_uid == 7
    assert (root / "a").stat().st_uid == 0


@pytest.mark.root
def test_the_environment_is_exactly_what_was_given(root: Path) -> None:
    out = shell(root, "/bin/busybox env")
    assert {line for line in out.split() if not line.startswith(("SHLVL", "PWD", "_="))} == {"PATH=/bin", "A=1"}


@pytest.mark.root
@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 3", 3 << 8), ("kill -9 $$", 9), ("kill -15 $$", 15)]
)
def test_wait_statuses_are_raw(root: Path, script: str, status: int) -> None:
    run = Run(root, "/bin/sh", "-c", script)
    run.finish()
    assert run.status == status


@pytest.mark.root
def test_signals_reach_the_process_group(root: Path) -> None:
    run = Run(root, "/bin/sh", "-c", "trap 'echo got; exit 7' TERM; sleep 1000 & echo up; wait")
    run.wait_for("up")
    run.process.signal(signal.SIGTERM)
    assert "got" in run.finish() and run.status == 7 << 8


@pytest.mark.root
def test_a_kill_ends_everything_inside(root: Path) -> None:
    run = Run(
        root,
        "/bin/sh",
        "-c",
        "trap '' TERM; (trap '' TERM; while :; do echo x > /alive; sleep 0.05; done) & echo up; wait; sleep 1000",
    )
    run.wait_for("up")
    run.process.signal(signal.SIGTERM)
    assert run.process.wait(0.2) is None
    run.process.kill()
    assert run.process.wait(10) == 9
    (root / "alive").unlink(missing_ok=True)
    time.sleep(0.3)
    assert not (root / "alive").exists()


@pytest.mark.root
def test_orphans_end_with_the_application(root: Path) -> None:
    run = Run(root, "/bin/sh", "-c", "(while :; do echo x > /alive; sleep 0.05; done) & echo up")
    run.finish()
    (root / "alive").unlink(missing_ok=True)
    time.sleep(0.3)
    assert run.status == 0 and not (root / "alive").exists()


@pytest.mark.root
def test_output_of_both_streams_is_kept_and_they_can_be_opened_again(root: Path) -> None:
    out = shell(root, "echo out; echo err >&2; echo again > /dev/stdout; echo more > /dev/stderr", uid=9, gid=9)
    assert {"out", "err", "again", "more"} <= set(out.split())


@pytest.mark.root
@pytest.mark.parametrize(
    ("argv", "code"), [(("nosuch",), "not_found"), (("/etc",), "not_executable"), (("/bin/none",), "not_found")]
)
def test_a_program_that_cannot_run_is_told(root: Path, argv: tuple[str, ...], code: str) -> None:
    with pytest.raises(LaunchError) as caught:
        Run(root, *argv)
    assert caught.value.code == code and argv[0] in caught.value.message


@pytest.mark.root
def test_a_failed_set_up_names_its_step_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="bind-root"):
        Run(tmp_path / "missing" / "root", "/bin/sh")


@pytest.mark.root
def test_a_supervisor_stops_what_is_deaf(root: Path) -> None:
    run_spec = Run(root, "/bin/sh", "-c", "exit 0")
    run_spec.finish()
    script = ("/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    spec = ProcessSpec(**(run_spec.spec.__dict__ | {"argv": script}))
    supervisor = Supervisor(spec, signal.SIGTERM, NativeContainers(), grace_s=0.3)
    supervisor.start()
    assert supervisor.status().name == "ApplicationIsRunning"
    time.sleep(0.2)
    supervisor.stop()
    assert supervisor.status().name == "ApplicationNotStarted"


def test_arguments_are_checked_before_anything_happens() -> None:
    base = {"root": "/", "env": [], "uid": 0, "gid": 0, "groups": [], "hostname": b"", "binds": []}
    for argv, cwd in (([], b"/"), ([b"/a\0"], b"/"), ([b""], b"/"), ([b"/a"], b"relative")):
        with pytest.raises(InputError):
            _native.guest.spawn(argv=argv, cwd=cwd, **base)  # type: ignore[arg-type]


def test_kernel_refusals_carry_their_number() -> None:
    with pytest.raises(OperationError) as caught:
        _native.guest.unmount("/nonexistent/place")
    assert caught.value.code == "errno-2" and "/nonexistent/place" in caught.value.message
    with pytest.raises(ValueError, match="unknown action"):
        _native.guest.reboot("explode")


def test_addresses_are_listed() -> None:
    for name, loopback, address, _netmask, _destination in _native.guest.interface_addresses():
        assert name and address and isinstance(loopback, bool)
