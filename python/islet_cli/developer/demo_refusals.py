"""Step 11 of the demo: what is refused, each with the reason from the very check that refused."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from islet_cli import services
from islet_cli.developer import demo, hostile, pipeline, samples
from islet_cli.developer.story import Step, require
from islet_cli.errors import IsletError
from islet_cli.fsutil import write_atomic

if TYPE_CHECKING:
    from islet_cli.developer.demo import Stage
    from islet_cli.launch.manifest import Manifest

MARKER_FILE = "etc/islet-demo"
_LOG_PATIENCE_S = 5.0
GENUINE, CHANGED = b"genuine\n", b"genuinE\n"


def play(stage: Stage, step: Step) -> None:
    """Show every refusal."""
    with _realm(stage, "refusals", stage.manifest, metadata=_metadata(stage)) as realm:
        _unsigned_image(stage, step, realm)
        _image_under_another_root(stage, step, realm)
        _flipped_layer(stage, step, realm)
    _changed_initramfs(stage, step)
    _metadata_for_another_rim(stage, step)
    _metadata_of_another_signer(stage, step)
    _host_challenge_of_a_foreign_tls_key(stage, step)


def _metadata(stage: Stage) -> Path:
    assert stage.published is not None and stage.published.metadata is not None
    return Path(stage.published.metadata)


@contextlib.contextmanager
def _realm(stage: Stage, name: str, manifest: Manifest, *, metadata: Path | None) -> Iterator[str]:
    """A realm for the block; it is destroyed at the end."""
    with pipeline.warden_client(stage.workspace) as warden:
        uuid = warden.create_realm_launch(name=name, launch=demo.launch_of(manifest), metadata=metadata, publish=[])
    try:
        yield uuid
    finally:
        with pipeline.warden_client(stage.workspace) as warden:
            warden.destroy(uuid)


def _start_with(stage: Stage, realm: str, image: pipeline.SignedImage, registry: str) -> None:
    """Start `realm` with this one application, which must be refused; take it out again."""
    with pipeline.warden_client(stage.workspace) as warden:
        application = demo.add_application(warden, realm, image, registry)
        try:
            warden.start(realm)
        except IsletError:
            warden.remove_application(realm, application)
            raise
        warden.stop(realm)


def _unsigned_image(stage: Stage, step: Step, realm: str) -> None:
    from islet_cli.registry import store

    built = demo.build_counter(stage, version=1, name="unsigned")
    store.add(stage.workspace.registry_root, built.layout, built.name, tag=built.tag)
    image = pipeline.signed_image(built.layout, built.tag, built.name)
    stage.story.expect_refusal(
        step, "unsigned_image", lambda: _start_with(stage, realm, image, stage.registry), "annotation_missing"
    )


def _image_under_another_root(stage: Stage, step: Step, realm: str) -> None:
    from islet_cli.keys import ecc
    from islet_cli.registry import store
    from islet_cli.signing.sign import certify, sign_image

    built = demo.build_counter(stage, version=1, name="foreign")
    vendor, authority = ecc.generate(), ecc.generate()
    sign_image(built.layout, built.tag, certify(vendor.public, authority, vendor))
    store.add(stage.workspace.registry_root, built.layout, built.name, tag=built.tag)
    image = pipeline.signed_image(built.layout, built.tag, built.name)
    stage.story.expect_refusal(
        step,
        "image_under_another_root",
        lambda: _start_with(stage, realm, image, stage.registry),
        "vendor_signature_invalid",
    )


def _flipped_layer(stage: Stage, step: Step, realm: str) -> None:
    """One byte of a layer is wrong: the registry does not load it, and a registry that hands it out does not help."""
    from islet_cli.registry import store

    image = stage.images[samples.COUNTER]
    damaged = pipeline.scratch_directory(stage.workspace, "flipped") / "image"
    hostile.copy_with_flipped_byte(image.layout, damaged, image.tag)
    stage.story.expect_refusal(
        step,
        "flipped_layer_at_the_registry",
        lambda: store.add(stage.workspace.registry_root, damaged, tag=image.tag),
        "digest_mismatch",
    )
    with hostile.serve(stage.workspace, damaged) as address:
        stage.story.expect_refusal(
            step, "flipped_layer_in_the_realm", lambda: _start_with(stage, realm, image, address), "digest_mismatch"
        )


def _changed_initramfs(stage: Stage, step: Step) -> None:
    """One byte of the initramfs differs: the realm boots, and the registry refuses its handshake."""
    from islet_cli.launch.manifest import load_manifest
    from islet_cli.realm_image.build import build

    text = stage.workspace.manifest_path(demo.REALM).read_text()
    path = stage.root / "changed.realm.toml"
    write_atomic(path, re.sub(r'(?m)^name = ".*"', 'name = "changed"', text, count=1).encode(), mode=0o644)
    manifest = load_manifest(path)
    build(stage.workspace, manifest, extra_files={MARKER_FILE: CHANGED})
    with _realm(stage, "changed", manifest, metadata=None) as realm:
        refusal = stage.story.expect_refusal(
            step,
            "changed_initramfs",
            lambda: _start_with(stage, realm, stage.images[samples.COUNTER], stage.registry),
            "ratls_refused",
        )
    require(bool(refusal), "the registry admitted a changed realm")
    _show_registry_reason(stage, step, "changed_initramfs_at_the_registry", "rim")


def _show_registry_reason(stage: Stage, step: Step, name: str, code: str) -> None:
    """Show the registry's own last word on a refused handshake, which the client's alert may outrun."""
    from islet_cli.registry import log

    deadline = time.monotonic() + _LOG_PATIENCE_S
    while True:
        events = log.read(stage.workspace.log_dir / "registry-access.jsonl")
        refused = [event for event in events if event["event"] == "refused"]
        if refused and refused[-1]["code"] == code:
            break
        require(time.monotonic() < deadline, f"{name}: the registry's log does not name {code}")
        time.sleep(0.1)
    last: dict[str, Any] = refused[-1]
    stage.story.fact(
        step,
        name,
        {"refused": True, "code": last["code"], "reason": last["reason"]},
        f"refused: {last['code']}: {last['reason']}",
    )


def _metadata_for_another_rim(stage: Stage, step: Step) -> None:
    """The platform does not activate a realm whose metadata block names another RIM; nothing boots."""
    assert stage.published is not None
    wrong = bytes([stage.published.rim[0] ^ 1]) + stage.published.rim[1:]
    block = _write_block(stage, "other-rim.bin", wrong, signer=None)
    with _realm(stage, "wrong-block", stage.manifest, metadata=block) as realm:
        stage.story.expect_refusal(
            step,
            "metadata_for_another_rim",
            lambda: _start_with(stage, realm, stage.images[samples.COUNTER], stage.registry),
            "rim",
            "RIM",
        )


def _metadata_of_another_signer(stage: Stage, step: Step) -> None:
    """The genuine realm under another signer's valid block: the data of the first one is not opened."""
    assert stage.published is not None
    from islet_cli.keys import ecc
    from islet_cli.warden.network import Publish

    block = _write_block(stage, "other-signer.bin", stage.published.rim, signer=ecc.generate())
    launch = demo.launch_of(stage.manifest)
    publish = [Publish("127.0.0.1", stage.http_port, samples.HTTP_PORT)]
    with pipeline.warden_client(stage.workspace) as warden:
        warden.stop(stage.realm_uuid)
        warden.update_realm(stage.realm_uuid, launch=launch, metadata=block, publish=publish)
        disk = stage.workspace.warden_dir / stage.realm_uuid / "disk.raw"
        before = _digest(disk)
        stage.story.expect_refusal(
            step, "metadata_of_another_signer", lambda: warden.start(stage.realm_uuid), "data-at-risk"
        )
        require(_digest(disk) == before, "the refused realm wrote to the disk")
        stage.story.fact(step, "disk", "unchanged")
        warden.update_realm(stage.realm_uuid, launch=launch, metadata=_metadata(stage), publish=publish)
        warden.start(stage.realm_uuid)
    demo.expect_line(stage, samples.COUNTER, "counter version 2: run 4")


