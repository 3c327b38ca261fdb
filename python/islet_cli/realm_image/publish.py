"""Publishing a realm: what a vendor hands over, all of it following from the manifest and the built image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from islet_cli.config import Workspace
from islet_cli.errors import InputError, IsletError, VerificationError
from islet_cli.fsutil import make_private_directory, read_file
from islet_cli.launch.manifest import Manifest
from islet_cli.launch.plan import LaunchPlan, plan_of
from islet_cli.realm_image import bundle
from islet_cli.realm_image.build import SBOM_NAME, STAMP_NAME

if TYPE_CHECKING:
    from islet_cli.attestation.reference import ReferenceValues
    from islet_cli.keys.ecc import PrivateKey
    from islet_cli.signing.image import VerifiedImage

PULL_NAME, RUNNING_NAME, METADATA_NAME = "reference-pull.json", "reference-running.json", "metadata.bin"
KERNEL_NAME, INITRAMFS_NAME, LOCK_NAME = "vmlinuz", "initramfs.cpio.zst", "realm.lock"
RIM_LOCK_NAME = "rim.lock"
# The register that the image's configuration extends (`extend: rem0`).
_EXTENDED = 0


@dataclass(frozen=True)
class Published:
    """A published realm.

    Attributes:
        directory: Where the bundle is.
        rim: The realm initial measurement.
        metadata: The metadata block's file; None for a realm without one.
        signer: Fingerprint of the metadata block's signer.
        reference_pull: Reference values while images are fetched (all REMs zero).
        reference_running: Reference values after provisioning; None when no applications were given.
    """

    directory: Path
    rim: bytes
    metadata: Path | None
    signer: str | None
    reference_pull: Path
    reference_running: Path | None

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        values = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        return values | {"rim": self.rim.hex()}


def publish(
    workspace: Workspace,
    manifest: Manifest,
    key: PrivateKey | None = None,
    apps: Sequence[tuple[Path, str | None]] = (),
    output: Path | None = None,
) -> Published:
    """Publish the realm image that stands built.

    Args:
        workspace: For its root CA, its keys and the default output.
        manifest: The realm.
        key: Signs the metadata block; by default the workspace's realm key.
        apps: Layout directory and tag (None: the only image) of each application that the realm will run, in
            the order of their creation; they are verified, and taken in the policy's order where it has one.
        output: The bundle's directory, by default `.islet/published/NAME`.

    Raises:
        InputError: The image is not built, a layout is malformed, or an application is not in the policy.
        VerificationError: An application's signatures or digests are wrong, or there is more than one vendor.
    """
    from islet_cli.rim.measure import measure_plan

    plan = plan_of(manifest)
    rim = measure_plan(plan).rim
    contents: dict[str, bytes | Path] = {
        KERNEL_NAME: manifest.kernel_path,
        INITRAMFS_NAME: manifest.initramfs_path,
        bundle.MANIFEST_NAME: _manifest_text(manifest),
        bundle.RIM_NAME: rim.hex().encode() + b"\n",
        PULL_NAME: _reference(manifest, rim, "pull", []).to_bytes(),
    }
    contents[RIM_LOCK_NAME] = _rim_lock(manifest, plan)
    if manifest.lock_path.is_file():
        contents[LOCK_NAME] = read_file(manifest.lock_path)
    listing = workspace.realm_dir(manifest.name) / SBOM_NAME
    if listing.is_file():
        contents[SBOM_NAME] = listing
    signer = None
    if manifest.launch.metadata:
        signing_key = key or _realm_key(workspace)
        _require_signer(workspace, manifest, signing_key)
        contents[METADATA_NAME] = metadata_block(manifest, rim, signing_key)
        signer = signing_key.public.fingerprint
    if apps:
        images = _in_policy_order(manifest, _verified(workspace, apps))
        contents[RUNNING_NAME] = _reference(manifest, rim, "running", images).to_bytes()
    directory = output.absolute() if output else workspace.published_dir(manifest.name)
    make_private_directory(workspace.cache_dir)
    if output is None:
        make_private_directory(directory.parent)
    # Inside the workspace it is prepared where nothing takes it for a published realm.
    bundle.place(directory, contents, aside=workspace.cache_dir if output is None else directory.parent)
    return Published(
        directory,
        rim,
        directory / METADATA_NAME if METADATA_NAME in contents else None,
        signer,
        directory / PULL_NAME,
        directory / RUNNING_NAME if apps else None,
    )


def metadata_block(manifest: Manifest, rim: bytes, key: PrivateKey) -> bytes:
    """Make the metadata block of a realm, 432 bytes."""
    from islet_cli.metadata.create import BlockManifest, create

    algorithm = manifest.launch.hash_algo.upper()
    return create(BlockManifest(manifest.id, manifest.version, manifest.svn, rim.hex(), algorithm), key)


def _realm_key(workspace: Workspace) -> PrivateKey:
    from islet_cli.keys.ecc import load_private

    return load_private(workspace.path(workspace.settings.keys.realm))


def _require_signer(workspace: Workspace, manifest: Manifest, key: PrivateKey) -> None:
    """The image names its metadata signer; a block of another would be refused inside the realm.

    An image that was not built here carries no note of it and is taken as it is.
    """
    try:
        note = json.loads(read_file(workspace.realm_dir(manifest.name) / STAMP_NAME))
        expected = note["inputs"]["signer"]
    except (IsletError, ValueError, KeyError, TypeError):
        return
    if expected != key.public.sec1[1:].hex():
        raise InputError(
            f"realm {manifest.name}: the image was built for another metadata signer than key "
            f"{key.public.fingerprint[:16]}…",
            code="signer-mismatch",
            hint="set keys.realm in islet.toml and run: islet realm build",
        )


def _manifest_text(manifest: Manifest) -> bytes:
    image = {"kernel": KERNEL_NAME, "initramfs": INITRAMFS_NAME, "lock": LOCK_NAME}
    return bundle.manifest_text(manifest, image).encode()


def _rim_lock(manifest: Manifest, plan: LaunchPlan) -> bytes:
    """What `islet rim check` compares with, for the bundle's own copies of manifest and image."""
    from islet_cli.rim import lock
    from islet_cli.rim.request import of_plan

    names = {"manifest": bundle.MANIFEST_NAME, "kernel": KERNEL_NAME, "initrd": INITRAMFS_NAME}
    request = of_plan(plan, source=str(manifest.path), manifest=manifest.path)
    return lock.make(request, manifest.directory, names=names, contents={"manifest": _manifest_text(manifest)})


