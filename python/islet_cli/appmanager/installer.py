"""Deciding what runs: the installed image, the fetched one, or none; and putting the fetched one in place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from islet_cli.appmanager.config import Policy
from islet_cli.appmanager.fetcher import FetchedImage, ImageSource, is_unreachable
from islet_cli.appmanager.policy import Selection, check_image
from islet_cli.appmanager.record import Record, Slot
from islet_cli.appmanager.volumes import ImageVolume
from islet_cli.errors import IsletError, OperationError, UnavailableError, VerificationError

if TYPE_CHECKING:
    from islet_cli.keys.ecc import PublicKey
    from islet_cli.signing.verify import VendorIdentity

Report = Callable[[str, int, int], None]
"""`report(phase, done, total)`; raises to cancel."""


@dataclass(frozen=True)
class VerifiedImage:
    """An image whose signature chain, name, vendor and security version were checked.

    Attributes:
        config: The exact configuration bytes.
        vendor: Who signed it.
        security_version: Its signed label, 0 when absent.
    """

    config: bytes
    vendor: VendorIdentity
    security_version: int

    @property
    def image_hash(self) -> bytes:
        """SHA-384 of the configuration, 48 bytes: what is measured."""
        return hashlib.sha384(self.config).digest()


@dataclass(frozen=True)
class Decision:
    """What is to be run.

    Attributes:
        image: The verified image.
        fetched: Set when the image must be installed first; None when the installed one is it.
        offline: The registry was away.
    """

    image: VerifiedImage
    fetched: FetchedImage | None
    offline: bool = False


def verify(
    config: bytes, annotations: Mapping[str, str], ca: PublicKey, policy: Policy, selection: Selection
) -> VerifiedImage:
    """Check everything that can be checked before a layer is fetched.

    Raises:
        VerificationError: The code of the check that refused.
        InputError: The configuration is malformed.
    """
    from islet_cli.signing.verify import require_application, security_version, verify_config

    vendor = verify_config(config, annotations, ca)
    require_application(config, selection.info.name, compat=policy.compat)
    version = security_version(config)
    check_image(policy, selection, vendor.fingerprint, version)
    return VerifiedImage(config, vendor, version)


def decide(source: ImageSource, record: Record | None, ca: PublicKey, policy: Policy, selection: Selection) -> Decision:
    """Fetch manifest and configuration and decide.

    Raises:
        IsletError: No image may run: the fetched one was refused, or the registry is away (`registry_unreachable`)
            and what is installed may not or cannot be used.
    """
    name = selection.info.name
    try:
        fetched = source.fetch(selection)
    except IsletError as error:
        if not is_unreachable(error) or record is None:
            raise
        if not policy.offline:
            raise UnavailableError(
                f"{error.message}; the policy does not allow offline starts", code="registry_unreachable"
            ) from error
        return Decision(verify(record.config, record.annotations, ca, policy, selection), None, offline=True)
    image = verify(fetched.config, fetched.annotations, ca, policy, selection)
    if record is not None:
        refuse_rollback(name, image.security_version, record.highest_security_version)
        if record.config == fetched.config and _is_installed(record, image, ca, policy, selection):
            return Decision(image, None)
    return Decision(image, fetched)


def _is_installed(record: Record, image: VerifiedImage, ca: PublicKey, policy: Policy, selection: Selection) -> bool:
    """Whether the installed image is this one, its own stored signature checked again."""
    try:
        stored = verify(record.config, record.annotations, ca, policy, selection)
    except IsletError:
        # What does not verify any more is replaced by what does.
        return False
    return stored.vendor.public_key == image.vendor.public_key


def refuse_rollback(name: str, version: int, highest: int) -> None:
    """Require that `version` is not below the highest security version that was ever installed.

    Raises:
        VerificationError: `rollback_refused`.
    """
    if version < highest:
        raise VerificationError(
            f"{name}: security version {version} is older than {highest}, which was installed before",
            code="rollback_refused",
        )


def install(
    source: ImageSource, volume: ImageVolume, selection: Selection, decision: Decision, highest: int, report: Report
) -> None:
    """Fetch, check and unpack the layers into the idle slot, then switch to it.

    Args:
        source: Where the layers are.
        volume: The opened image partition.
        selection: What was asked for.
        decision: Its `fetched` is set.
        highest: Highest security version seen so far.
        report: Progress; it may raise to cancel.

    Raises:
        IsletError: Nothing changed: the image that was installed stays.
    """
    from islet_cli.oci.documents import parse_config
    from islet_cli.oci.unpack import apply_layers, pair_layers

    fetched = decision.fetched
    assert fetched is not None
    diff_ids = parse_config(fetched.config).diff_ids

    def fill(root: Path) -> None:
        directory = root.parent / "fetch"
        directory.mkdir(mode=0o700)
        files = source.fetch_layers(selection, fetched, directory, lambda done, total: report("fetch", done, total))
        by_digest = {str(layer.digest): file for layer, file in zip(fetched.layers, files, strict=True)}
        layers = pair_layers(fetched.layers, diff_ids, by_digest.__getitem__)
        apply_layers(root, layers, progress=lambda done, total: report("unpack", done, total))

    def record_of(slot: Slot) -> Record:
        return Record(
            name=selection.info.name,
            reference=selection.info.version,
            manifest_digest=fetched.manifest_digest,
            config=fetched.config,
            annotations=dict(fetched.annotations),
            security_version=decision.image.security_version,
            highest_security_version=max(highest, decision.image.security_version),
            slot=slot,
        )

    try:
        volume.install(fill, record_of)
    except OperationError as error:
        if error.code != "disk-full":
            raise
        raise OperationError(
            f"{selection.info.name}: the image partition is too small for this image: {error.message}",
            code="disk-full",
            hint="give the application a larger image partition",
        ) from error
