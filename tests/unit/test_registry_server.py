"""The pull endpoints over plain HTTP: answers, headers, errors, hostile paths, broken and changing stores."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_support import Image, Setting, digest, image, make_setting, request, write_layout

from islet_cli.errors import InputError, UnavailableError
from islet_cli.oci.descriptor import MEDIA_LAYER, MEDIA_MANIFEST
from islet_cli.registry.server import RegistryServer, running

LAYER = bytes(range(256)) * 40
IMAGE = image(LAYER, b"second", label="app")


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    made = make_setting(tmp_path_factory.mktemp("registry"))
    write_layout(made.store / "app", {"v1": IMAGE})
    write_layout(made.store / "team" / "nested", {"v1": IMAGE})
    return made


@pytest.fixture(scope="module")
def server(setting: Setting) -> Iterator[RegistryServer]:
    with setting.serving("none") as running_server:
        yield running_server


def blob_path(data: bytes, name: str = "app") -> str:
    return f"/v2/{name}/blobs/{digest(data)}"


def test_ping(server: RegistryServer) -> None:
    answer = request(server.address, "GET", "/v2/")
    assert (answer.status, answer.body) == (200, b"{}")
    assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"
    assert request(server.address, "GET", "/v2").headers["Location"] == "/v2/"


@pytest.mark.parametrize("name", ["app", "team/nested"])
@pytest.mark.parametrize("reference", ["v1", digest(IMAGE.manifest)])
def test_manifest(server: RegistryServer, name: str, reference: str) -> None:
    answer = request(server.address, "GET", f"/v2/{name}/manifests/{reference}")
    assert (answer.status, answer.body) == (200, IMAGE.manifest)
    assert answer.headers["Content-Type"] == MEDIA_MANIFEST
    assert answer.headers["Docker-Content-Digest"] == digest(IMAGE.manifest)
    head = request(server.address, "HEAD", f"/v2/{name}/manifests/{reference}")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(IMAGE.manifest))
    etag = {"If-None-Match": f'W/"other", "{digest(IMAGE.manifest)}"'}
    assert request(server.address, "GET", f"/v2/{name}/manifests/{reference}", etag).status == 304


def test_blob(server: RegistryServer) -> None:
    answer = request(server.address, "GET", blob_path(LAYER))
    assert (answer.status, answer.body) == (200, LAYER)
    assert answer.headers["Content-Type"] == MEDIA_LAYER
    assert answer.headers["ETag"] == f'"{digest(LAYER)}"'
    assert not [key for key in answer.headers if key.lower().startswith("x-islet")]
    head = request(server.address, "HEAD", blob_path(LAYER), {"Range": "bytes=1-2"})
    assert (head.status, head.headers["Content-Length"], head.body) == (206, "2", b"")


@pytest.mark.parametrize(
    ("wanted", "status", "content_range", "body"),
    [
        ("bytes=0-0", 206, f"bytes 0-0/{len(LAYER)}", LAYER[:1]),
        ("bytes=10-", 206, f"bytes 10-{len(LAYER) - 1}/{len(LAYER)}", LAYER[10:]),
        ("bytes=-5", 206, f"bytes {len(LAYER) - 5}-{len(LAYER) - 1}/{len(LAYER)}", LAYER[-5:]),
        ("bytes=0-999999", 206, f"bytes 0-{len(LAYER) - 1}/{len(LAYER)}", LAYER),
        (f"bytes={len(LAYER)}-", 416, f"bytes */{len(LAYER)}", None),
        ("bytes=-0", 416, f"bytes */{len(LAYER)}", None),
        ("bytes=9-3", 416, f"bytes */{len(LAYER)}", None),
        ("items=0-1", 200, None, LAYER),
        ("bytes=0-1,4-5", 200, None, LAYER),
        ("bytes=-", 200, None, LAYER),
    ],
)
def test_ranges(server: RegistryServer, wanted: str, status: int, content_range: str | None, body: bytes) -> None:
    answer = request(server.address, "GET", blob_path(LAYER), {"Range": wanted})
    assert (answer.status, answer.headers["Content-Range"]) == (status, content_range)
    if body is not None:
        assert answer.body == body
    else:
        assert answer.code == "SIZE_INVALID"


def test_if_range_of_another_content_gives_the_whole(server: RegistryServer) -> None:
    stale = {"Range": "bytes=0-1", "If-Range": '"sha256:other"'}
    assert request(server.address, "GET", blob_path(LAYER), stale).body == LAYER
    fresh = {"Range": "bytes=0-1", "If-Range": f'"{digest(LAYER)}"'}
    assert request(server.address, "GET", blob_path(LAYER), fresh).body == LAYER[:2]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2/absent/tags/list", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/absent/manifests/v1", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/app/manifests/absent", 404, "MANIFEST_UNKNOWN"),
        ("GET", f"/v2/app/manifests/{digest(b'absent')}", 404, "MANIFEST_UNKNOWN"),
        ("GET", f"/v2/app/manifests/{digest(LAYER)}", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/app/manifests/sha256:short", 400, "DIGEST_INVALID"),
        ("GET", "/v2/app/blobs/sha256:short", 400, "DIGEST_INVALID"),
        ("GET", f"/v2/app/blobs/{digest(b'absent')}", 404, "BLOB_UNKNOWN"),
        ("GET", f"/v2/app/blobs/{digest(IMAGE.manifest)}", 404, "BLOB_UNKNOWN"),
        ("GET", "/v2/app/referrers/sha256:short", 400, "DIGEST_INVALID"),
        ("GET", "/v2/app/tags/list?n=-1", 400, "UNSUPPORTED"),
        ("GET", "/v2/App/tags/list", 404, "NAME_INVALID"),
        ("POST", "/v2/App/blobs/uploads/", 400, "NAME_INVALID"),
        ("POST", "/v2/app/blobs/uploads/", 405, "UNSUPPORTED"),
        ("PUT", "/v2/app/manifests/v1", 405, "UNSUPPORTED"),
        ("DELETE", "/v2/app/manifests/v1", 405, "UNSUPPORTED"),
        ("GET", "/v2/_catalog", 404, "NAME_UNKNOWN"),
        ("GET", "/", 404, "NAME_UNKNOWN"),
    ],
)
def test_errors(server: RegistryServer, method: str, path: str, status: int, code: str) -> None:
    answer = request(server.address, method, path)
    assert (answer.status, answer.code) == (status, code)
    if status == 405:
        assert answer.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "app/../app",
        "app%2f..%2fapp",
        "%2e%2e",
        "app/",
        "/app",
        ".lock",
        "app/blobs",
        "app%00",
        "a" * 300,
        "app/.",
    ],
)
def test_hostile_names_reach_no_file(server: RegistryServer, name: str) -> None:
    answer = request(server.address, "GET", f"/v2/{name}/manifests/v1")
    assert answer.status == 404 and answer.code in ("NAME_INVALID", "NAME_UNKNOWN")


def test_tags(server: RegistryServer, setting: Setting) -> None:
    write_layout(setting.store / "tags", dict.fromkeys(("b", "a10", "B", "a2"), IMAGE))
    assert json.loads(request(server.address, "GET", "/v2/tags/tags/list").body) == {
        "name": "tags",
        "tags": ["B", "a10", "a2", "b"],
    }
    page = request(server.address, "GET", "/v2/tags/tags/list?n=2")
    assert json.loads(page.body)["tags"] == ["B", "a10"]
    assert page.headers["Link"] == '</v2/tags/tags/list?n=2&last=a10>; rel="next"'
    last = request(server.address, "GET", "/v2/tags/tags/list?n=2&last=a10")
    assert json.loads(last.body)["tags"] == ["a2", "b"] and "Link" not in last.headers


def test_client_cannot_ask_for_a_file(server: RegistryServer, setting: Setting) -> None:
    secret = setting.store / "secret"
    secret.write_text("secret")
    forged = {"X-Islet-Sendfile": str(secret), "X-Islet-Sendfile-Offset": "0", "X-Islet-Sendfile-Length": "6"}
    assert request(server.address, "GET", "/v2/", forged).body == b"{}"


def test_a_broken_application_is_reported_and_the_others_are_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_setting(tmp_path)
    write_layout(made.store / "good", {"v1": IMAGE})
    broken = write_layout(made.store / "broken", {"v1": IMAGE})
    victim = broken / "blobs" / "sha256" / digest(LAYER)[7:]
    victim.write_bytes(LAYER[:-1] + b"\x00")
    with made.serving("none") as server:
        assert request(server.address, "GET", "/v2/good/manifests/v1").status == 200
        assert request(server.address, "GET", "/v2/broken/manifests/v1").code == "NAME_UNKNOWN"
        problem = server.catalogue.problem("broken")
        assert problem is not None and problem.code == "digest_mismatch"
    assert "broken" in caplog.text and "digest_mismatch" in caplog.text


def test_an_application_is_read_again_when_its_index_changes(tmp_path: Path) -> None:
    made = make_setting(tmp_path)
    with made.serving("none") as server:
        assert request(server.address, "GET", "/v2/late/manifests/v1").status == 404
        layout = write_layout(made.store / "late", {"v1": IMAGE})
        assert request(server.address, "GET", "/v2/late/manifests/v1").status == 200
        text = (layout / "index.json").read_text()
        (layout / "index.json").write_text(text.replace('"v1"', '"v2"'))
        assert request(server.address, "GET", "/v2/late/manifests/v1").status == 404
        assert request(server.address, "GET", "/v2/late/manifests/v2").status == 200
        # A state that does not load leaves the last good one in service.
        (layout / "index.json").write_text("{")
        assert request(server.address, "GET", "/v2/late/manifests/v2").status == 200
        (layout / "oci-layout").unlink()
        assert request(server.address, "GET", "/v2/late/manifests/v2").status == 404


def test_a_blob_that_changed_since_loading_is_not_served(tmp_path: Path) -> None:
    made = make_setting(tmp_path)
    layout = write_layout(made.store / "app", {"v1": IMAGE})
    victim = layout / "blobs" / "sha256" / digest(LAYER)[7:]
    with made.serving("none") as server:
        assert request(server.address, "GET", blob_path(LAYER)).body == LAYER
        os.utime(victim)
        assert request(server.address, "GET", blob_path(LAYER)).body == LAYER
        victim.write_bytes(LAYER[:-1] + b"\x00")
        assert request(server.address, "GET", blob_path(LAYER)).code == "BLOB_UNKNOWN"
        victim.unlink()
        outside = tmp_path / "outside"
        outside.write_bytes(LAYER)
        victim.symlink_to(outside)
        assert request(server.address, "GET", blob_path(LAYER)).code == "BLOB_UNKNOWN"


def test_linked_directories_are_not_applications(tmp_path: Path) -> None:
    made = make_setting(tmp_path)
    write_layout(tmp_path / "elsewhere", {"v1": IMAGE})
    (made.store / "linked").symlink_to(tmp_path / "elsewhere")
    with made.serving("none") as server:
        assert request(server.address, "GET", "/v2/linked/manifests/v1").status == 404
        assert server.catalogue.names() == []


def test_referrers_of_a_layout(tmp_path: Path) -> None:
    made = make_setting(tmp_path)
    subject = digest(IMAGE.manifest)
    manifest = json.loads(image(b"signature").manifest)
    manifest |= {"artifactType": "application/x-test", "annotations": {"k": "v"}}
    manifest["subject"] = {"mediaType": MEDIA_MANIFEST, "digest": subject, "size": len(IMAGE.manifest)}
    artifact = Image([b"signature"], image(b"signature").config, json.dumps(manifest).encode())
    write_layout(made.store / "app", {"v1": IMAGE, "sig": artifact})
    with made.serving("none") as server:
        path = f"/v2/app/referrers/{subject}"
        (entry,) = json.loads(request(server.address, "GET", path).body)["manifests"]
        assert entry["digest"] == digest(artifact.manifest) and entry["artifactType"] == "application/x-test"
        other = request(server.address, "GET", f"{path}?artifactType=other")
        assert json.loads(other.body)["manifests"] == []
        assert other.headers["OCI-Filters-Applied"] == "artifactType"
        assert json.loads(request(server.address, "GET", f"/v2/none/referrers/{subject}").body)["manifests"] == []


def test_the_backend_socket_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    made = make_setting(tmp_path)
    with made.serving("none"):
        (socket,) = tmp_path.glob("registry-*/backend.sock")
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    assert list(tmp_path.glob("registry-*")) == []


def test_leftovers_of_a_killed_registry_are_swept_up(tmp_path: Path) -> None:
    made = make_setting(tmp_path)
    left = tmp_path / "registry-left"
    left.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(left / "backend.sock"))
        dead.listen()
    with made.serving("none"):
        assert not left.exists()
        # A second registry leaves the first one's socket alone.
        with made.serving("none"):
            assert len(list(tmp_path.glob("registry-*/backend.sock"))) == 2


def test_a_long_directory_name_is_no_obstacle(tmp_path: Path) -> None:
    made = make_setting(tmp_path)
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    with running(made.options("none"), deep) as server:
        assert request(server.address, "GET", "/v2/").status == 200
    assert list(deep.iterdir()) == []


def test_a_busy_port_is_named_with_its_mend(tmp_path: Path) -> None:
    made = make_setting(tmp_path)
    with made.serving("none") as server:
        busy = made.options("none", listen=server.address)
        with pytest.raises(UnavailableError, match="in use") as caught, running(busy, tmp_path):
            pass
    assert (caught.value.code, caught.value.exit_code) == ("port-busy", 3)
    assert "--listen" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"tls": "tls", "certificate": None}, "tls_config"),
        ({"tls": "tls", "key": Path("/dev/null")}, "tls_config"),
        ({"tls": "ra-tls", "policy": None}, "no-policy"),
        ({"tls": "none", "root": Path("/nonexistent")}, "no-such-file"),
        ({"tls": "none", "listen": "192.0.2.1:0"}, "bad-address"),
        ({"tls": "none", "listen": "nonsense"}, "bad-address"),
    ],
)
def test_unusable_options(tmp_path: Path, changes: dict[str, object], code: str) -> None:
    made = make_setting(tmp_path)
    with pytest.raises(InputError) as caught, running(made.options(**changes), tmp_path):  # type: ignore[arg-type]
        pass
    assert caught.value.code == code
    assert list(tmp_path.glob("registry-*")) == []


def test_many_requests_on_one_connection(server: RegistryServer) -> None:
    import http.client

    connection = http.client.HTTPConnection(server.address, timeout=20)
    for _ in range(3):
        for method, path, size in (("GET", blob_path(LAYER), len(LAYER)), ("HEAD", "/v2/", 0), ("GET", "/v2/x", None)):
            connection.request(method, path)
            body = connection.getresponse().read()
            assert size is None or len(body) == size
    connection.close()
