"""Which keys sign: from options, else from the workspace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from islet_cli.config import Workspace
from islet_cli.errors import InputError, InternalError
from islet_cli.keys import ecc, files
from islet_cli.keys.ecc import PublicKey
from islet_cli.signing.sign import Vendor, certified_vendor, certify


@dataclass(frozen=True)
class KeyFiles:
    """The files that were named on the command line.

    Attributes:
        vendor: The vendor's private key; its public key is enough for a signature made elsewhere.
        vendor_signature, ca_public: The root CA's signature over the vendor's key, and the root CA's key.
        ca_private: Instead of the two: the root CA's private key, which then signs the vendor's key.
    """

    vendor: Path | None = None
    vendor_signature: Path | None = None
    ca_public: Path | None = None
    ca_private: Path | None = None


def vendor_of(named: KeyFiles, workspace: Workspace | None, *, signed_elsewhere: bool = False) -> Vendor:
    """Load the keys to sign with.

    Args:
        named: Files that were named; what was not is taken from the workspace.
        workspace: None where there is none.
        signed_elsewhere: The vendor's signature is given, so that its private key is not needed.

    Raises:
        InputError: Not exactly one of the two sets is named (`usage`), or a key is malformed.
        VerificationError: The root CA did not sign the vendor's key (`vendor_signature_invalid`).
    """
    chosen = _complete(named, workspace)
    if chosen.vendor is None:
        raise InputError("no vendor key", code="usage", hint="give --vendor-key, or work in a workspace: islet init")
    private = None if signed_elsewhere else ecc.load_private(chosen.vendor)
    public = files.load_public_half(chosen.vendor) if private is None else private.public
    if chosen.ca_private is not None:
        return certify(public, ecc.load_private(chosen.ca_private), private)
    if chosen.vendor_signature is None or chosen.ca_public is None:
        raise InternalError("an incomplete set of keys was let through")
    certificate = files.load_signature(chosen.vendor_signature)
    return certified_vendor(public, certificate, ecc.load_public(chosen.ca_public), private)


def _complete(named: KeyFiles, workspace: Workspace | None) -> KeyFiles:
    """Check the combination before anything is read, and fill in the workspace's files."""
    realistic = (named.vendor_signature is not None, named.ca_public is not None)
    if named.ca_private is not None and any(realistic):
        raise InputError(
            "--ca-key stands with --vendor-sig or --ca-pub", code="usage", hint="give one set or the other"
        )
    if any(realistic) and not all(realistic):
        raise InputError("--vendor-sig and --ca-pub belong together", code="usage", hint="give both")
    if workspace is None:
        if named.ca_private is None and not all(realistic):
            hint = "give --vendor-sig with --ca-pub, or --ca-key alone; or work in a workspace: islet init"
            raise InputError("the root CA is missing", code="usage", hint=hint)
        return named
    vendor = named.vendor or workspace.path(workspace.settings.keys.vendor)
    if named.ca_private is not None or all(realistic):
        return KeyFiles(vendor, named.vendor_signature, named.ca_public, named.ca_private)
    return KeyFiles(vendor, vendor.with_suffix(".pub.sig"), ca_public_file(workspace))


def ca_public_file(workspace: Workspace) -> Path:
    """The root CA's public key, beside its private one."""
    return workspace.path(workspace.settings.keys.ca).with_suffix(".pub")


def ca_of(named: Path | None, workspace: Workspace | None) -> PublicKey:
    """The root CA's public key to verify with.

    Raises:
        InputError: None is named and there is no workspace (`usage`).
    """
    if named is not None:
        return ecc.load_public(named)
    if workspace is None:
        raise InputError("no root CA", code="usage", hint="give --ca-pub, or work in a workspace: islet init")
    return ecc.load_public(ca_public_file(workspace))