def _write_block(stage: Stage, name: str, rim: bytes, *, signer: Any) -> Path:
    """Sign a metadata block like the published one but for its RIM or its signer; return its file."""
    from islet_cli.keys.ecc import load_private
    from islet_cli.realm_image.publish import metadata_block

    key = signer or load_private(stage.workspace.path(stage.workspace.settings.keys.realm))
    path = stage.workspace.cache_dir / name
    write_atomic(path, metadata_block(stage.manifest, rim, key))
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _host_challenge_of_a_foreign_tls_key(stage: Stage, step: Step) -> None:
    """A host asks the genuine realm for a token over the hash of its own TLS key, and tries to enter with it."""
    from islet_cli import _native

    running = services.find(stage.workspace, "registry")
    require(running is not None, "the registry ended")
    host, _, port = stage.registry.rpartition(":")

    def token_of_the_realm(challenge: bytes) -> bytes:
        with pipeline.warden_client(stage.workspace) as warden:
            token: bytes = warden.token(stage.realm_uuid, challenge)
        return token

    def enter() -> None:
        ca = stage.workspace.path(stage.workspace.settings.registry.ca).read_bytes()
        client = _native.ratls.Client(ca, token_of_the_realm)
        stream = client.connect(host, int(port), 10.0, 60.0)
        try:
            stream.sendall(b"GET /v2/ HTTP/1.1\r\nHost: registry\r\n\r\n")
            stream.recv(1)
        finally:
            stream.close()

    stage.story.expect_refusal(step, "host_challenge_of_a_foreign_tls_key", enter, "ratls_refused")
    _show_registry_reason(stage, step, "host_challenge_at_the_registry", "challenge")
