"""`islet run`: from a path to a running application in a realm, and back with its exit code.

Everything that must be true for it is made true on the way: workspace, realm image, reference values, services. What
exists already is reused.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from islet_cli.config import Workspace
from islet_cli.developer import pipeline
from islet_cli.developer.source import prepare_image
from islet_cli.errors import InputError, IsletError, UnavailableError
from islet_cli.fsutil import exclusive_lock, write_atomic

if TYPE_CHECKING:
    from islet_cli.launch.manifest import Manifest
    from islet_cli.warden.client import WardenClient

OWN_FAILURE, CANNOT_START, NOT_FOUND = 125, 126, 127
_SECRET_NAME = re.compile(r"(?i)(secret|passw|token|api_?key|private|credential)")
_POLL_S = 0.25


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    path: str
    name: str | None = None
    entrypoint: Sequence[str] = ()
    arguments: Sequence[str] = ()
    env: Sequence[str] = ()
    publish: Sequence[tuple[int, int]] = ()
    memory_mib: int | None = None
    realm: str | None = None
    detach: bool = False
    keep: bool = False


@dataclass
class Screen:
    """Where `run` shows what it does: messages, the application's output, progress bars."""

    say: Callable[[str], None]
    output: Callable[[bytes], None]
    bar: Callable[[str], Any]


@dataclass(frozen=True)
class Target:
    """The realm and application that a run uses."""

    realm_uuid: str
    application_uuid: str


def default_workspace(explicit: Path | None, say: Callable[[str], None]) -> Workspace:
    """The workspace around us; outside one, `$XDG_DATA_HOME/islet/default`, made when missing."""
    from islet_cli.developer.workspace import make_workspace

    try:
        return Workspace.find(explicit)
    except UnavailableError:
        if explicit is not None:
            raise
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local/share")
    root = Path(base) / "islet" / "default"
    say(f"workspace: {root}")
    if (root / "islet.toml").exists():
        return Workspace.load(root)
    return make_workspace(root, listen="127.0.0.1:0").workspace


def secret_looking(env: Sequence[str]) -> list[str]:
    """Names of variables that look like secrets: they would enter the signed image, where anyone can read them."""
    return [name for name in (item.partition("=")[0] for item in env) if _SECRET_NAME.search(name)]


def run(workspace: Workspace, options: Options, screen: Screen) -> int:
    """Build, sign, publish, provision, start and follow an application.

    Returns:
        The application's exit code (128 + N when signal N ended it); 0 at once when detached.

    Raises:
        IsletError: A failure of islet's own; the caller exits with 125, or with 126 or 127 when `exit_code_of` says so.
    """
    for name in secret_looking(options.env):
        screen.say(
            f"warning: {name} looks like a secret; it becomes part of the signed image, readable by whoever has it"
        )
    image = prepare_image(workspace, options, screen)
    manifest = _manifest(workspace, options)
    _prepare_realm(workspace, manifest, screen)
    registry = pipeline.start_services(workspace)
    with pipeline.warden_client(workspace) as warden:
        # One start at a time: two runs of one name would otherwise race for its realm.
        with exclusive_lock(workspace.run_dir / "run.lock"):
            target = _target(workspace, warden, manifest, image, registry, options)
            _start(warden, target, screen)
        for port in warden.describe_realm(target.realm_uuid)["publish"]:
            screen.say(f"published: {port['address']}:{port['host_port']} -> {port['guest_port']}")
        if options.detach:
            screen.say(f"running: {image.name} (islet logs -f {image.name}, islet stop {image.name})")
            return 0
        with _stopping(warden, target, keep=options.keep):
            return _follow(workspace, warden, target, screen)


def _manifest(workspace: Workspace, options: Options) -> Manifest:
    """The manifest to run under; with another memory size, a variant of its own with its own RIM."""
    from islet_cli.launch.manifest import load_manifest

    name = workspace.settings.run.realm
    path = workspace.manifest_path(name)
    manifest = load_manifest(path)
    if options.memory_mib is None or options.memory_mib == manifest.launch.memory_mib:
        return manifest
    variant = f"{manifest.name}-{options.memory_mib}m"
    text = path.read_text()
    text = _set(text, None, "name", f'"{variant}"')
    text = _set(text, "launch", "memory_mib", str(options.memory_mib))
    for key, file in (("kernel", manifest.kernel_path), ("initramfs", manifest.initramfs_path)):
        text = _set(text, "image", key, f'"{file}"')
    target = workspace.root / f"{variant}.realm.toml"
    write_atomic(target, text.encode(), mode=0o644)
    return load_manifest(target)


def _set(text: str, table: str | None, key: str, value: str) -> str:
    """Set `key` in a TOML text of the simple form that manifests have, the rest left as it is."""
    lines = text.splitlines()
    start = 0
    if table is not None:
        try:
            start = next(i for i, line in enumerate(lines) if line.strip() == f"[{table}]") + 1
        except StopIteration:
            lines += ["", f"[{table}]"]
            start = len(lines)
    end = next((i for i in range(start, len(lines)) if lines[i].lstrip().startswith("[")), len(lines))
    for i in range(start, end):
        if re.match(rf"\s*{re.escape(key)}\s*=", lines[i]):
            lines[i] = f"{key} = {value}"
            break
    else:
        lines.insert(start, f"{key} = {value}")
    return "\n".join(lines) + "\n"


