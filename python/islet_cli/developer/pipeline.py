"""From a path to a published, signed image, and from a workspace to running services.

What `islet run` and `islet demo` share: each function does one step of the way with the libraries of
the components and returns what came out.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from islet_cli import services
from islet_cli.config import Workspace
from islet_cli.errors import OperationError
from islet_cli.fsutil import make_private_directory

if TYPE_CHECKING:
    from islet_cli.launch.manifest import Manifest
    from islet_cli.oci.build import BuiltImage
    from islet_cli.progress import Report
    from islet_cli.realm_image.build import BuiltImage as BuiltRealm
    from islet_cli.realm_image.publish import Published
    from islet_cli.warden.client import WardenClient

MIB = 1 << 20
_GRANULARITY_MIB = 16
_SERVICES = {
    "platform": ["platform", "up", "--foreground"],
    "registry": ["registry", "serve"],
    "warden": ["warden", "up", "--foreground"],
}


@dataclass(frozen=True)
class SignedImage:
    """A signed image in the registry of the workspace."""

    name: str
    tag: str
    layout: Path
    unpacked_bytes: int
    compressed_bytes: int
    manifest_digest: str

    def image_mib(self) -> int:
        """Size of an image partition for it: a record and two slots, so that old and new stand side by side.

        Source: docs/formats.md (slots): 1 MiB + 2 x (1.15 x unpacked + compressed + 16 MiB), in steps of 16 MiB.
        """
        slot = 1.15 * self.unpacked_bytes + self.compressed_bytes + 16 * MIB
        return math.ceil((MIB + 2 * slot) / MIB / _GRANULARITY_MIB) * _GRANULARITY_MIB


def start_services(workspace: Workspace) -> str:
    """Start what does not run yet: platform, registry, warden. Return the registry's address, `HOST:PORT`."""
    for name, arguments in _SERVICES.items():
        services.start(workspace, name, arguments)
    return registry_address(workspace)


def registry_address(workspace: Workspace) -> str:
    """Return `HOST:PORT` of the running registry of the workspace."""
    running = services.find(workspace, "registry")
    if running is None:
        raise OperationError("the registry ended", code="service-failed", hint="see: islet registry log")
    return str(running.info["address"])


def stop_services(workspace: Workspace) -> list[str]:
    """Stop warden, registry and platform, in this order; return those that ran.

    The warden goes first: its realms need the platform and the registry until they are down.
    """
    return [name for name in ("warden", "registry", "platform") if services.stop(workspace, name)]


def warden_client(workspace: Workspace) -> WardenClient:
    """Connect to the warden of the workspace."""
    from islet_cli.warden.client import WardenClient

    return WardenClient(workspace.warden_socket)


def sign_and_add(workspace: Workspace, built: BuiltImage) -> SignedImage:
    """Sign a built image with the workspace's vendor key and add it to the workspace's registry."""
    from islet_cli.registry import store

    sign_in_place(workspace, built.layout, built.tag)
    store.add(workspace.registry_root, built.layout, built.name, tag=built.tag)
    return signed_image(built.layout, built.tag, built.name)


def sign_in_place(workspace: Workspace, layout: Path, tag: str, *, application: str | None = None) -> None:
    """Sign the image under `tag` of `layout` with the workspace's vendor key and its certificate.

    Args:
        application: Written into the configuration's label `io.islet.application` first.
    """
    from islet_cli.fsutil import read_file
    from islet_cli.keys.ecc import load_private, load_public
    from islet_cli.signing.sign import certified_vendor, sign_image

    keys = workspace.settings.keys
    vendor_file = workspace.path(keys.vendor)
    private = load_private(vendor_file)
    authority = load_public(workspace.path(keys.ca).with_suffix(".pub"))
    certificate = read_file(vendor_file.with_name(f"{vendor_file.stem}.pub.sig"))
    vendor = certified_vendor(private.public, certificate, authority, private)
    sign_image(layout, tag, vendor, application=application)


def signed_image(layout: Path, tag: str, name: str) -> SignedImage:
    """Describe the signed image under `tag` of `layout`."""
    from islet_cli.oci.build import describe

    sizes = describe(layout, tag)
    return SignedImage(name, tag, layout, sizes.unpacked_bytes, sizes.compressed_bytes, sizes.manifest_digest)


def build_realm(workspace: Workspace, manifest: Manifest, report: Report | None = None) -> BuiltRealm:
    """Build the realm image of `manifest`, or reuse the one that stands there."""
    from islet_cli.realm_image.build import build

    return build(workspace, manifest, report=report)


def publish_realm(workspace: Workspace, manifest: Manifest, images: Sequence[SignedImage] = ()) -> Published:
    """Publish RIM, metadata block and reference values of `manifest` into `.islet/published/NAME`."""
    from islet_cli.keys.ecc import load_private
    from islet_cli.realm_image.publish import publish

    key = load_private(workspace.path(workspace.settings.keys.realm))
    return publish(workspace, manifest, key, [(image.layout, image.tag) for image in images])


def scratch_directory(workspace: Workspace, name: str) -> Path:
    """Return an empty private directory under the cache for building `name`."""
    directory = workspace.cache_dir / "run" / name
    if directory.exists():
        shutil.rmtree(directory)
    make_private_directory(directory.parent)
    return make_private_directory(directory)
