"""The recorded HTTP steps of both OCI conformance suites.

Against the push listener, on its Unix socket and on TCP with a password, every step must be answered as
recorded. Against the pull listener the steps that read must be, and those that write must be refused; where
they should have changed something, the change is made through files, as `islet registry add` would, so that
the reading steps after them find what they expect.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import pytest
import vectors

from islet_cli.oci.descriptor import MEDIA_CONFIG, MEDIA_INDEX, MEDIA_LAYER, MEDIA_MANIFEST
from islet_cli.oci.layout import load
from islet_cli.registry import store
from islet_cli.registry.push_listener import PushOptions
from islet_cli.registry.server import ServeOptions, running

SUITE = vectors.images("registry", "steps.json") or {"steps": [], "content": {}}
CONTENT = {name: bytes.fromhex(data) for name, data in SUITE["content"].items()}
STEPS = SUITE["steps"]

Step = dict[str, Any]

# A reading step whose state cannot be made through files: an index still names the deleted manifest, and a
# layout like that does not load.
BEYOND_FILES = {"delete.referrer_gone"}


def content(expression: str) -> bytes:
    """An entry of the suite's content, or a slice `B[a:b]` of one."""
    match = re.fullmatch(r"(.+)\[(\d+):(\d+)\]", expression)
    return CONTENT[match[1]][int(match[2]) : int(match[3])] if match else CONTENT[expression]


def body_of(step: Step) -> bytes:
    data = content(step["body"]) if "body" in step else b""
    first, last = step.get("body_range", (0, len(data)))
    return data[first:last]


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def writes(step: Step) -> bool:
    """Whether the step pushes, deletes, or looks at an upload."""
    return step["method"] not in ("GET", "HEAD") or "{u}" in step["path"]