def _prepare_realm(workspace: Workspace, manifest: Manifest, screen: Screen) -> None:
    """Build the realm image when needed and publish what admits it."""
    from islet_cli.launch.manifest import load_manifest

    base = load_manifest(workspace.manifest_path(workspace.settings.run.realm))
    with screen.bar("realm image") as report:
        built = pipeline.build_realm(workspace, base, report)
    if not built.reused:
        screen.say(f"realm image: {built.initramfs} built")
    pipeline.publish_realm(workspace, manifest)


def _target(
    workspace: Workspace,
    warden: WardenClient,
    manifest: Manifest,
    image: pipeline.SignedImage,
    registry: str,
    options: Options,
) -> Target:
    """Find or make the realm and the application, brought up to date with image, sizes and ports."""
    from islet_cli.launch.plan import plan_of
    from islet_cli.warden.network import Publish

    realms = {realm["name"]: realm for realm in warden.describe()}
    name = options.realm or image.name
    realm = realms.get(name)
    if options.realm is not None and realm is None:
        raise InputError(f"no realm {options.realm!r}", code="no-such-realm", hint="see: islet realm list")
    launch = plan_of(manifest).to_json()
    metadata = workspace.published_dir(manifest.name) / "metadata.bin" if manifest.launch.metadata else None
    publish = [Publish("127.0.0.1", host, guest) for host, guest in options.publish]
    internet = manifest.devices.internet
    if realm is None:
        uuid = warden.create_realm_launch(name, launch, metadata=metadata, publish=publish, internet=internet)
        return Target(uuid, _create(workspace, warden, uuid, image, registry))
    if realm["state"] != "Halted":
        raise InputError(
            f"realm {name} is {realm['state'].lower()}", code="bad-state", hint=f"stop it first: islet stop {name}"
        )
    uuid = realm["uuid"]
    if options.realm is None:
        warden.update_realm(uuid, launch, metadata=metadata, publish=publish, internet=internet)
    existing = next((app for app in realm["applications"] if app["name"] == image.name), None)
    if existing is None:
        return Target(uuid, _create(workspace, warden, uuid, image, registry))
    # Partitions never shrink.
    warden.update_application(
        uuid,
        existing["uuid"],
        registry=registry,
        version=image.tag,
        image_mb=max(image.image_mib(), existing["image_storage_size_mb"]),
        data_mb=max(workspace.settings.run.data_mb, existing["data_storage_size_mb"]),
    )
    return Target(uuid, existing["uuid"])


def _create(workspace: Workspace, warden: WardenClient, realm: str, image: pipeline.SignedImage, registry: str) -> str:
    return warden.create_application(
        realm,
        image.name,
        registry=registry,
        version=image.tag,
        image_mb=image.image_mib(),
        data_mb=workspace.settings.run.data_mb,
    )


def _start(warden: WardenClient, target: Target, screen: Screen) -> None:
    """Start the realm and draw its progress."""
    with screen.bar("provisioning") as report:
        warden.start(target.realm_uuid, lambda _application, _stage, done, total: report(done, total))


@contextmanager
def _stopping(warden: WardenClient, target: Target, *, keep: bool) -> Iterator[None]:
    """Stop the realm when the block ends, also when it is interrupted; data and realm stay."""
    try:
        yield
    finally:
        if not keep:
            with suppress(IsletError):
                warden.stop(target.realm_uuid)


def _follow(workspace: Workspace, warden: WardenClient, target: Target, screen: Screen) -> int:
    """Show the application's output until it has ended; return its exit code."""
    import threading

    with pipeline.warden_client(workspace) as logs:
        stream = logs.logs(target.realm_uuid, target.application_uuid, follow=True)
        thread = threading.Thread(target=_pump, args=(stream, screen.output), daemon=True)
        thread.start()
        while True:
            state = warden.inspect_application(target.realm_uuid, target.application_uuid)
            if state["status"] == "Exited":
                break
            if state["status"] == "Unknown":
                raise UnavailableError(
                    "the realm ended under the application", code="realm-gone", hint="see: islet realm list"
                )
            time.sleep(_POLL_S)
        # The last output may still be on its way through the warden's polling.
        thread.join(timeout=5)
    return exit_code_of_status(state["exit_status"])


def _pump(chunks: Iterator[bytes], output: Callable[[bytes], None]) -> None:
    with suppress(IsletError):
        for chunk in chunks:
            output(chunk)


def exit_code_of_status(raw: int) -> int:
    """Exit code of a raw wait status: the code itself, or 128 + N after signal N."""
    code = os.waitstatus_to_exitcode(raw & 0xFFFF)
    return code if code >= 0 else 128 - code


def exit_code_of(error: IsletError) -> int:
    """Exit code of `islet run` for a failure of islet's own: 127 when the program is not in the image, 126 when it
    cannot be started, else 125."""
    # The manager's code stands inside the text that the warden passes on.
    if " not_found: " in error.message:
        return NOT_FOUND
    return CANNOT_START if " not_executable: " in error.message else OWN_FAILURE
