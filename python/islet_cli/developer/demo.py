"""`islet demo`: the whole story, each step named, with the refusals.

A binary becomes a signed image, a realm is measured before it runs, a registry admits that realm and no
other, the applications run on encrypted storage and survive a reboot, an update of their own and one of
the realm. Everything is real but the platform, which is emulated and says so.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import secrets
import shutil
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from islet_cli.config import Workspace
from islet_cli.developer import pipeline, samples
from islet_cli.developer.story import Step, Story, require
from islet_cli.developer.workspace import make_workspace
from islet_cli.errors import IsletError, OperationError
from islet_cli.fsutil import write_atomic
from islet_cli.process import is_alive, start_time

if TYPE_CHECKING:
    from islet_cli.launch.manifest import Manifest
    from islet_cli.realm_image.publish import Published
    from islet_cli.warden.client import WardenClient

STEPS = 13
REALM = "demo"
DATA_MIB = 32
_OWNER = "demo.pid"


@dataclass
class Stage:
    """What the steps hand on to each other."""

    workspace: Workspace
    story: Story
    marker: str
    manifest: Manifest
    registry: str = ""
    realm_uuid: str = ""
    apps: dict[str, str] = field(default_factory=dict)
    images: dict[str, pipeline.SignedImage] = field(default_factory=dict)
    published: Published | None = None
    http_port: int = 0

    @property
    def root(self) -> Path:
        return self.workspace.root

    def relative(self, path: Path) -> str:
        """`path` as seen from the workspace."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)


def run(emit: Callable[[str], None], *, keep: bool = False) -> dict[str, Any]:
    """Run the demo in a fresh temporary workspace and return its steps as data.

    Args:
        emit: Receives one line at a time.
        keep: Leave the workspace and its services as they are at the end.

    Raises:
        IsletError: A step does not hold.
    """
    clear_leftovers()
    story = Story(emit, STEPS)
    directory = Path(tempfile.mkdtemp(prefix=_prefix()))
    write_atomic(directory / _OWNER, f"{os.getpid()} {start_time(os.getpid())}".encode())
    try:
        _play(directory / "workspace", story)
    finally:
        if keep:
            emit(f"\nkept: {directory / 'workspace'} (stop it with: islet down --workspace {directory / 'workspace'})")
            (directory / _OWNER).unlink()
        else:
            _remove(directory)
    return {"steps": [step.to_json() for step in story.steps]}


