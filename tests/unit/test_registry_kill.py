"""kill -9 at every step that a push takes on the disk, and of a whole server in the midst of one.

A child process pushes through the library and is killed before its n-th call into the file system, for every
n there is. Afterwards everything that it said is done must be there, and everything that is there be whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from registry_support import digest, image

from islet_cli.oci import layout as layouts
from islet_cli.oci.descriptor import MEDIA_MANIFEST
from islet_cli.oci.digest import Digest
from islet_cli.registry import store
from islet_cli.registry.catalogue import Catalogue
from islet_cli.registry.gc import collect
from islet_cli.registry.pushed import read_pushed
from islet_cli.registry.uploads import Uploads
from islet_cli.registry.writer import Writer

OLD, NEW = image(b"old layer", label="app"), image(b"new layer", label="app")
STEPS = ("mkdir", "pwrite", "write", "fsync", "ftruncate", "link", "rename", "replace", "unlink", "rmdir")


def push_blob(root: Path, data: bytes) -> None:
    uploads, writer = Uploads(root), Writer(Catalogue(root))
    upload = uploads.create("app")
    claim = upload.claim()
    upload.append(claim, data[:3])
    upload.append(claim, data[3:])
    wanted = Digest(digest(data))
    assert upload.seal(claim, "sha256") == wanted
    writer.land(upload, claim, wanted)
    uploads.discard(upload)


def push_manifest(root: Path, data: bytes, tag: str) -> None:
    Writer(Catalogue(root)).put_manifest("app", read_pushed(data, MEDIA_MANIFEST, None), [tag])


def actions(root: Path) -> list[tuple[str, Callable[[], None]]]:
    """What a client does, each with the name under which it is acknowledged."""
    new = Digest(digest(NEW.manifest))
    return [
        *((f"blob {digest(data)}", lambda data=data: push_blob(root, data)) for data in NEW.blobs[:-1]),  # type: ignore[misc]
        ("tag v2", lambda: push_manifest(root, NEW.manifest, "v2")),
        ("tag v1 moved", lambda: push_manifest(root, NEW.manifest, "v1")),
        ("mount", lambda: _mount(root)),
        ("deleted", lambda: Writer(Catalogue(root)).delete_manifest("app", new)),
        ("collected", lambda: _collect(root)),
    ]


def _mount(root: Path) -> None:
    assert Writer(Catalogue(root)).mount("other", Digest(digest(b"new layer")), "app")


def _collect(root: Path) -> None:
    collect(root, older_than_s=0, untagged=True)


def run_until(root: Path, limit: int) -> tuple[bool, list[str]]:
    """Push in a child that is killed before step `limit`; whether it was, and what it acknowledged."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.close(reading)
            _child(root, limit, writing)
        os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as said:
        acknowledged = said.read().splitlines()
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, acknowledged
    return os.WIFSIGNALED(status), acknowledged


def _child(root: Path, limit: int, writing: int) -> None:
    count = 0
    say = os.write

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **named)

        return call

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
    for name, action in actions(root):
        action()
        say(writing, f"{name}\n".encode())
    os._exit(0)


def require_whole(root: Path, acknowledged: list[str]) -> None:
    """Every layout loads, and what was acknowledged is there."""
    Uploads(root).expire()
    for name, error, _ in store.check(root):
        assert error is None, (name, error)
    stored = layouts.load(root / "app")
    files = {path.name: path for path in root.glob("app/blobs/sha256/*") if not path.name.startswith(".")}
    for name, path in files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == name
    if "mount" in acknowledged:
        # Deletion and collection are under way or done: only what they may take is gone.
        assert digest(NEW.manifest) not in stored.blobs or "deleted" not in acknowledged
        return
    for said in acknowledged:
        if said.startswith("blob "):
            assert said.partition(":")[2] in files
    if "tag v2" in acknowledged:
        assert stored.tags["v2"].digest == digest(NEW.manifest)
    moved = stored.tags["v1"].digest == digest(NEW.manifest)
    assert moved or stored.tags["v1"].digest == digest(OLD.manifest)
    assert moved or "tag v1 moved" not in acknowledged


def test_a_kill_at_any_step_loses_nothing(tmp_path: Path) -> None:
    killed, limit = True, 0
    while killed:
        limit += 1
        root = tmp_path / str(limit)
        root.mkdir()
        for data in OLD.blobs[:-1]:
            push_blob(root, data)
        push_manifest(root, OLD.manifest, "v1")
        killed, acknowledged = run_until(root, limit)
        require_whole(root, acknowledged)
        # The same client comes again and gets through: nothing is in the way.
        if killed and limit % 5 == 0:
            killed_again, all_of_it = run_until(root, 1 << 30)
            assert not killed_again and len(all_of_it) == len(actions(root))
    assert limit > 60


def test_a_killed_server_lets_an_upload_go_on(tmp_path: Path) -> None:
    from test_registry_push import Unix

    (tmp_path / "store").mkdir()
    command = [sys.executable, "-m", "islet_cli", "registry", "serve", "--root", "store", "--tls", "none"]
    command += ["--listen", "127.0.0.1:0", "--push-listen", str(tmp_path / "push.sock")]
    environment = dict(os.environ, TMPDIR=str(tmp_path))
    data = os.urandom(1 << 20)
    location, offset = "/v2/app/blobs/uploads/", 0
    for number in range(3):
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment)
        try:
            assert process.stderr is not None
            next(line for line in process.stderr if line.startswith("registry at"))
            connection = Unix(str(tmp_path / "push.sock"))
            if number == 0:
                connection.request("POST", location)
                answer = connection.getresponse()
                answer.read()
                location = answer.headers["Location"]
            connection.request("GET", location)
            answer = connection.getresponse()
            answer.read()
            assert int(answer.headers["Islet-Upload-Offset"]) >= offset
            offset = int(answer.headers["Islet-Upload-Offset"])
            if number == 2:
                connection.request("PUT", f"{location}?digest={digest(data)}", data[offset:])
                assert connection.getresponse().status == 201
                break
            connection.request("PATCH", location, data[offset : offset + 300_000])
            answer = connection.getresponse()
            assert answer.status == 202
            answer.read()
            offset += 300_000
            # And in the midst of another chunk.
            connection.putrequest("PATCH", location)
            connection.putheader("Content-Length", "200000")
            connection.endheaders(data[offset : offset + 100_000])
        finally:
            process.kill()
            process.communicate()
    file = tmp_path / "store" / "app" / "blobs" / "sha256" / digest(data)[7:]
    assert file.read_bytes() == data


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("ERROR")
