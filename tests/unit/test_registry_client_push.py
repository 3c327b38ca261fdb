"""`islet image push` and the client behind it, against a registry of our own."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from registry_support import Image, describe, digest, image, make_setting, write_layout

from islet_cli.errors import InputError, IsletError, VerificationError
from islet_cli.oci import layout as layouts
from islet_cli.oci.descriptor import MEDIA_INDEX, MEDIA_MANIFEST
from islet_cli.registry.client import push as pushes
from islet_cli.registry.client.address import Credentials, TlsOptions, read_credentials
from islet_cli.registry.client.http import Backoff, Transport
from islet_cli.registry.push_listener import PushOptions
from islet_cli.registry.server import ServeOptions, running

IMAGE = image(os.urandom(700_000), b"second", b"", label="app")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "store").mkdir()
    options = ServeOptions(tmp_path / "store", "127.0.0.1:0", "none", push=PushOptions(str(tmp_path / "push.sock")))
    with running(options, tmp_path) as server:
        yield f"unix:{server.push_address}"


def transport(address: str) -> Transport:
    return Transport(address, TlsOptions(), backoff=Backoff(0.001, 0.01), sleep=lambda _: None)


def push(address: str, path: Path, source: str, name: str, reference: str, **options: Any) -> pushes.Sent:
    return pushes.push(transport(address), layouts.load(path), source, name, reference, **options)


def test_what_is_there_is_not_sent_again(address: str, tmp_path: Path) -> None:
    source = write_layout(tmp_path / "in", {"v1": IMAGE})
    done: list[int] = []
    sent = push(address, source, "v1", "app", "v1", report=lambda count, _total: done.append(count))
    assert len(sent.uploaded) == 4 and sent.present == [] and done[-1] == sent.bytes
    assert layouts.load(tmp_path / "store" / "app").tags["v1"].digest == digest(IMAGE.manifest)
    again = push(address, source, "v1", "app", "v2")
    assert again.uploaded == [] and len(again.present) == 4 and again.bytes == 0
    mounted = push(address, source, "v1", "team/other", "v1", mount_from="app")
    assert len(mounted.mounted) == 4 and mounted.uploaded == []
    by_digest = push(address, source, "v1", "app", digest(IMAGE.manifest))
    assert by_digest.to_json()["digest"] == digest(IMAGE.manifest)
    with pytest.raises(InputError, match="not sha256"):
        push(address, source, "v1", "app", digest(b"another"))


def write_index(path: Path, images: list[Image], **more: Any) -> bytes:
    """A layout with one index, tagged `multi`, over some images."""
    write_layout(path, {f"t{number}": one for number, one in enumerate(images)})
    children = [
        describe(MEDIA_MANIFEST, one.manifest, platform={"os": "linux", "architecture": one.architecture})
        for one in images
    ]
    index = json.dumps({"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": children, **more}).encode()
    (path / "blobs" / "sha256" / digest(index)[7:]).write_bytes(index)
    entry = describe(MEDIA_INDEX, index, annotations={"org.opencontainers.image.ref.name": "multi"})
    top = {"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": [entry]}
    (path / "index.json").write_text(json.dumps(top))
    return index


def test_an_index_with_its_images(address: str, tmp_path: Path) -> None:
    index = write_index(tmp_path / "in", [IMAGE, image(b"other", architecture="amd64")])
    assert push(address, tmp_path / "in", "multi", "app", "latest").digest == digest(index)
    stored = layouts.load(tmp_path / "store" / "app")
    assert stored.tags["latest"].digest == digest(index) and len(stored.manifests) == 2 and stored.warnings == []


@pytest.mark.parametrize("chunk", [1 << 20, 100_000, 65_536])
@pytest.mark.parametrize("cuts", [[], [30_000], [150_000, 250_000]])
def test_broken_connections_are_gone_on_from(address: str, tmp_path: Path, chunk: int, cuts: list[int]) -> None:
    source = write_layout(tmp_path / "in", {"v1": IMAGE})
    with flaky(address.removeprefix("unix:"), tmp_path / "flaky.sock", cuts):
        sent = push(f"unix:{tmp_path / 'flaky.sock'}", source, "v1", "app", "v1", chunk_bytes=chunk)
    assert sent.digest == digest(IMAGE.manifest) and cuts == []
    layouts.load(tmp_path / "store" / "app")


@contextlib.contextmanager
def flaky(target: str, path: Path, cuts: list[int]) -> Iterator[None]:
    """A socket in front of another; each connection that carries more bytes than the next cut is broken there."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    lock = threading.Lock()

    def forward(client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server, contextlib.suppress(OSError):
            server.connect(target)
            threading.Thread(target=back, args=(server, client), daemon=True).start()
            carried = 0
            while data := client.recv(4096):
                server.sendall(data)
                carried += len(data)
                with lock:
                    if cuts and carried > cuts[0]:
                        cuts.pop(0)
                        server.shutdown(socket.SHUT_RDWR)
                        client.shutdown(socket.SHUT_RDWR)
                        return

    def back(server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(4096):
                client.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=forward, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_a_registry_without_referrers_gets_a_tag(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = pushes._Push._put
    monkeypatch.setattr(pushes._Push, "_put", lambda *arguments: put(*arguments) and False)
    subject = describe(MEDIA_MANIFEST, IMAGE.manifest)
    for name in ("one", "two"):
        document = json.loads(image(name.encode()).manifest) | {"subject": subject, "artifactType": f"x/{name}"}
        artifact = Image([name.encode()], image(name.encode()).config, json.dumps(document).encode())
        source = write_layout(tmp_path / name, {name: artifact})
        for _ in range(2):
            push(address, source, name, "app", name)
    stored = layouts.load(tmp_path / "store" / "app")
    tag = digest(IMAGE.manifest).replace(":", "-")
    entries = json.loads(stored.read(stored.tags[tag]))["manifests"]
    assert [entry["artifactType"] for entry in entries] == ["x/one", "x/two"]


def test_passwords(tmp_path: Path) -> None:
    source = write_layout(tmp_path / "in", {"v1": IMAGE})
    users = tmp_path / "htpasswd"
    users.write_bytes(b"me:" + bcrypt.hashpw("pässword".encode(), bcrypt.gensalt(4)) + b"\n")
    made = make_setting(tmp_path)
    for tls in ("none", "tls"):
        options = PushOptions("127.0.0.1:0", tls, tmp_path / "server.crt", tmp_path / "server.key", users)
        with made.serving("none", push=options) as server:
            how = TlsOptions() if tls == "none" else TlsOptions("tls", tmp_path / "ca.crt")
            to = str(server.push_address)
            known = Transport(to, how, credentials=Credentials("me", "pässword"))
            assert pushes.push(known, layouts.load(source), "v1", f"{tls}/app", "v1").uploaded
            for given in (None, Credentials("me", "wrong")):
                with pytest.raises(IsletError) as caught:
                    pushes.push(Transport(to, how, credentials=given), layouts.load(source), "v1", "app", "v1")
                assert "401" in caught.value.message and "--credentials" in (caught.value.hint or "")
    with pytest.raises(InputError, match="in the clear"):
        Transport("registry.example:80", TlsOptions(), credentials=Credentials("me", "x"))
    assert "secret" not in repr(Credentials("me", "secret"))


@pytest.mark.parametrize(
    ("text", "mode"), [("me", 0o600), ("", 0o600), (":x", 0o600), ("me:x\ny", 0o600), ("me:x", 0o644)]
)
def test_credential_files(tmp_path: Path, text: str, mode: int) -> None:
    file = tmp_path / "credentials"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(InputError) as caught:
        read_credentials(file)
    assert caught.value.code in ("credentials_invalid", "not-private")


@pytest.mark.parametrize("location", ["http://elsewhere/x", "//elsewhere/x", "", "https://localhost/x", "file:///x"])
def test_uploads_stay_in_the_registry(location: str) -> None:
    for address in ("127.0.0.1:5000", "unix:/run/x.sock"):
        with pytest.raises(VerificationError):
            transport(address).resolve("/v2/app/blobs/uploads/", location)


def test_the_command(tmp_path: Path, address: str) -> None:
    source = write_layout(tmp_path / "in", {"v1": IMAGE})

    def islet(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "islet_cli", "image", "push", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    path = address.removeprefix("unix:")
    pushed = json.loads(islet(str(source), "team/app:v1", "--socket", path, "--json").stdout)
    assert (pushed["repository"], pushed["digest"]) == ("team/app", digest(IMAGE.manifest))
    assert islet(str(source), "team/app:v1", "--socket", path).stdout.endswith("4 there already\n")
    for arguments, code in (
        ([str(source), "app:v1"], 3),
        ([str(source), "App", "--socket", path], 2),
        ([str(source), "app", "--socket", "absent.sock"], 3),
        (["absent", "app", "--socket", path], 2),
        ([str(source), "docker://127.0.0.1:1/app", "--tls", "none", "--credentials", "absent"], 2),
    ):
        result = islet(*arguments)
        assert result.returncode == code and result.stderr.startswith("error: ") and "Traceback" not in result.stderr