def clear_leftovers() -> None:
    """Stop the services and remove the workspaces of demos that were killed."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_prefix()}*"):
        try:
            if directory.stat().st_uid != os.geteuid():
                continue
            pid, started = map(int, (directory / _OWNER).read_text().split())
        except (OSError, ValueError):
            continue
        if not is_alive(pid, started):
            _remove(directory)


def _prefix() -> str:
    return f"islet-demo-{os.geteuid()}-"


def _remove(directory: Path) -> None:
    root = directory / "workspace"
    if (root / "islet.toml").exists():
        workspace = Workspace.load(root)
        pipeline.stop_services(workspace)
        shutil.rmtree(workspace.run_dir, ignore_errors=True)
    shutil.rmtree(directory)


def _play(root: Path, story: Story) -> None:
    # Steps 11 and 12 have modules of their own.
    from islet_cli.developer import demo_refusals, demo_update

    with story.step("a workspace: root CA, vendor, realm and platform identities") as step:
        stage = _make_workspace(root, story, step)
    with story.step("the realm image is built") as step:
        _build_realm(stage, step)
    with story.step(
        "the realm is measured before it runs; its metadata block and reference values are published"
    ) as step:
        _publish(stage, step)
    with story.step("two sample applications become images") as step:
        built = {
            samples.COUNTER: build_counter(stage, version=1),
            samples.HELLO_HTTP: _build_hello_http(stage),
        }
        for name, image in built.items():
            story.fact(step, name, image.manifest_digest)
    with story.step(
        "they are signed and put into the registry; reference values of the running realm are published"
    ) as step:
        for name, image in built.items():
            stage.images[name] = pipeline.sign_and_add(stage.workspace, image)
            story.fact(step, name, stage.images[name].manifest_digest)
        _publish_running(stage, step)
    with story.step("platform, registry (RA-TLS) and warden are started") as step:
        stage.registry = pipeline.start_services(stage.workspace)
        story.fact(step, "registry", stage.registry)
        story.fact(step, "platform", "emulated: no protection from the host")
    with story.step("a realm with both applications is created and started") as step:
        _start(stage, step)
    with story.step("an attestation token over a fresh challenge is fetched and verified") as step:
        _attest(stage, step)
    with story.step("the realm is rebooted; the counter goes on") as step:
        _reboot(stage, step)
    with story.step("the counter is updated to version 2; its data is still there") as step:
        _update_application(stage, step)
    with story.step("what is refused, and why") as step:
        demo_refusals.play(stage, step)
    with story.step("the realm image is rebuilt as version 2 (new RIM, svn 2); the data is still there") as step:
        demo_update.play(stage, step)
    with story.step("the host's disk files hold neither the marker nor the data") as step:
        _search_disks(stage, step)


def _make_workspace(root: Path, story: Story, step: Step) -> Stage:
    from islet_cli.launch.manifest import load_manifest

    made = make_workspace(root, listen="127.0.0.1:0", realm=REALM)
    for role, fingerprint in made.fingerprints.items():
        story.fact(step, f"{role}_key", fingerprint)
    manifest = load_manifest(made.workspace.manifest_path(REALM))
    return Stage(made.workspace, story, f"islet-marker-{secrets.token_hex(12)}", manifest)


def _build_realm(stage: Stage, step: Step) -> None:
    from islet_cli.developer.demo_refusals import GENUINE, MARKER_FILE
    from islet_cli.realm_image.build import build

    # The marker file is what step 11 changes by one byte.
    built = build(stage.workspace, stage.manifest, extra_files={MARKER_FILE: GENUINE})
    for name, path in (("kernel", built.kernel), ("initramfs", built.initramfs)):
        size = path.stat().st_size
        stage.story.fact(step, name, str(path), f"{stage.relative(path)}, {size / pipeline.MIB:.1f} MiB")


def _publish(stage: Stage, step: Step) -> None:
    stage.published = pipeline.publish_realm(stage.workspace, stage.manifest)
    stage.story.fact(step, "RIM", stage.published.rim.hex())
    stage.story.fact(step, "published", stage.relative(stage.published.directory))


def _publish_running(stage: Stage, step: Step) -> None:
    assert stage.published is not None
    before = stage.published.rim
    stage.published = pipeline.publish_realm(stage.workspace, stage.manifest, list(stage.images.values()))
    require(stage.published.rim == before, "publishing applications changed the RIM")
    stage.story.fact(step, "RIM", stage.published.rim.hex(), "unchanged")


def build_counter(stage: Stage, *, version: int, name: str = samples.COUNTER) -> Any:
    """Build the counter as image `name` with tag `version`."""
    from islet_cli.oci.build import build_image

    scratch = pipeline.scratch_directory(stage.workspace, f"{name}-{version}")
    root = scratch / "root"
    entrypoint = samples.write_counter(root, _busybox(stage), version=version, marker=stage.marker)
    return build_image(root, scratch / "image", name=name, tag=str(version), entrypoint=entrypoint)


def _build_hello_http(stage: Stage) -> Any:
    from islet_cli.oci.build import build_image

    scratch = pipeline.scratch_directory(stage.workspace, samples.HELLO_HTTP)
    entrypoint = samples.write_hello_http(scratch / "root", _busybox(stage), marker=stage.marker)
    return build_image(scratch / "root", scratch / "image", name=samples.HELLO_HTTP, tag="1", entrypoint=entrypoint)


def _busybox(stage: Stage) -> bytes:
    from islet_cli.realm_image.locked import package_file

    return package_file(stage.workspace, stage.manifest, "busybox-static", "bin/busybox")


def launch_of(manifest: Manifest) -> dict[str, object]:
    """The launch plan of `manifest` as the warden takes it."""
    from islet_cli.launch.plan import plan_of

    return plan_of(manifest).to_json()


def add_application(warden: WardenClient, realm: str, image: pipeline.SignedImage, registry: str) -> str:
    """Add `image` to a halted realm; return the application's uuid."""
    return warden.create_application(
        realm, image.name, registry=registry, version=image.tag, image_mb=image.image_mib(), data_mb=DATA_MIB
    )


def _start(stage: Stage, step: Step) -> None:
    from islet_cli.warden.network import Publish

    assert stage.published is not None
    with pipeline.warden_client(stage.workspace) as warden:
        stage.realm_uuid = warden.create_realm_launch(
            name=REALM,
            launch=launch_of(stage.manifest),
            metadata=stage.published.metadata,
            publish=[Publish("127.0.0.1", 0, samples.HTTP_PORT)],
        )
        for name, image in stage.images.items():
            stage.apps[name] = add_application(warden, stage.realm_uuid, image, stage.registry)
        began = time.monotonic()
        warden.start(stage.realm_uuid)
        stage.story.fact(step, "start_to_running_seconds", round(time.monotonic() - began, 1))
        stage.http_port = warden.describe_realm(stage.realm_uuid)["publish"][0]["host_port"]
    expect_line(stage, samples.COUNTER, "counter version 1: run 1")
    page = fetch_page(stage.http_port)
    require(stage.marker in page, "the HTTP service did not answer with its page")
    stage.story.fact(
        step, "http", f"http://127.0.0.1:{stage.http_port}/", f"http://127.0.0.1:{stage.http_port}/ answers"
    )