@dataclass
class Repository:
    """What one repository should hold, and how to write it as a layout."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        # Blobs that no manifest names would not be served: one more manifest, without a tag, names all.
        empty = b"{}"
        layers = [{"mediaType": MEDIA_LAYER, "digest": key, "size": len(data)} for key, data in self.blobs.items()]
        pool = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MEDIA_MANIFEST,
                "config": {"mediaType": MEDIA_CONFIG, "digest": digest_of(empty), "size": len(empty)},
                "layers": layers,
            }
        ).encode()
        files = dict(self.blobs)
        files |= {key: data for key, (_, data) in self.manifests.items()}
        files |= {digest_of(empty): empty, digest_of(pool): pool}
        for old in path.glob("blobs/*/*"):
            if f"{old.parent.name}:{old.name}" not in files:
                old.unlink()
        for key, data in files.items():
            file = path / "blobs" / key.replace(":", "/")
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
        self._write_index(path, digest_of(pool), len(pool))

    def _write_index(self, path: Path, pool: str, pool_size: int) -> None:
        entries = [{"mediaType": MEDIA_MANIFEST, "digest": pool, "size": pool_size}]
        for key, (kind, data) in self.manifests.items():
            base = {"mediaType": kind, "digest": key, "size": len(data)}
            tags = [tag for tag, goal in self.tags.items() if goal == key]
            entries += [base | {"annotations": {"org.opencontainers.image.ref.name": tag}} for tag in tags] or [base]
        index = {"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": entries}
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        aside = path / "index.json.new"
        aside.write_text(json.dumps(index))
        aside.replace(path / "index.json")


@dataclass
class Files:
    """Makes through files what a writing step should have made."""

    root: Path
    repositories: dict[str, Repository] = field(default_factory=dict)
    upload: bytes = b""
    owner: str = ""

    def apply(self, step: Step) -> None:
        if min(step["status"]) >= 300:
            return
        match = re.fullmatch(r"/v2/(.+)/(?:blobs/uploads/|(manifests|blobs)/([^/]+))", step["path"])
        name = match[1] if match else self.owner
        repository = self.repositories.setdefault(name, Repository())
        query = step.get("query", {})
        if match is None or match[2] is None:
            self._upload(step, repository, name, query)
        elif step["method"] == "PUT":
            self._manifest(step, repository, match[3], query)
        else:
            self._delete(repository, match[2], match[3])
        repository.write(self.root / name)

    def _upload(self, step: Step, repository: Repository, name: str, query: dict[str, Any]) -> None:
        if "mount" in query:
            for other in self.repositories.values():
                if query["mount"] in other.blobs:
                    repository.blobs[query["mount"]] = other.blobs[query["mount"]]
            return
        if step["method"] == "POST":
            self.upload, self.owner = b"", name
        if step["method"] != "DELETE":
            self.upload += body_of(step)
        if "digest" in query:
            repository.blobs[query["digest"]] = self.upload

    def _manifest(self, step: Step, repository: Repository, reference: str, query: dict[str, Any]) -> None:
        data = body_of(step)
        key = reference if ":" in reference else digest_of(data)
        repository.manifests[key] = (step["headers"]["Content-Type"].partition(";")[0], data)
        for tag in [*query.get("tag", []), *([] if ":" in reference else [reference])]:
            repository.tags[tag] = key

    @staticmethod
    def _delete(repository: Repository, kind: str, reference: str) -> None:
        if kind == "blobs":
            del repository.blobs[reference]
        elif ":" in reference:
            del repository.manifests[reference]
            repository.tags = {tag: key for tag, key in repository.tags.items() if key != reference}
        else:
            del repository.tags[reference]


class Socket(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.host)


@dataclass
class Client:
    """Sends steps in order and remembers the location of the upload under way."""

    address: str
    authorization: str | None = None
    location: str = "/v2/conf/repo1/blobs/uploads/none"

    def connect(self) -> http.client.HTTPConnection:
        if "/" not in self.address:
            return http.client.HTTPConnection(self.address, timeout=20)
        connection = Socket("localhost", timeout=20)
        connection.host = self.address
        return connection

    def send(self, step: Step) -> tuple[http.client.HTTPResponse, bytes]:
        path = step["path"].replace("{u}", self.location)
        if "query" in step:
            path += ("&" if "?" in path else "?") + urlencode(step["query"], doseq=True)
        with contextlib.closing(self.connect()) as connection:
            connection.putrequest(step["method"], path, skip_accept_encoding=True)
            for key, value in step.get("headers", {}).items():
                if key != "Content-Length":
                    connection.putheader(key, value)
            if self.authorization is not None:
                connection.putheader("Authorization", self.authorization)
            data = body_of(step)
            if step["method"] not in ("GET", "HEAD"):
                connection.putheader("Content-Length", str(len(data)))
            connection.endheaders(data or None)
            response = connection.getresponse()
            body = response.read()
        if "save_location_as" in step and "Location" in response.headers:
            base = "http://x" + path
            resolved = urlsplit(urljoin(base, response.headers["Location"]))
            self.location = resolved.path + (f"?{resolved.query}" if resolved.query else "")
        return response, body


def difference(step: Step, response: http.client.HTTPResponse, body: bytes) -> str | None:
    """How the answer differs from the recorded one; None when it does not."""
    if response.status not in step["status"]:
        return f"status {response.status}, not {step['status']}: {body[:200]!r}"
    for key in step.get("headers_present", ()):
        if key not in response.headers:
            return f"no header {key}"
    for key, value in step.get("headers_equal", {}).items():
        found = response.headers[key]
        if (urlsplit(found or "").path if key == "Location" else found) != value:
            return f"{key} is {found!r}, not {value!r}"
    if "response_body" in step and body != content(step["response_body"]):
        return f"another body: {body[:200]!r}"
    if "error_codes" in step and json.loads(body)["errors"][0]["code"] not in step["error_codes"]:
        return f"another error code: {body[:200]!r}"
    if "response_json" in step and normal(json.loads(body)) != normal(step["response_json"]):
        return f"another document: {body[:2000]!r}"
    return None


def normal(document: Any) -> Any:
    """The document with the entries of an index in one order."""
    if isinstance(document, dict) and "manifests" in document:
        return document | {"manifests": sorted(document["manifests"], key=lambda entry: str(entry["digest"]))}
    return document


@dataclass
class Run:
    """What came of all steps, sent once in order to one server, and its store."""

    root: Path
    differences: dict[str, str | None]


PASSWORD = "correct horse"
# htpasswd -nbB -C 4 tester "correct horse"
HTPASSWD = b"tester:$2b$04$AFoGuNppa1LW3BH./9w9MeDmZSRUjfwlYTIiMmepes1brsRvEAhzq\n"


def push_options(kind: str, directory: Path) -> PushOptions:
    if kind == "socket":
        return PushOptions(str(directory / "push.sock"))
    file = directory / "htpasswd"
    file.write_bytes(HTPASSWD)
    return PushOptions("127.0.0.1:0", htpasswd=file)


@pytest.fixture(scope="module", params=["socket", "tcp"])
def pushed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The steps on the push listener."""
    root, directory = tmp_path_factory.mktemp("store"), tmp_path_factory.mktemp("run")
    options = ServeOptions(root, "127.0.0.1:0", "none", push=push_options(request.param, directory))
    with running(options, directory) as server:
        assert server.push_address is not None
        basic = "Basic " + base64.b64encode(f"tester:{PASSWORD}".encode()).decode()
        client = Client(server.push_address, None if request.param == "socket" else basic)
        return Run(root, {step["id"]: difference(step, *client.send(step)) for step in STEPS})


@pytest.mark.parametrize("step", STEPS, ids=[step["id"] for step in STEPS])
def test_step(step: Step, pushed: Run) -> None:
    assert pushed.differences[step["id"]] is None


def test_the_steps_leave_layouts_that_load(pushed: Run) -> None:
    assert {name for name, error, _ in store.check(pushed.root) if error is None} == {"conf/repo1", "conf/repo2"}
    assert load(pushed.root / "conf/repo1").tags.keys() == {"multi", "nd", "v3"}


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[str | None, int]]]:
    """The steps on the pull listener: how each answer differs, and its status."""
    root = tmp_path_factory.mktemp("store")
    files = Files(root)
    found = {}
    with running(ServeOptions(root, "127.0.0.1:0", "none"), tmp_path_factory.mktemp("run")) as server:
        client = Client(server.address)
        for step in STEPS:
            response, body = client.send(step)
            found[step["id"]] = (difference(step, response, body), response.status)
            if writes(step):
                files.apply(step)
    yield found


READING = [step for step in STEPS if not writes(step) and step["id"] not in BEYOND_FILES]
WRITING = [step for step in STEPS if writes(step)]


@pytest.mark.parametrize("step", READING, ids=[step["id"] for step in READING])
def test_reading_step_on_the_pull_listener(step: Step, pulled: dict[str, tuple[str | None, int]]) -> None:
    assert pulled[step["id"]][0] is None


@pytest.mark.parametrize("step", WRITING, ids=[step["id"] for step in WRITING])
def test_writing_step_is_refused_on_the_pull_listener(step: Step, pulled: dict[str, tuple[str | None, int]]) -> None:
    assert pulled[step["id"]][1] in (400, 404, 405)
