"""Pushing an image of a layout to a registry: blobs first, then manifests, children before their index.

Source: OCI distribution-spec 1.1 "Push", "Pushing manifests with subject"; docs/registry.md.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from islet_cli.errors import InputError
from islet_cli.oci.descriptor import ABSENT_ALLOWED, MAX_DOCUMENT, MEDIA_INDEX, Descriptor
from islet_cli.oci.digest import Digest
from islet_cli.oci.documents import parse_index, parse_object
from islet_cli.oci.layout import Layout
from islet_cli.oci.names import check_repository, check_tag
from islet_cli.progress import Report, silent
from islet_cli.registry.client.http import Transport
from islet_cli.registry.client.upload import CHUNK_BYTES, upload

PARALLEL = 3


@dataclass
class Sent:
    """What a push came to.

    Attributes:
        digest: Of the image or index.
        uploaded, mounted, present: Blobs sent, taken from another repository, there before.
        bytes: Sum of the sizes of the uploaded ones.
    """

    digest: Digest
    uploaded: list[str] = field(default_factory=list)
    mounted: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """All attributes, lists sorted."""
        lists = {key: sorted(getattr(self, key)) for key in ("uploaded", "mounted", "present")}
        return {"digest": str(self.digest), **lists, "bytes": self.bytes}


def push(
    transport: Transport,
    layout: Layout,
    source: str,
    name: str,
    reference: str,
    *,
    mount_from: str | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    report: Report = silent,
) -> Sent:
    """Push one image or index of a layout, with everything that it names.

    Args:
        transport: The registry.
        layout: Loaded, hence checked.
        source: Tag or digest in the layout.
        name: Repository to push to.
        reference: Tag there, or the image's own digest.
        mount_from: Repository of the same registry from which blobs may be taken.
        chunk_bytes: Larger blobs are sent in pieces of this size.
        report: Bytes of blobs done, and their sum.

    Raises:
        InputError: Names, tags or digests are malformed or unknown; the registry refuses.
        IsletError: As `Transport.attempt`.
    """
    check_repository(name)
    if mount_from is not None:
        check_repository(mount_from)
    top = layout.resolve(source)
    if ":" not in reference:
        check_tag(reference)
    elif reference != top.digest:
        raise InputError(f"{source!r} is {top.digest}, not {reference[:160]}", code="reference_unknown")
    manifests, blobs = _parts(layout, top)
    transport.attempt(lambda: _get(transport, "/v2/", frozenset((200,))))
    run = _Push(transport, layout, name, mount_from, chunk_bytes, report, Sent(top.digest))
    run.total = sum(blob.size for blob in blobs)
    with ThreadPoolExecutor(PARALLEL) as pool:
        for done in [pool.submit(run.blob, blob) for blob in blobs]:
            done.result()
    for manifest in manifests:
        run.manifest(manifest, reference if manifest is top else str(manifest.digest))
    report(run.total, run.total)
    return run.sent


def _parts(layout: Layout, top: Descriptor) -> tuple[list[Descriptor], list[Descriptor]]:
    """Manifests, children first, and all other blobs that an image consists of, each once."""
    manifests: dict[str, Descriptor] = {}
    blobs: dict[str, Descriptor] = {}

    def visit(item: Descriptor) -> None:
        if item.digest in manifests or item.digest in blobs:
            return
        if item.is_index:
            what = f"{layout.path}: {item.digest}"
            for child in parse_index(layout.read(item), what=what, media_type=item.media_type, nested=True).manifests:
                visit(child)
            manifests[item.digest] = item
        elif item.is_manifest:
            document = layout.manifests[item.digest]
            for blob in (document.config, *document.layers):
                visit(blob)
            manifests[item.digest] = item
        elif item.digest in layout.blobs or item.media_type not in ABSENT_ALLOWED:
            blobs[item.digest] = item

    visit(top)
    return list(manifests.values()), list(blobs.values())


def _get(transport: Transport, path: str, accept: frozenset[int]) -> tuple[int, bytes]:
    with transport.send("GET", path, {}, accept=accept) as response:
        return response.status, response.read(MAX_DOCUMENT + 1)


@dataclass
class _Push:
    """One push under way; `blob` runs on several threads."""

    transport: Transport
    layout: Layout
    name: str
    mount_from: str | None
    chunk_bytes: int
    report: Report
    sent: Sent
    total: int = 0
    done: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def blob(self, blob: Descriptor) -> None:
        """Have a blob in the registry, by whatever way is shortest."""
        progress = self._progress_of(blob)
        if self._is_there(blob):
            self._note(self.sent.present, blob)
        else:
            location = self.transport.attempt(lambda: self._begin(blob))
            if location is None:
                self._note(self.sent.mounted, blob)
            else:
                path = self.layout.blob_path(blob.digest)
                begin = self._begin_plain
                upload(self.transport, location, begin, path, blob, chunk_bytes=self.chunk_bytes, progress=progress)
                self._note(self.sent.uploaded, blob)
                with self.lock:
                    self.sent.bytes += blob.size
        progress(blob.size)

    def _note(self, where: list[str], blob: Descriptor) -> None:
        with self.lock:
            where.append(str(blob.digest))

    def _progress_of(self, blob: Descriptor) -> Callable[[int], None]:
        def progress(count: int) -> None:
            with self.lock:
                self.done[blob.digest] = count
                self.report(sum(self.done.values()), self.total)

        return progress

    def _is_there(self, blob: Descriptor) -> bool:
        def once() -> bool:
            path = f"/v2/{self.name}/blobs/{blob.digest}"
            with self.transport.send("HEAD", path, {}, accept=frozenset((200, 404))) as response:
                return response.status == 200

        return self.transport.attempt(once)

    def _begin(self, blob: Descriptor) -> str | None:
        """Begin an upload; None when the blob could be mounted instead."""
        path = f"/v2/{self.name}/blobs/uploads/"
        if self.mount_from is not None:
            path += f"?mount={blob.digest}&from={self.mount_from}"
        with self.transport.send("POST", path, {"Content-Length": "0"}, accept=frozenset((201, 202))) as response:
            response.read()
            if response.status == 201 and self.mount_from is not None:
                return None
            return self.transport.resolve(path, response.headers.get("Location", ""))

    def _begin_plain(self) -> str:
        path = f"/v2/{self.name}/blobs/uploads/"
        with self.transport.send("POST", path, {"Content-Length": "0"}, accept=frozenset((202,))) as response:
            response.read()
            return self.transport.resolve(path, response.headers.get("Location", ""))

    def manifest(self, item: Descriptor, reference: str) -> None:
        """Push a manifest or index, and enter it where registries without referrers look for it."""
        data = self.layout.read(item)
        handled = self._put(reference, item.media_type, data)
        subject = parse_object(data, what=str(item.digest), code="manifest_invalid").get("subject")
        if isinstance(subject, dict) and not handled:
            self._refer(str(subject.get("digest")), item, data)

    def _put(self, reference: str, media_type: str, data: bytes) -> bool:
        """PUT a manifest; returns whether the registry took note of its subject."""

        def once() -> bool:
            headers = {"Content-Type": media_type, "Content-Length": str(len(data))}
            path = f"/v2/{self.name}/manifests/{reference}"
            with self.transport.send("PUT", path, headers, body=lambda: [data], accept=frozenset((201,))) as response:
                response.read()
                return "OCI-Subject" in response.headers

        return self.transport.attempt(once)

    def _refer(self, subject: str, item: Descriptor, data: bytes) -> None:
        """Maintain the referrers tag of a subject, the fall-back of the specification."""
        tag = subject.replace(":", "-", 1)[:128]
        check_tag(tag)
        path = f"/v2/{self.name}/manifests/{tag}"
        status, body = self.transport.attempt(lambda: _get(self.transport, path, frozenset((200, 404))))
        index: dict[str, Any] = {"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": []}
        if status == 200:
            index = parse_index(body, what=f"{self.name}: {tag}", nested=True).raw
        if any(entry["digest"] == item.digest for entry in index["manifests"] or []):
            return
        document = json.loads(data)
        entry = {"mediaType": item.media_type, "digest": str(item.digest), "size": item.size}
        artifact_type = document.get("artifactType") or (document.get("config") or {}).get("mediaType")
        more = {"artifactType": artifact_type, "annotations": document.get("annotations")}
        entry |= {key: value for key, value in more.items() if value}
        index["manifests"] = [*(index["manifests"] or []), entry]
        self._put(tag, MEDIA_INDEX, json.dumps(index).encode())