def _verified(workspace: Workspace, apps: Sequence[tuple[Path, str | None]]) -> list[VerifiedImage]:
    from islet_cli.keys.ecc import load_public
    from islet_cli.oci.layout import read_index
    from islet_cli.oci.reference import default_reference
    from islet_cli.signing.image import verify_image

    authority = load_public(workspace.path(workspace.settings.keys.ca).with_suffix(".pub"))
    images = []
    for layout, tag in apps:
        reference = tag or default_reference(layout, read_index(layout)[0])
        images.append(verify_image(layout, reference, authority))
    return images


def _in_policy_order(manifest: Manifest, images: list[VerifiedImage]) -> list[VerifiedImage]:
    """Order the images as the realm installs and measures them."""
    vendors = {image.vendor.fingerprint for image in images}
    if len(vendors) > 1 and not manifest.policy.compat:
        raise VerificationError("the applications have more than one vendor", code="vendors-differ")
    order = [item.name for item in manifest.policy.applications]
    if not order:
        return images
    for image in images:
        if image.application not in order:
            raise InputError(
                f"application {image.application}: not in policy.applications of {manifest.path}", code="not-in-policy"
            )
    return sorted(images, key=lambda image: order.index(image.application or ""))


def _reference(
    manifest: Manifest, rim: bytes, kind: Literal["pull", "running"], images: Sequence[VerifiedImage]
) -> ReferenceValues:
    from islet_cli.attestation.reference import ReferenceValues
    from islet_cli.attestation.rem import application_measurement, predict

    measurements = [application_measurement(image.vendor.vendor_data, _image_hash(image)) for image in images]
    first, second, third, fourth = predict(measurements, manifest.launch.hash_algo, index=_EXTENDED)
    algorithm = {"sha256": "sha-256", "sha512": "sha-512"}[manifest.launch.hash_algo]
    rems = ((first, second, third, fourth),)
    return ReferenceValues(rim, rems, algorithm, manifest.name, kind, manifest.version)


def _image_hash(image: VerifiedImage) -> bytes:
    return hashlib.sha384(image.config).digest()
