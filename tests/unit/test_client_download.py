"""The client against a scripted server: resume, retries, redirects, limits, wrong bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from registry_support import digest, image

from islet_cli.errors import InputError, IsletError, OperationError, UnavailableError, VerificationError
from islet_cli.oci.descriptor import MEDIA_INDEX, MEDIA_LAYER, MEDIA_MANIFEST, Descriptor, parse_descriptor
from islet_cli.oci.digest import Digest
from islet_cli.registry.client import RegistryClient, TlsOptions
from islet_cli.registry.client.api import choose, parse_platform
from islet_cli.registry.client.http import Backoff
from islet_cli.registry.client.pull import fetch_layers, pull

DATA = bytes(i * 7 % 251 for i in range(300_000))
BLOB = Descriptor(MEDIA_LAYER, Digest(digest(DATA)), len(DATA))
PATH = f"/v2/app/blobs/{BLOB.digest}"

Reply = bytes | None
Script = Callable[[str, dict[str, str]], Reply]


class Scripted:
    """Answers each request with the bytes that the script gives; None hangs up without a word."""

    def __init__(self, script: Script) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        # The client may leave at any time.
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as file:
            while line := file.readline():
                path = line.split()[1].decode()
                headers = {}
                while (line := file.readline()) not in (b"\r\n", b""):
                    key, _, value = line.decode().partition(":")
                    headers[key.lower()] = value.strip()
                self.requests.append((path, headers))
                reply = self._script(path, headers)
                if reply is None:
                    return
                connection.sendall(reply)
                if b"connection: close" in reply[:500].lower():
                    return

    def close(self) -> None:
        self._listener.close()


def reply(status: int, body: bytes = b"", length: int | None = None, **headers: str) -> bytes:
    """An HTTP answer; a length beyond the body breaks off."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{key.replace('_', '-')}: {value}" for key, value in headers.items()]
    if length is not None and length > len(body):
        lines.append("Connection: close")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def ranged(data: bytes, headers: dict[str, str], cut: int | None = None) -> bytes:
    """Serve `data` with ranges; break off after `cut` bytes."""
    match = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
    start = int(match[1]) if match else 0
    part = data[start:] if cut is None else data[start : start + cut]
    more = {"ETag": '"tag"'}
    if match:
        more["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
    return reply(206 if match else 200, part, len(data) - start, **more)


@pytest.fixture
def serve() -> Iterator[Callable[[Script], Scripted]]:
    servers = []

    def start(script: Script) -> Scripted:
        servers.append(Scripted(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


class Client(RegistryClient):
    """A client that notes its delays instead of waiting."""

    def __init__(self, server: Scripted) -> None:
        self.delays: list[float] = []
        super().__init__(f"127.0.0.1:{server.port}", TlsOptions(), backoff=Backoff(), sleep=self.delays.append)


Serve = Callable[[Script], Scripted]


def test_a_broken_transfer_resumes_where_it_broke(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda _path, headers: ranged(DATA, headers, cut=70_000))
    progress: list[int] = []
    client = Client(server)
    path = client.fetch_blob("app", BLOB, tmp_path, lambda done, _total: progress.append(done))
    assert path.read_bytes() == DATA and path.name == hashlib.sha256(DATA).hexdigest()
    ranges = [headers.get("range") for _, headers in server.requests]
    assert ranges == [None, "bytes=70000-", "bytes=140000-", "bytes=210000-", "bytes=280000-"]
    assert server.requests[1][1]["if-range"] == '"tag"'
    assert progress == sorted(progress) and progress[-1] == len(DATA)
    # Every try won something, so the count never grew: the delays are those of a first failure.
    assert len(client.delays) == 4 and max(client.delays) <= 0.5


def test_what_an_earlier_run_left_is_continued(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda _path, headers: ranged(DATA, headers))
    (tmp_path / f"{BLOB.digest.hex}.part").write_bytes(DATA[:1000])
    Client(server).fetch_blob("app", BLOB, tmp_path)
    assert [headers.get("range") for _, headers in server.requests] == ["bytes=1000-"]
    Client(server).fetch_blob("app", BLOB, tmp_path)
    assert len(server.requests) == 1


@pytest.mark.parametrize("left", [b"\0" * 1000, DATA + b"more", b"\0" * len(DATA)])
def test_wrong_leftovers_are_replaced(serve: Serve, tmp_path: Path, left: bytes) -> None:
    server = serve(lambda _path, headers: ranged(DATA, headers))
    (tmp_path / f"{BLOB.digest.hex}.part").write_bytes(left)
    assert Client(server).fetch_blob("app", BLOB, tmp_path).read_bytes() == DATA


def test_a_damaged_finished_file_is_fetched_again(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda _path, headers: ranged(DATA, headers))
    (tmp_path / BLOB.digest.hex).write_bytes(b"\0" * len(DATA))
    assert Client(server).fetch_blob("app", BLOB, tmp_path).read_bytes() == DATA


def test_a_partial_file_that_is_a_link_is_not_written_through(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda _path, headers: ranged(DATA, headers))
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / f"{BLOB.digest.hex}.part").symlink_to(victim)
    with pytest.raises(IsletError):
        Client(server).fetch_blob("app", BLOB, tmp_path)
    assert victim.read_bytes() == b"precious"


def test_a_server_without_ranges_starts_over(serve: Serve, tmp_path: Path) -> None:
    replies = iter([reply(200, DATA[:5000], len(DATA)), reply(200, DATA)])
    server = serve(lambda _path, _headers: next(replies))
    assert Client(server).fetch_blob("app", BLOB, tmp_path).read_bytes() == DATA


def test_416_starts_over_once(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / f"{BLOB.digest.hex}.part").write_bytes(DATA[:1000])
    server = serve(lambda _path, headers: reply(416) if "range" in headers else reply(200, DATA))
    assert Client(server).fetch_blob("app", BLOB, tmp_path).read_bytes() == DATA
    server = serve(lambda _path, _headers: reply(416))
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(OperationError, match="416"):
        Client(server).fetch_blob("app", BLOB, other)


@pytest.mark.parametrize(
    "content_range", ["bytes 0-299999/300000", "bytes 1000-299999/400000", "bytes 1000-299999/*", "nonsense", ""]
)
def test_a_206_that_is_not_what_was_asked_for_is_refused(serve: Serve, tmp_path: Path, content_range: str) -> None:
    (tmp_path / f"{BLOB.digest.hex}.part").write_bytes(DATA[:1000])
    server = serve(lambda _path, _headers: reply(206, DATA[1000:], Content_Range=content_range))
    with pytest.raises(OperationError, match="Content-Range"):
        Client(server).fetch_blob("app", BLOB, tmp_path)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (DATA[:-1] + b"\xff", "digest_mismatch"),
        (DATA + b"x", "size_mismatch"),
        (DATA[:-1], "size_mismatch"),
        (b"", "size_mismatch"),
    ],
)
def test_wrong_bytes_are_refused_at_once(serve: Serve, tmp_path: Path, body: bytes, code: str) -> None:
    server = serve(lambda _path, _headers: reply(200, body))
    client = Client(server)
    with pytest.raises(VerificationError) as caught:
        client.fetch_blob("app", BLOB, tmp_path)
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == [] and client.delays == []


