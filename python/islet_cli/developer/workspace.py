"""Make a workspace: five keys for five jobs, the registry's certificates, the emulated platform's identity.

Source: docs/formats.md (workspace); docs/threat-model.md (separate keys for separate jobs).
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from islet_cli.config import SETTINGS_NAME, STATE_NAME, Workspace
from islet_cli.developer import certificates
from islet_cli.errors import InputError
from islet_cli.fsutil import fsync_directory, make_private_directory, os_error, require_private, write_atomic

if TYPE_CHECKING:
    from islet_cli.keys.ecc import PrivateKey

SETTINGS_TEXT = """\
# An islet workspace. Every key is optional; what is not set here has its default.
schema = 1

[registry]
listen = "{listen}"
# Evidence of the emulated platform proves nothing about the host. It is admitted here because this
# workspace is for development; set this to false before real realms are served.
allow_emulated = true

[warden]
accel = "auto"            # or "kvm", "tcg"
network = "user"

[run]
realm = "{realm}"
data_mb = 256
"""

MANIFEST_TEXT = """\
# A realm manifest: the only description of a realm. The command line that launches it, its measurement
# (RIM), its metadata block and its reference values all come from here.
schema = 1
name = "{realm}"
id = "local.islet.{realm}"
version = "1.0.0"
svn = 1

[launch]
vcpus = 2
memory_mib = 512
cmdline = "quiet loglevel=3 panic=-1"

[policy]
sealing_svn = 1           # stays when svn rises, so that data stays readable
"""

_REALM_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]{0,252}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Made:
    """What `make_workspace` made: the workspace and the fingerprint (SHA-256 of SPKI) of each signing key."""

    workspace: Workspace
    fingerprints: dict[str, str]


def make_workspace(
    root: Path, *, registry_names: Sequence[str] = (), listen: str = "127.0.0.1:1337", realm: str = "default"
) -> Made:
    """Make a workspace in `root`.

    `.islet` is built aside and renamed into place, `islet.toml` is written last: an interrupted run
    leaves no workspace, and running it again finishes the work with the keys that are there.

    Args:
        root: Directory, made when missing.
        registry_names: Further host names for the registry's certificate.
        listen: `[registry] listen`.
        realm: Name of the first realm manifest.

    Raises:
        InputError: There is a workspace already (`exists`), a name is malformed, or `root` is not private.
    """
    if not _REALM_NAME.fullmatch(realm):
        raise InputError(f"realm name {realm!r}: use a-z, 0-9 and '-', at most 32 characters", code="bad-name")
    for name in registry_names:
        if not _HOST_NAME.fullmatch(name):
            raise InputError(f"registry name {name!r}: not a host name or address", code="bad-name")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise os_error(error, root) from error
    root = root.resolve()
    require_private(root)
    if (root / SETTINGS_NAME).exists():
        raise InputError(
            f"{root}: already a workspace", code="exists", hint="islet status commands work in it as it is"
        )
    state = root / STATE_NAME
    if not state.exists():
        aside = root / f"{STATE_NAME}.{secrets.token_hex(4)}.tmp"
        try:
            _fill_state(make_private_directory(aside), registry_names)
            aside.rename(state)
            fsync_directory(root)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    require_private(state)
    manifest = root / "realm.toml"
    if not manifest.exists():
        write_atomic(manifest, MANIFEST_TEXT.format(realm=realm).encode(), mode=0o644)
    write_atomic(root / SETTINGS_NAME, SETTINGS_TEXT.format(listen=listen, realm=realm).encode(), mode=0o644)
    workspace = Workspace.load(root)
    return Made(workspace, fingerprints(workspace))


def fingerprints(workspace: Workspace) -> dict[str, str]:
    """Return the fingerprint of each signing key of the workspace, by its role."""
    from islet_cli.keys.ecc import load_private

    keys = workspace.settings.keys
    roles = {"root CA": keys.ca, "vendor": keys.vendor, "realm metadata": keys.realm}
    return {role: load_private(workspace.path(file)).public.fingerprint for role, file in roles.items()}


def _fill_state(state: Path, registry_names: Sequence[str]) -> None:
    from islet_cli.platform import hes

    for name in ("keys", "registry", "registry-tls", "warden", "realms", "published", "cache", "log", "platform"):
        make_private_directory(state / name)
    _make_signing_keys(state / "keys")
    _make_registry_certificates(state / "keys", state / "registry-tls", registry_names)
    hes.create_identity(state / "platform")


def _make_signing_keys(directory: Path) -> None:
    from islet_cli.keys import ecc

    authority, vendor, realm = ecc.generate(), ecc.generate(), ecc.generate()
    write_atomic(directory / "root-ca.prv", authority.sec1_der())
    write_atomic(directory / "root-ca.pub", authority.public.spki, mode=0o644)
    write_atomic(directory / "vendor.prv", vendor.sec1_der())
    write_atomic(directory / "vendor.pub", vendor.public.spki, mode=0o644)
    write_atomic(directory / "vendor.pub.sig", authority.sign(vendor.public.spki), mode=0o644)
    write_atomic(directory / "realm.pem", _pem(realm))
    write_atomic(directory / "realm.pub", realm.public.spki, mode=0o644)


def _pem(key: PrivateKey) -> bytes:
    pem = key.pem()
    return pem if isinstance(pem, bytes) else pem.encode("ascii")


def _make_registry_certificates(keys: Path, tls: Path, names: Sequence[str]) -> None:
    ca_key, server_key = certificates.generate_key(), certificates.generate_key()
    # The common name tells two workspaces' CAs apart in an error message; it carries no trust.
    authority = certificates.issue_ca(ca_key, f"islet registry CA {os.urandom(4).hex()}")
    server = certificates.issue_server(server_key, authority, ca_key, [*certificates.DEFAULT_NAMES, *names])
    write_atomic(keys / "registry-ca.key", certificates.key_pem(ca_key))
    write_atomic(tls / "ca.crt", certificates.certificate_pem(authority), mode=0o644)
    write_atomic(tls / "server.key", certificates.key_pem(server_key))
    write_atomic(tls / "server.crt", certificates.certificate_pem(server), mode=0o644)
