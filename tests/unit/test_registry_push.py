"""The push listener: who gets in, uploads that break and go on, what a store may become, what never happens."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from registry_support import Answer, digest, image, make_setting, request, write_layout

from islet_cli.errors import InputError, UnavailableError
from islet_cli.oci import layout as layouts
from islet_cli.oci.descriptor import MEDIA_INDEX, MEDIA_MANIFEST
from islet_cli.registry import store, uploads
from islet_cli.registry.credentials import Htpasswd, parse_htpasswd
from islet_cli.registry.gc import collect
from islet_cli.registry.push_listener import PushOptions, check
from islet_cli.registry.server import RegistryServer, ServeOptions, running

IMAGE = image(bytes(range(256)) * 300, b"second", label="app")


class Unix(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=20)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(self.path)


@dataclass
class Pushing:
    """A client of one push socket."""

    server: RegistryServer

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        assert self.server.push_address is not None
        connection = Unix(self.server.push_address)
        try:
            named = {key.replace("_", "-"): value for key, value in headers.items()}
            connection.request(method, path, body or None, named)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def begin(self, name: str = "app") -> str:
        location: str = self.ask("POST", f"/v2/{name}/blobs/uploads/").headers["Location"]
        return location

    def blob(self, data: bytes, name: str = "app") -> Answer:
        return self.ask("POST", f"/v2/{name}/blobs/uploads/?digest={digest(data)}", data)

    def manifest(self, data: bytes, reference: str, name: str = "app", kind: str = MEDIA_MANIFEST) -> Answer:
        return self.ask("PUT", f"/v2/{name}/manifests/{reference}", data, Content_Type=kind)

    def image(self, reference: str = "v1", name: str = "app") -> None:
        for data in IMAGE.blobs[:-1]:
            assert self.blob(data, name).status == 201
        assert self.manifest(IMAGE.manifest, reference, name).status == 201


def options(directory: Path, **changes: Any) -> ServeOptions:
    (directory / "store").mkdir(exist_ok=True)
    push = PushOptions(str(directory / "push.sock"))
    given: dict[str, Any] = {"root": directory / "store", "listen": "127.0.0.1:0", "tls": "none", "push": push}
    return ServeOptions(**(given | changes))


@pytest.fixture
def pushing(tmp_path: Path) -> Iterator[Pushing]:
    with running(options(tmp_path), tmp_path) as server:
        yield Pushing(server)


def test_what_was_pushed_is_pulled(pushing: Pushing, tmp_path: Path) -> None:
    assert pushing.blob(IMAGE.layers[0]).status == 201
    # Until a manifest names it, a blob is there for the pushing side only.
    path = f"/v2/app/blobs/{digest(IMAGE.layers[0])}"
    assert request(pushing.server.address, "GET", path).status == 404
    assert pushing.ask("GET", path).body == IMAGE.layers[0]
    assert pushing.ask("GET", path, Range="bytes=1-5").body == IMAGE.layers[0][1:6]
    pushing.image()
    assert request(pushing.server.address, "GET", path).body == IMAGE.layers[0]
    assert request(pushing.server.address, "GET", "/v2/app/manifests/v1").body == IMAGE.manifest
    loaded = layouts.load(tmp_path / "store" / "app")
    assert set(loaded.tags) == {"v1"} and loaded.warnings == []
    assert json.loads(pushing.ask("GET", "/v2/_catalog").body) == {"repositories": ["app"]}


def test_the_socket_is_its_owners(pushing: Pushing, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "push.sock").stat().st_mode) == 0o600
    with (
        pytest.raises(UnavailableError, match="another registry") as caught,
        running(options(tmp_path), tmp_path),
    ):
        pass
    assert caught.value.code == "socket-busy"


def test_a_socket_that_was_left_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(tmp_path / "push.sock"))
    with running(options(tmp_path), tmp_path) as server:
        assert Pushing(server).ask("GET", "/v2/").status == 200
    assert not (tmp_path / "push.sock").exists()
    (tmp_path / "push.sock").write_text("a file")
    with pytest.raises(InputError, match="no socket"), running(options(tmp_path), tmp_path):
        pass


@pytest.mark.parametrize(
    ("push", "text"),
    [
        (PushOptions("127.0.0.1:0"), "needs a credential"),
        (PushOptions("0.0.0.0:0", htpasswd=Path("x")), "in the clear"),
        (PushOptions("registry.example:0", htpasswd=Path("x")), "in the clear"),
        (PushOptions("0.0.0.0:0", "tls", htpasswd=Path("x")), "certificate"),
        (PushOptions("/run/x.sock", htpasswd=Path("x")), "neither"),
        (PushOptions("/" + "x" * 200), "too long"),
    ],
)
def test_listeners_that_would_let_strangers_push_do_not_start(tmp_path: Path, push: PushOptions, text: str) -> None:
    with pytest.raises(InputError, match=text) as caught, running(options(tmp_path, push=push), tmp_path):
        pass
    assert caught.value.code == "push_config"
    assert list(tmp_path.glob("registry-*")) == []


def test_tcp_asks_for_a_password_first(tmp_path: Path) -> None:
    users = tmp_path / "htpasswd"
    users.write_bytes(b"# comment\n\nme:" + bcrypt.hashpw(b"secret", bcrypt.gensalt(4)) + b"\n")
    push = PushOptions("127.0.0.1:0", htpasswd=users)
    check(push)
    with running(options(tmp_path, push=push), tmp_path) as server:
        address = str(server.push_address)

        def status(text: str | None, path: str = "/v2/", method: str = "GET") -> int:
            value = "Basic " + base64.b64encode(text.encode()).decode() if text is not None else "none"
            return request(address, method, path, {"Authorization": value}).status

        refused = request(address, "GET", "/v2/")
        assert (refused.status, refused.code) == (401, "UNAUTHORIZED")
        assert refused.headers["WWW-Authenticate"].startswith('Basic realm="islet"')
        assert status("me:secret") == 200 and status("me:secret") == 200
        assert [status(text) for text in ("me:wrong", "me:", "you:secret", "me", "me:secret\0", None)] == [401] * 6
        assert status("me:secret", "/v2/app/blobs/uploads/", "POST") == 202
        assert status("me:wrong", "/v2/app/blobs/uploads/", "POST") == 401
        # A user who was removed is out at once, and a broken file lets nobody in.
        users.write_bytes(b"you:" + bcrypt.hashpw(b"secret", bcrypt.gensalt(4)) + b"\n")
        assert status("me:secret") == 401 and status("you:secret") == 200
        users.write_text("you:secret\n")
        assert status("you:secret") == 401
        users.unlink()
        assert status("you:secret") == 401


@pytest.mark.parametrize("text", ["", "me:secret", "me:{SHA}x", ":$2b$10$" + "a" * 53, "me", "a:$2b$10$" + "a" * 52])
def test_malformed_password_files(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_htpasswd(text.encode(), what="file")
    assert caught.value.code == "htpasswd_invalid"
    line = "me:$2b$10$" + "a" * 53 + "\n"
    with pytest.raises(InputError):
        parse_htpasswd((line * 2).encode(), what="file")
    file = tmp_path / "htpasswd"
    file.write_text(line)
    file.chmod(0o666)
    with pytest.raises(InputError, match="others may change it"):
        Htpasswd(file)


def test_an_upload_goes_on_after_a_restart(tmp_path: Path) -> None:
    data = os.urandom(300_000)
    with running(options(tmp_path), tmp_path) as server:
        first = Pushing(server)
        location = first.begin("team/app")
        assert first.ask("PATCH", location, data[:100_000]).headers["Range"] == "0-99999"
    with running(options(tmp_path), tmp_path) as server:
        second = Pushing(server)
        told = second.ask("GET", location)
        assert (told.status, told.headers["Range"], told.headers["Islet-Upload-Offset"]) == (204, "0-99999", "100000")
        answer = second.ask("PATCH", location, data[100_000:], Content_Range="100000-299999")
        assert (answer.status, answer.headers["Range"]) == (202, "0-299999")
        assert second.ask("PUT", f"{location}?digest={digest(data)}").status == 201
        assert second.ask("GET", f"/v2/team/app/blobs/{digest(data)}").body == data
        assert second.ask("GET", location).code == "BLOB_UPLOAD_UNKNOWN"
    assert list((tmp_path / "store" / ".uploads").iterdir()) == []


def test_a_broken_connection_keeps_what_came(pushing: Pushing) -> None:
    data = os.urandom(200_000)
    location = pushing.begin()
    broken = Unix(str(pushing.server.push_address))
    broken.putrequest("PATCH", location)
    broken.putheader("Content-Length", str(len(data)))
    broken.endheaders(data[:150_000])
    broken.close()
    offset = 0
    for _ in range(200):
        offset = int(pushing.ask("GET", location).headers["Islet-Upload-Offset"])
        if offset == 150_000:
            break
    assert offset == 150_000
    put = pushing.ask("PUT", f"{location}?digest={digest(data)}", data[offset:], Content_Range="150000-199999")
    assert put.status == 201


def test_a_later_request_takes_an_upload_over(pushing: Pushing) -> None:
    data = os.urandom(100_000)
    location = pushing.begin()
    slow = Unix(str(pushing.server.push_address))
    slow.putrequest("PATCH", location)
    slow.putheader("Content-Length", "1000")
    slow.endheaders(b"x" * 10)
    time.sleep(0.5)  # its first bytes are to be there before the other request comes
    assert pushing.ask("PUT", f"{location}?digest={digest(data)}", data).status in (201, 400)
    slow.send(b"x" * 990)
    assert slow.getresponse().status == 404
    slow.close()


def test_an_upload_belongs_to_its_repository(pushing: Pushing) -> None:
    location = pushing.begin("one")
    assert pushing.ask("GET", location.replace("/one/", "/two/")).code == "BLOB_UPLOAD_UNKNOWN"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_wrong_digest_stores_nothing(pushing: Pushing, tmp_path: Path, chunked: bool) -> None:
    wrong = digest(b"other")
    location = pushing.begin()
    if chunked:
        assert pushing.ask("PATCH", location, b"data").status == 202
    answer = pushing.ask("PUT", f"{location}?digest={wrong}", b"" if chunked else b"data")
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    assert pushing.ask("GET", f"/v2/app/blobs/{wrong}").status == 404
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.name != ".lock"] == []


def test_sha512_and_the_algorithm_that_was_announced(pushing: Pushing) -> None:
    name = "sha512:" + hashlib.sha512(b"data").hexdigest()
    location = pushing.ask("POST", "/v2/app/blobs/uploads/?digest-algorithm=sha512").headers["Location"]
    assert pushing.ask("PUT", f"{location}?digest={name}", b"data").headers["Docker-Content-Digest"] == name
    assert pushing.ask("POST", "/v2/app/blobs/uploads/?digest-algorithm=md5").code == "DIGEST_INVALID"


def test_uploads_are_counted_and_given_up(tmp_path: Path) -> None:
    some = uploads.Uploads(tmp_path, limit=2, silence_s=1000)
    first, _second = some.create("a"), some.create("b/c")
    with pytest.raises(UnavailableError) as caught:
        some.create("a")
    assert caught.value.code == "too-many-uploads"
    # Another process may neither write to an open one nor sweep it up.
    other = uploads.Uploads(tmp_path, limit=9, silence_s=1000)
    with pytest.raises(UnavailableError, match="another process"):
        other.find("a", first.identifier)
    os.utime(first.path, (0, 0))
    assert uploads.sweep(tmp_path, 10) == 0 and first.path.exists()
    some.close()
    assert uploads.sweep(tmp_path, 10) == 1 and not first.path.exists()
    quick = uploads.Uploads(tmp_path, limit=9, silence_s=0)
    quick.create("a").touched -= 1
    assert quick.expire() >= 1


def test_too_many_uploads_are_told_to_come_again(pushing: Pushing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_files", lambda _directory: iter([Path("x")] * uploads.MAX_OPEN))
    answer = pushing.ask("POST", "/v2/app/blobs/uploads/")
    assert (answer.status, answer.code) == (429, "TOOMANYREQUESTS") and answer.headers["Retry-After"]


def test_a_full_disk_is_said_and_survived(pushing: Pushing, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    location = pushing.begin()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        answer = pushing.ask("PATCH", location, b"data")
        assert (answer.status, answer.code) == (507, "DENIED")
    assert pushing.ask("PUT", f"{location}?digest={digest(b'data')}", b"data").status == 201


def test_a_name_in_the_way_of_another(pushing: Pushing) -> None:
    pushing.image(name="team/app")
    for name in ("team", "team/app/more", "/".join("abcdefghi")):
        answer = pushing.blob(b"x", name)
        assert (answer.status, answer.code) == (400, "NAME_INVALID")


def test_a_manifest_must_be_one_that_loads(pushing: Pushing, tmp_path: Path) -> None:
    pushing.image()
    document = json.loads(IMAGE.manifest)
    document["layers"][0]["size"] += 1
    wrong_size = json.dumps(document).encode()
    child = {"mediaType": MEDIA_INDEX, "digest": digest(IMAGE.manifest), "size": len(IMAGE.manifest)}
    wrong_child = json.dumps({"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": [child]}).encode()
    before = (tmp_path / "store" / "app" / "index.json").read_bytes()
    for data, kind in ((wrong_size, MEDIA_MANIFEST), (wrong_child, MEDIA_INDEX), (b"[]", MEDIA_MANIFEST), (b"{}", "")):
        answer = pushing.manifest(data, "bad", kind=kind)
        assert (answer.status, answer.code) == (400, "MANIFEST_INVALID")
    assert (tmp_path / "store" / "app" / "index.json").read_bytes() == before
    assert layouts.load(tmp_path / "store" / "app").warnings == []
    too_large = pushing.manifest(b" " * ((4 << 20) + 1), "big")
    assert (too_large.status, too_large.code) == (413, "SIZE_INVALID")


def test_documents_of_other_types(pushing: Pushing) -> None:
    kind = "application/vnd.example.thing+json"
    assert pushing.manifest(b'{"a": 1}', "thing", kind=kind).status == 201
    for reference in ("thing", digest(b'{"a": 1}')):
        answer = pushing.ask("GET", f"/v2/app/manifests/{reference}")
        assert (answer.body, answer.headers["Content-Type"]) == (b'{"a": 1}', kind)
    assert pushing.manifest(b'{"layers": []}', "thing", kind=kind).code == "MANIFEST_INVALID"


def test_a_tag_that_moves_leaves_its_image(pushing: Pushing, tmp_path: Path) -> None:
    pushing.image()
    other = json.dumps(json.loads(IMAGE.manifest) | {"annotations": {"a": "b"}}).encode()
    assert pushing.manifest(other, "v1").status == 201
    assert pushing.ask("GET", f"/v2/app/manifests/{digest(IMAGE.manifest)}").body == IMAGE.manifest
    assert pushing.ask("GET", "/v2/app/manifests/v1").body == other
    assert len(layouts.load(tmp_path / "store" / "app").index.manifests) == 2
    assert collect(tmp_path / "store", older_than_s=0)[0].removed == []
    assert collect(tmp_path / "store", older_than_s=0, untagged=True, dry_run=True)[0].removed == [
        f"blobs/sha256/{digest(IMAGE.manifest)[7:]}"
    ]
    assert len(collect(tmp_path / "store", older_than_s=0, untagged=True)[0].removed) == 1
    assert pushing.ask("GET", f"/v2/app/manifests/{digest(IMAGE.manifest)}").status == 404
    assert layouts.load(tmp_path / "store" / "app").warnings == []


def test_what_is_deleted_but_still_named(pushing: Pushing, tmp_path: Path) -> None:
    pushing.image()
    path = f"/v2/app/blobs/{digest(IMAGE.layers[0])}"
    assert pushing.ask("DELETE", path).status == 202
    for answer in (pushing.ask("GET", path), request(pushing.server.address, "GET", path), pushing.ask("DELETE", path)):
        assert (answer.status, answer.code) == (404, "BLOB_UNKNOWN")
    assert pushing.manifest(IMAGE.manifest, "v2").code == "MANIFEST_BLOB_UNKNOWN"
    mount = f"/v2/other/blobs/uploads/?mount={digest(IMAGE.layers[0])}"
    assert pushing.ask("POST", mount + "&from=app").status == 202 and pushing.ask("POST", mount).status == 202
    # The layout stays one that every tool can load; the mark goes with what it marks.
    layouts.load(tmp_path / "store" / "app")
    assert pushing.blob(IMAGE.layers[0]).status == 201
    assert request(pushing.server.address, "GET", path).body == IMAGE.layers[0]
    pushing.ask("DELETE", path)
    store.add(tmp_path / "store", write_layout(tmp_path / "in", {"v1": IMAGE}))
    assert pushing.ask("GET", path).status == 200
    pushing.ask("DELETE", path)
    assert pushing.ask("DELETE", f"/v2/app/manifests/{digest(IMAGE.manifest)}").status == 202
    collected = collect(tmp_path / "store", older_than_s=0)
    assert len(collected[0].removed) == 3
    assert "deleted" not in (tmp_path / "store" / "app" / "index.json").read_text()


def test_a_mounted_blob_is_one_file(pushing: Pushing, tmp_path: Path) -> None:
    pushing.image()
    layer = digest(IMAGE.layers[0])
    answer = pushing.ask("POST", f"/v2/other/blobs/uploads/?mount={layer}&from=app")
    assert (answer.status, answer.headers["Location"]) == (201, f"/v2/other/blobs/{layer}")
    files = [tmp_path / "store" / name / "blobs" / "sha256" / layer[7:] for name in ("app", "other")]
    assert files[0].samefile(files[1])
    # A manifest is no blob, and what does not have its digest is not passed on.
    assert pushing.ask("POST", f"/v2/other/blobs/uploads/?mount={digest(IMAGE.manifest)}&from=app").status == 202
    files[0].write_bytes(b"damaged")
    assert pushing.ask("POST", f"/v2/third/blobs/uploads/?mount={layer}&from=app").status == 202


def test_young_blobs_are_left_to_their_push(pushing: Pushing, tmp_path: Path) -> None:
    pushing.blob(b"young")
    pushing.blob(b"old")
    pushing.blob(b"asked for")
    for data in (b"old", b"asked for"):
        os.utime(tmp_path / "store" / "app" / "blobs" / "sha256" / digest(data)[7:], (0, 0))
    assert pushing.ask("HEAD", f"/v2/app/blobs/{digest(b'asked for')}").status == 200
    assert pushing.ask("HEAD", f"/v2/app/blobs/{digest(b'asked for')}").status == 200
    (item,) = collect(tmp_path / "store", older_than_s=1000)
    assert item.removed == [f"blobs/sha256/{digest(b'old')[7:]}"] and item.bytes == 3


def test_a_damaged_repository_is_not_built_upon(pushing: Pushing, tmp_path: Path) -> None:
    pushing.image()
    victim = tmp_path / "store" / "app" / "blobs" / "sha256" / digest(IMAGE.layers[1])[7:]
    victim.unlink()
    answer = pushing.manifest(IMAGE.manifest, "v2")
    assert (answer.status, answer.code) == (500, "DENIED")
    assert [item.problem.partition(":")[0] for item in collect(tmp_path / "store", older_than_s=0)] == ["blob_missing"]
    # Pushing what is missing mends it.
    assert pushing.blob(IMAGE.layers[1]).status == 201
    assert pushing.manifest(IMAGE.manifest, "v2").status == 201


def test_racing_pushes_of_one_digest(pushing: Pushing, tmp_path: Path) -> None:
    data = os.urandom(2 << 20)
    found: list[int] = []

    def push(name: str) -> None:
        found.append(pushing.blob(data, name).status)
        for blob in IMAGE.blobs[:-1]:
            found.append(pushing.blob(blob, name).status)
        found.append(pushing.manifest(IMAGE.manifest, f"t{threading.get_ident()}", name).status)

    threads = [threading.Thread(target=push, args=(name,)) for name in ("app", "app", "app", "new/one", "new/two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {201} and len(found) == 25
    assert len(layouts.load(tmp_path / "store" / "app").tags) == 3
    assert all(error is None for _, error, _ in store.check(tmp_path / "store"))


def test_the_pull_listener_takes_nothing(pushing: Pushing, tmp_path: Path) -> None:
    pushing.image()
    address = pushing.server.address
    for method, path in (
        ("POST", "/v2/app/blobs/uploads/"),
        ("POST", f"/v2/app/blobs/uploads/?digest={digest(b'x')}"),
        ("PUT", "/v2/app/manifests/v1"),
        ("DELETE", "/v2/app/manifests/v1"),
        ("DELETE", f"/v2/app/blobs/{digest(IMAGE.layers[0])}"),
        ("PATCH", pushing.begin()),
    ):
        assert request(address, method, path, body=b"x").code == "UNSUPPORTED"
    assert request(address, "GET", "/v2/_catalog").status == 404
    assert request(address, "GET", pushing.begin()).status == 404


def test_pushing_over_tls(tmp_path: Path) -> None:
    made = make_setting(tmp_path)
    users = tmp_path / "htpasswd"
    users.write_bytes(b"me:" + bcrypt.hashpw(b"secret", bcrypt.gensalt(4)) + b"\n")
    push = PushOptions("0.0.0.0:0", "tls", tmp_path / "server.crt", tmp_path / "server.key", users)
    with running(made.options("ra-tls", push=push), tmp_path) as server:
        import ssl

        context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
        port = int(str(server.push_address).rpartition(":")[2])
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=20)
        connection.request("GET", "/v2/", headers={"Authorization": "Basic " + base64.b64encode(b"me:secret").decode()})
        assert connection.getresponse().read() == b"{}"
        connection.close()