def test_a_stream_without_end_stops_at_the_announced_size(serve: Serve, tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 X\r\nConnection: close\r\n\r\n"
    server = serve(lambda _path, _headers: head + DATA * 20)
    with pytest.raises(VerificationError) as caught:
        Client(server).fetch_blob("app", BLOB, tmp_path)
    assert caught.value.code == "size_mismatch" and list(tmp_path.iterdir()) == []


def test_an_empty_blob(serve: Serve, tmp_path: Path) -> None:
    empty = Descriptor(MEDIA_LAYER, Digest(digest(b"")), 0)
    server = serve(lambda _path, _headers: reply(200))
    assert Client(server).fetch_blob("app", empty, tmp_path).read_bytes() == b""


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_failures_are_tried_again(serve: Serve, tmp_path: Path, status: int) -> None:
    replies = iter([reply(status), None, reply(200, DATA)])
    server = serve(lambda _path, _headers: next(replies))
    client = Client(server)
    assert client.fetch_blob("app", BLOB, tmp_path).read_bytes() == DATA
    assert len(client.delays) == 2 and 0.5 <= client.delays[1] <= 1.0


def test_five_failures_are_enough(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda _path, _headers: reply(503))
    client = Client(server)
    with pytest.raises(OperationError, match="503") as caught:
        client.fetch_blob("app", BLOB, tmp_path)
    assert caught.value.code == "http_status" and len(server.requests) == 5 and len(client.delays) == 4


def test_retry_after_is_honoured_within_bounds(serve: Serve, tmp_path: Path) -> None:
    replies = iter([reply(429, Retry_After="7"), reply(503, Retry_After="99999"), reply(200, DATA)])
    server = serve(lambda _path, _headers: next(replies))
    client = Client(server)
    client.fetch_blob("app", BLOB, tmp_path)
    assert client.delays == [7.0, 60.0]


def test_other_failures_are_final_and_explained(serve: Serve, tmp_path: Path) -> None:
    body = json.dumps({"errors": [{"code": "DENIED", "message": "not \x1b[31myours"}]}).encode()
    server = serve(lambda _path, _headers: reply(403, body))
    with pytest.raises(OperationError) as caught:
        Client(server).fetch_blob("app", BLOB, tmp_path)
    assert caught.value.code == "http_status" and caught.value.details["status"] == 403
    assert "DENIED: not" in caught.value.message and "\x1b" not in caught.value.message
    assert len(server.requests) == 1


def test_nobody_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = RegistryClient(f"127.0.0.1:{port}", TlsOptions(), sleep=lambda _: None)
    with pytest.raises(UnavailableError, match="refused") as caught:
        client.fetch_blob("app", BLOB, tmp_path)
    assert (caught.value.code, caught.value.exit_code) == ("registry_unreachable", 3)


def test_redirects(serve: Serve, tmp_path: Path) -> None:
    target = serve(lambda _path, headers: ranged(DATA, headers))
    elsewhere = f"http://127.0.0.1:{target.port}/other?x=1"
    server = serve(lambda path, _headers: reply(307, Location="/moved" if path == PATH else elsewhere))
    assert Client(server).fetch_blob("app", BLOB, tmp_path).read_bytes() == DATA
    assert target.requests[0][0] == "/other?x=1"


@pytest.mark.parametrize("location", ["", "ftp://127.0.0.1/x", "http://[::1/x", "https://127.0.0.1/x"])
def test_redirects_to_nowhere(serve: Serve, tmp_path: Path, location: str) -> None:
    server = serve(lambda _path, _headers: reply(307, Location=location))
    with pytest.raises(VerificationError) as caught:
        Client(server).fetch_blob("app", BLOB, tmp_path)
    assert caught.value.code == "redirect_refused"


def test_redirects_without_end(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda _path, _headers: reply(302, Location=PATH))
    with pytest.raises(OperationError, match="redirects"):
        Client(server).fetch_blob("app", BLOB, tmp_path)
    assert len(server.requests) == 6


def test_an_idle_connection_that_the_server_closed_is_no_failure(serve: Serve) -> None:
    one = image(b"layer")
    closing = reply(200, one.manifest, Content_Type=MEDIA_MANIFEST)
    # The server hangs up after the answer without having said so.
    used: list[int] = []

    def script(_path: str, _headers: dict[str, str]) -> Reply:
        used.append(1)
        return closing if len(used) != 2 else None

    client = Client(serve(script))
    client.fetch_manifest("app", "v1")
    client.fetch_manifest("app", "v1")
    assert client.delays == [] and len(used) == 3


def manifests(one: Any, **headers: str) -> Script:
    return lambda _path, _headers: reply(200, one, **({"Content_Type": MEDIA_MANIFEST} | headers))


def test_manifest_by_tag_and_digest(serve: Serve) -> None:
    one = image(b"layer")
    client = Client(serve(manifests(one.manifest, Docker_Content_Digest=digest(one.manifest))))
    by_tag = client.fetch_manifest("app", "v1")
    by_digest = client.fetch_manifest("app", digest(one.manifest))
    assert by_tag.descriptor == by_digest.descriptor and by_tag.manifest == one.manifest
    assert by_tag.document.layers[0].digest == digest(b"layer")


@pytest.mark.parametrize(
    ("reference", "body", "headers", "code"),
    [
        (digest(b"other"), image(b"x").manifest, {}, "digest_mismatch"),
        ("v1", image(b"x").manifest, {"Docker_Content_Digest": digest(b"other")}, "digest_mismatch"),
        ("v1", image(b"x").manifest, {"Docker_Content_Digest": "nonsense"}, "digest_invalid"),
        ("v1", image(b"x").manifest, {"Content_Type": MEDIA_INDEX}, "media_type_mismatch"),
        ("v1", b'{"schemaVersion":2}', {"Content_Type": "text/html"}, "media_type_unsupported"),
        ("v1", b"[]", {}, "manifest_invalid"),
        ("v1", b"{", {}, "manifest_invalid"),
        ("v1", b'{"a":1,"a":2}', {}, "manifest_invalid"),
        ("v1", b" " * (4 << 20) + b"{}", {}, "manifest_invalid"),
    ],
)
def test_manifests_that_are_refused(serve: Serve, reference: str, body: bytes, headers: Any, code: str) -> None:
    with pytest.raises(IsletError) as caught:
        Client(serve(manifests(body, **headers))).fetch_manifest("app", reference)
    assert caught.value.code == code


@pytest.mark.parametrize("name", ["../x", "App", "a//b", "a b", "", "x@evil", "a" * 256])
def test_names_are_checked_before_anything_is_asked(serve: Serve, name: str) -> None:
    server = serve(lambda _path, _headers: reply(500))
    with pytest.raises(InputError) as caught:
        Client(server).fetch_manifest(name, "v1")
    assert caught.value.code == "name_invalid" and server.requests == []


@pytest.mark.parametrize("reference", [".x", "a/b", "sha256:short", "", "a b", "x:y"])
def test_references_are_checked_before_anything_is_asked(serve: Serve, reference: str) -> None:
    server = serve(lambda _path, _headers: reply(500))
    with pytest.raises(InputError):
        Client(server).fetch_manifest("app", reference)
    assert server.requests == []


def index_of(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": list(entries)}).encode()


def entry(data: bytes, kind: str = MEDIA_MANIFEST, architecture: str | None = None, **more: Any) -> dict[str, Any]:
    out = {"mediaType": kind, "digest": digest(data), "size": len(data), **more}
    return out | ({"platform": {"os": "linux", "architecture": architecture}} if architecture else {})


def content(*documents: tuple[str, bytes, str]) -> Script:
    """Serve documents by their reference."""
    table = {reference: (data, kind) for reference, data, kind in documents}

    def script(path: str, _headers: dict[str, str]) -> Reply:
        data, kind = table[path.rpartition("/")[2]]
        return reply(200, data, Content_Type=kind)

    return script


def test_the_platform_is_chosen_from_nested_indexes(serve: Serve) -> None:
    arm, intel = image(b"arm"), image(b"intel", architecture="amd64")
    inner = index_of(entry(intel.manifest, architecture="amd64"), entry(arm.manifest, architecture="aarch64"))
    outer = index_of(entry(inner, MEDIA_INDEX))
    script = content(
        ("v1", outer, MEDIA_INDEX),
        (digest(inner), inner, MEDIA_INDEX),
        (digest(arm.manifest), arm.manifest, MEDIA_MANIFEST),
        (digest(intel.manifest), intel.manifest, MEDIA_MANIFEST),
    )
    client = Client(serve(script))
    fetched = client.fetch_manifest("app", "v1", "linux/arm64")
    assert fetched.manifest == arm.manifest and [data for _, data in fetched.indexes] == [outer, inner]
    assert client.fetch_manifest("app", "v1", "linux/amd64").manifest == intel.manifest
    with pytest.raises(InputError) as caught:
        client.fetch_manifest("app", "v1", "linux/riscv64")
    assert caught.value.code == "platform_not_found"


def test_an_index_whose_child_lies_about_its_size(serve: Serve) -> None:
    one = image(b"arm")
    lying = index_of(entry(one.manifest, size=3))
    script = content(("v1", lying, MEDIA_INDEX), (digest(one.manifest), one.manifest, MEDIA_MANIFEST))
    with pytest.raises(VerificationError) as caught:
        Client(serve(script)).fetch_manifest("app", "v1")
    assert caught.value.code == "size_mismatch"


def test_nesting_is_bounded(serve: Serve) -> None:
    documents = [index_of(entry(image(b"x").manifest))]
    for _ in range(9):
        documents.append(index_of(entry(documents[-1], MEDIA_INDEX)))
    script = content(*[(digest(data), data, MEDIA_INDEX) for data in documents])
    with pytest.raises(InputError) as caught:
        Client(serve(script)).fetch_manifest("app", digest(documents[-1]))
    assert caught.value.code == "nesting_too_deep"


def test_an_entry_without_platform_fits_only_alone() -> None:
    first, second = (parse_descriptor(entry(data)) for data in (b"one", b"two"))
    assert choose((first,), parse_platform("linux/arm64"), "app") == first
    with pytest.raises(InputError):
        choose((first, second), parse_platform("linux/arm64"), "app")


@pytest.mark.parametrize("text", ["linux", "linux/", "a/b/c/d", "/x"])
def test_platforms_that_are_none(text: str) -> None:
    with pytest.raises(InputError):
        parse_platform(text)


def test_configuration(serve: Serve) -> None:
    one = image(b"layer")
    good = content(("v1", one.manifest, MEDIA_MANIFEST), (digest(one.config), one.config, "x"))
    client = Client(serve(good))
    assert client.fetch_config(client.fetch_manifest("app", "v1")).config == one.config
    for wrong, code in ((one.config[:-1] + b"!", "digest_mismatch"), (one.config + b" ", "size_mismatch")):
        bad = Client(serve(content(("v1", one.manifest, MEDIA_MANIFEST), (digest(one.config), wrong, "x"))))
        with pytest.raises(VerificationError) as caught:
            bad.fetch_config(bad.fetch_manifest("app", "v1"))
        assert caught.value.code == code


def test_layers_in_parallel_each_digest_once(serve: Serve, tmp_path: Path) -> None:
    layers = [bytes([number]) * 50_000 for number in range(6)]
    table = {digest(layer): layer for layer in layers}
    server = serve(lambda path, headers: ranged(table[path.rpartition("/")[2]], headers))
    descriptors = [Descriptor(MEDIA_LAYER, Digest(digest(layer)), len(layer)) for layer in [*layers, layers[0]]]
    seen: list[tuple[int, int]] = []
    files = fetch_layers(Client(server), "app", descriptors, tmp_path, lambda done, total: seen.append((done, total)))
    assert [file.read_bytes() for file in files] == [*layers, layers[0]]
    assert len(server.requests) == 6
    assert seen[-1] == (300_000, 300_000) and seen == sorted(seen)


def test_one_failing_layer_ends_the_batch(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda _path, _headers: reply(404))
    descriptors = [Descriptor(MEDIA_LAYER, Digest(digest(bytes([number]))), 1) for number in range(20)]
    with pytest.raises(InputError) as caught:
        fetch_layers(Client(server), "app", descriptors, tmp_path)
    assert caught.value.code == "http_status" and len(server.requests) <= 3
    twice = [descriptors[0], Descriptor(MEDIA_LAYER, descriptors[0].digest, 2)]
    with pytest.raises(InputError, match="two sizes"):
        fetch_layers(Client(server), "app", twice, tmp_path)


def test_pull_writes_a_complete_layout_or_nothing(serve: Serve, tmp_path: Path) -> None:
    one = image(b"first", b"second", b"first")
    documents = [("v1", one.manifest, MEDIA_MANIFEST), *((digest(data), data, "x") for data in one.blobs)]
    address = f"127.0.0.1:{serve(content(*documents)).port}"
    layout = pull(address, "app", "v1", tmp_path / "image", platform="linux/arm64")
    assert layout.tags["v1"].digest == digest(one.manifest) and layout.warnings == []
    with pytest.raises(InputError) as caught:
        pull(address, "app", "v1", tmp_path / "image")
    assert caught.value.code == "exists"
    broken = [(reference, b"?" * len(data) if data == b"second" else data, kind) for reference, data, kind in documents]
    with pytest.raises(VerificationError):
        pull(f"127.0.0.1:{serve(content(*broken)).port}", "app", "v1", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image"]


def test_warnings_are_kept_once_and_escaped(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda _path, headers: reply(200, DATA, Warning='299 - "old \x1b[31m"'))
    client = Client(server)
    client.fetch_blob("app", BLOB, tmp_path)
    (tmp_path / BLOB.digest.hex).unlink()
    client.fetch_blob("app", BLOB, tmp_path)
    assert client.warnings == ['299 - "old \N{REPLACEMENT CHARACTER}[31m"']


@pytest.mark.parametrize(
    ("address", "mode", "expected"),
    [
        ("host", "none", "host:1337"),
        ("host:80", "none", "host:80"),
        ("http://host:80/", "none", "host:80"),
        ("[::1]:80", "none", "[::1]:80"),
    ],
)
def test_addresses(address: str, mode: Any, expected: str) -> None:
    assert RegistryClient(address, TlsOptions(mode)).address == expected


@pytest.mark.parametrize("address", ["", ":80", "host:0", "host:99999", "https://host", "a/b", "u@host", "::1", "h o"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(InputError) as caught:
        RegistryClient(address, TlsOptions())
    assert caught.value.code == "address_invalid"


@pytest.mark.parametrize(
    "options",
    [("tls", None, None), ("none", Path("x"), None), ("ra-tls", Path("x"), None), ("tls", Path("x"), bytes), ("x",)],
)
def test_tls_options_that_contradict_themselves(options: Any) -> None:
    with pytest.raises(InputError):
        TlsOptions(*options)