def expect_line(stage: Stage, name: str, line: str, *, timeout_s: float = 60.0) -> None:
    """Show the output of an application as it appears until `line` has come.

    Raises:
        OperationError: It did not come within `timeout_s`.
    """
    lines: queue.Queue[str] = queue.Queue()
    with pipeline.warden_client(stage.workspace) as warden:
        thread = threading.Thread(
            target=_collect,
            args=(warden.logs(stage.realm_uuid, stage.apps[name], follow=True), lines),
            daemon=True,
        )
        thread.start()
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                text = lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise OperationError(
                    f"{name}: did not print {line!r} within {timeout_s:.0f} s", code="demo-failed"
                ) from None
            stage.story.line(text)
            if text == line:
                return


def _collect(chunks: Iterator[bytes], lines: queue.Queue[str]) -> None:
    """Cut a stream into lines; ends when the connection is closed under it."""
    rest = b""
    with contextlib.suppress(IsletError):
        for chunk in chunks:
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                lines.put(line.decode("utf-8", "replace"))


def fetch_page(port: int, *, timeout_s: float = 30.0) -> str:
    """Fetch the sample's page from its published port; the service may still be starting."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
                return str(answer.read().decode())
        except OSError as error:
            if time.monotonic() > deadline:
                raise OperationError(f"http://127.0.0.1:{port}/: {error}", code="demo-failed") from error
            time.sleep(0.3)


def _attest(stage: Stage, step: Step) -> None:
    from islet_cli.attestation.challenge import host_challenge
    from islet_cli.attestation.cpak import load_cpak
    from islet_cli.attestation.reference import ReferenceValues
    from islet_cli.attestation.verify import verify_token

    assert stage.published is not None and stage.published.reference_running is not None
    challenge = secrets.token_bytes(64)
    with pipeline.warden_client(stage.workspace) as warden:
        token = warden.token(stage.realm_uuid, challenge)
    verdict = verify_token(
        token,
        cpaks=[load_cpak(stage.workspace.platform_dir / "cpak.bin", "emulated")],
        challenge=host_challenge(challenge),
        references=[ReferenceValues.load(stage.published.reference_running)],
        allow_emulated=True,
    )
    require(verdict.token.realm.rim == stage.published.rim, "the RIM in the token is not the prediction")
    stage.story.fact(step, "RIM", verdict.token.realm.rim.hex(), "equals the prediction of step 3")
    stage.story.fact(step, "REM0", verdict.token.realm.rems[0].hex(), "equals the prediction from the signed images")
    stage.story.fact(step, "emulated", verdict.emulated, "yes: this evidence says nothing about the host")


def _reboot(stage: Stage, step: Step) -> None:
    with pipeline.warden_client(stage.workspace) as warden:
        warden.reboot(stage.realm_uuid)
    expect_line(stage, samples.COUNTER, "counter version 1: run 2")


def _update_application(stage: Stage, step: Step) -> None:
    image = pipeline.sign_and_add(stage.workspace, build_counter(stage, version=2))
    stage.images[samples.COUNTER] = image
    _publish_running(stage, step)
    with pipeline.warden_client(stage.workspace) as warden:
        warden.update_application(stage.realm_uuid, stage.apps[samples.COUNTER], version=image.tag)
        warden.reboot(stage.realm_uuid)
    expect_line(stage, samples.COUNTER, "counter version 2: run 3")
    _attest(stage, step)


def _search_disks(stage: Stage, step: Step) -> None:
    with pipeline.warden_client(stage.workspace) as warden:
        warden.stop(stage.realm_uuid)
    needles = (stage.marker.encode(), b"run by version", b"counter version")
    searched = 0
    for file in sorted(stage.workspace.warden_dir.rglob("*")):
        if file.is_file():
            searched += file.stat().st_blocks * 512
            found = find_in_file(file, needles)
            require(found is None, f"{stage.relative(file)} holds {found!r}")
    stage.story.fact(
        step,
        "searched",
        searched,
        f"{searched / pipeline.MIB:.0f} MiB below {stage.relative(stage.workspace.warden_dir)}",
    )


def find_in_file(file: Path, needles: tuple[bytes, ...]) -> bytes | None:
    """Return the first of `needles` that `file` holds, holes skipped, or None."""
    overlap = max(map(len, needles)) - 1
    pattern = re.compile(b"|".join(map(re.escape, needles)))
    with file.open("rb", buffering=0) as stream:
        tail, position, size = b"", 0, file.stat().st_size
        while position < size:
            try:
                data_start = os.lseek(stream.fileno(), position, os.SEEK_DATA)
            except OSError:
                return None
            if data_start != position:
                tail = b""
            os.lseek(stream.fileno(), data_start, os.SEEK_SET)
            chunk = stream.read(4 << 20)
            match = pattern.search(tail + chunk)
            if match:
                return match.group()
            tail = (tail + chunk)[-overlap:]
            position = data_start + len(chunk)
    return None
