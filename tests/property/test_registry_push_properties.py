"""The push side's parsers and upload sessions: any name, range, credential or order of requests."""

from __future__ import annotations

import asyncio
import hashlib
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from islet_cli.errors import InputError
from islet_cli.oci import layout as layouts
from islet_cli.oci.descriptor import MEDIA_INDEX, MEDIA_MANIFEST
from islet_cli.registry.answers import Refused, parse_target
from islet_cli.registry.app import RegistryApp
from islet_cli.registry.catalogue import Catalogue
from islet_cli.registry.credentials import parse_htpasswd
from islet_cli.registry.push import PushEndpoints
from islet_cli.registry.pushed import read_pushed
from islet_cli.registry.uploads import Uploads
from islet_cli.registry.writer import Writer

Answer = tuple[int, dict[str, str], bytes]


def make_app(root: Path) -> RegistryApp:
    catalogue = Catalogue(root)
    return RegistryApp(catalogue, writing=PushEndpoints(Writer(catalogue), Uploads(root, limit=1 << 20)))


def ask(app: RegistryApp, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
    """One request, the ASGI way."""
    sent: list[Any] = []
    raw, _, query = path.encode("latin-1", "replace").partition(b"?")
    named = [(key.replace("_", "-").lower().encode(), value.encode("latin-1")) for key, value in headers.items()]
    scope = {
        "type": "http",
        "method": method,
        "path": raw.decode("latin-1"),
        "raw_path": raw,
        "query_string": query,
        "headers": [(b"host", b"x"), (b"content-length", str(len(body)).encode()), *named],
        "server": ("x", 80),
    }
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return pending.pop() if pending else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    found = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(item.get("body", b"") for item in sent[1:])


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RegistryApp, Path]]:
    base = tmp_path_factory.mktemp("base")
    (base / "store").mkdir()
    yield make_app(base / "store"), base


PIECES = st.sampled_from(
    ["/", "v2", "..", ".", "%2f", "%2e", "%00", "app", "blobs", "manifests", "tags/list", "uploads", "x:y", "?digest="]
)
PATHS = st.lists(PIECES | st.text(string.printable, max_size=6), max_size=12).map("".join)
METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "X"])


@given(path=PATHS, method=METHODS, body=st.binary(max_size=20), content_range=st.none() | st.text("0123456789-*/ b"))
def test_no_request_fails_or_leaves_the_store(
    app: tuple[RegistryApp, Path], path: str, method: str, body: bytes, content_range: str | None
) -> None:
    headers = {"Content_Range": content_range} if content_range is not None else {}
    status, _, _ = ask(app[0], method, "/v2/" + path, body, **headers)
    assert status in (200, 201, 202, 204, 301, 400, 404, 405, 413, 416)
    assert [entry.name for entry in app[1].iterdir()] == ["store"]


@given(name=st.text("abAB01._-/%+:\0é", max_size=20))
def test_a_path_names_a_repository_or_is_refused(name: str) -> None:
    try:
        target = parse_target(f"/v2/{name}/tags/list", writing=False)
    except Refused as refused:
        assert refused.status in (400, 404)
        return
    assert target.name == name and ".." not in name.split("/") and set(name) <= set("ab01._-/")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
MEMBERS = st.sampled_from(
    ["schemaVersion", "mediaType", "config", "layers", "manifests", "subject", "artifactType", "annotations"]
)
DOCUMENTS = st.dictionaries(MEMBERS, JSON | st.just(2)).map(lambda value: json.dumps(value).encode())


@given(data=DOCUMENTS | st.binary(max_size=40), kind=st.sampled_from([MEDIA_MANIFEST, MEDIA_INDEX, "x/y", "", "\n"]))
def test_any_document_is_read_or_refused(data: bytes, kind: str) -> None:
    try:
        pushed = read_pushed(data, kind, None)
    except Refused as refused:
        assert (refused.status, refused.code) == (400, "MANIFEST_INVALID")
        return
    assert pushed.descriptor.digest == "sha256:" + hashlib.sha256(data).hexdigest()


@given(data=st.binary(max_size=100) | st.text("me:$2by01\n#", max_size=100).map(str.encode))
def test_any_password_file_is_read_or_refused(data: bytes) -> None:
    try:
        assert parse_htpasswd(data, what="file")
    except InputError as error:
        assert error.code == "htpasswd_invalid"


class UploadSession(RuleBasedStateMachine):
    """Requests for one upload in any order, against a model: a byte string."""

    directory: Path

    def __init__(self) -> None:
        super().__init__()
        UploadSession.count = getattr(UploadSession, "count", 0) + 1
        self.root = self.directory / str(UploadSession.count)
        self.root.mkdir()
        self.app = make_app(self.root)
        self.location: str | None = None
        self.data = b""
        self.stored: set[str] = set()

    @precondition(lambda self: self.location is None)
    @rule()
    def begin(self) -> None:
        status, headers, _ = ask(self.app, "POST", "/v2/app/blobs/uploads/")
        assert status == 202
        self.location, self.data = headers["location"], b""

    @precondition(lambda self: self.location is not None)
    @rule(piece=st.binary(max_size=9))
    def stream(self, piece: bytes) -> None:
        assert ask(self.app, "PATCH", self.location or "", piece)[0] == 202
        self.data += piece

    @precondition(lambda self: self.location is not None)
    @rule(piece=st.binary(min_size=1, max_size=9), off=st.integers(-3, 3), longer=st.integers(-1, 1))
    def chunk(self, piece: bytes, off: int, longer: int) -> None:
        first = len(self.data) + off
        last = first + len(piece) - 1 + longer
        status = ask(self.app, "PATCH", self.location or "", piece, Content_Range=f"{first}-{last}")[0]
        good = off == 0 and longer == 0
        assert status == 202 if good else status in (400, 416)
        self.data += piece if good else b""

    @precondition(lambda self: self.location is not None)
    @rule()
    def restart(self) -> None:
        self.app._writing._uploads.close()  # type: ignore[union-attr]
        self.app = make_app(self.root)

    @precondition(lambda self: self.location is not None)
    @rule(right=st.booleans(), algorithm=st.sampled_from(["sha256", "sha512"]), rest=st.binary(max_size=5))
    def finish(self, right: bool, algorithm: str, rest: bytes) -> None:
        whole = self.data + rest
        name = f"{algorithm}:{hashlib.new(algorithm, whole if right else whole + b'x').hexdigest()}"
        status = ask(self.app, "PUT", f"{self.location}?digest={name}", rest)[0]
        assert status == (201 if right else 400)
        if right:
            self.stored.add(name)
        # A wrong digest may by chance be that of a blob which an earlier session left.
        assert ask(self.app, "HEAD", f"/v2/app/blobs/{name}")[0] == (200 if name in self.stored else 404)
        self.location = None

    @precondition(lambda self: self.location is not None)
    @rule()
    def cancel(self) -> None:
        assert ask(self.app, "DELETE", self.location or "")[0] == 204
        assert ask(self.app, "GET", self.location or "")[0] == 404
        self.location = None

    @invariant()
    def told_as_it_is(self) -> None:
        if self.location is not None:
            status, headers, _ = ask(self.app, "GET", self.location)
            assert (status, headers["islet-upload-offset"]) == (204, str(len(self.data)))

    @invariant()
    def whole(self) -> None:
        if (self.root / "app").exists():
            layouts.load(self.root / "app")


def test_upload_sessions(tmp_path: Path) -> None:
    UploadSession.directory = tmp_path
    run_state_machine_as_test(UploadSession)  # type: ignore[no-untyped-call]
