"""A registry that lies: the bytes of a layout as they are, checked by nobody, behind a real RA-TLS front.

The demo and the tests use it to show that the realm's own checks refuse what a registry may hand out.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from islet_cli.config import Workspace


def copy_with_flipped_byte(layout: Path, destination: Path, tag: str) -> str:
    """Copy a layout and flip one byte in the first layer of the image under `tag`; return that layer's digest."""
    shutil.copytree(layout, destination)
    index = json.loads((layout / "index.json").read_bytes())
    manifest_digest = next(
        entry["digest"]
        for entry in index["manifests"]
        if entry.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag
    )
    manifest = json.loads(_blob(layout, manifest_digest).read_bytes())
    digest: str = manifest["layers"][0]["digest"]
    blob = _blob(destination, digest)
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(content)
    return digest


def _blob(layout: Path, digest: str) -> Path:
    algorithm, _, value = digest.partition(":")
    return layout / "blobs" / algorithm / value


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def _handler(layout: Path) -> type[http.server.BaseHTTPRequestHandler]:
    index = json.loads((layout / "index.json").read_bytes())

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def address_string(self) -> str:
            return "front"

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            kind, reference = self.path.rsplit("/", 2)[-2:]
            digest, media_type = reference, "application/octet-stream"
            if kind == "manifests":
                entry = next(
                    (
                        item
                        for item in index["manifests"]
                        if reference
                        in (item["digest"], item.get("annotations", {}).get("org.opencontainers.image.ref.name"))
                    ),
                    None,
                )
                if entry is None:
                    self.send_error(404)
                    return
                digest, media_type = entry["digest"], entry["mediaType"]
            content = _blob(layout, digest).read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", media_type)
            self.send_header("Docker-Content-Digest", digest)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler


@contextlib.contextmanager
def serve(workspace: Workspace, layout: Path) -> Iterator[str]:
    """Serve `layout` under any repository name, RA-TLS with the workspace's certificate; yield `HOST:PORT`."""
    from islet_cli import _native
    from islet_cli.registry.admission import Admission, Policy

    settings = workspace.settings.registry
    policy = Policy(
        references=[str(workspace.path(pattern)) for pattern in settings.reference],
        cpaks=[(pinned.kind, workspace.path(pinned.file)) for pinned in settings.cpak],
        allow_emulated=settings.allow_emulated,
    )
    socket_path = workspace.run_dir / "hostile.sock"
    socket_path.unlink(missing_ok=True)
    backend = _UnixServer(str(socket_path), _handler(layout))
    thread = threading.Thread(target=backend.serve_forever, daemon=True)
    thread.start()
    front = _native.ratls.Server(
        "127.0.0.1:0",
        "ra-tls",
        backend=socket_path,
        store=layout,
        record=lambda *_event: None,
        certificate=workspace.path(settings.cert).read_bytes(),
        key=workspace.path(settings.key).read_bytes(),
        appraise=Admission(policy).appraise,
    )
    try:
        yield front.address
    finally:
        front.stop()
        backend.shutdown()
        backend.server_close()
        thread.join()
        socket_path.unlink(missing_ok=True)
