"""`/etc/app-manager/config.yml`: the manager's configuration and measured policy, from the realm manifest.

The text is JSON, which is YAML too: any YAML reader takes it, and the manager reads it without loading one.
"""

from __future__ import annotations

import json
from typing import Any

from islet_cli.errors import InputError
from islet_cli.launch.manifest import Manifest

CONFIG_PATH = "etc/app-manager/config.yml"
CA_PATH = "usr/share/app-manager/ca/root-ca.pub"
REGISTRY_CA_PATH = "usr/share/app-manager/ratls/root-ca.crt"
BUILD_TIME_PATH = "etc/islet-build-time"
VSOCK_FLAG_PATH = "etc/islet/vsock"
VSOCK_PORT = 1337


def control_of(manifest: Manifest) -> str:
    """The control channel: real hardware has vsock, the emulated platform's realms a virtio-serial port."""
    return "vsock" if manifest.image.rsi == "device" else "virtio-serial"


def configuration(manifest: Manifest, *, metadata_key: bytes | None) -> dict[str, Any]:
    """Return the configuration as data.

    Args:
        manifest: The realm.
        metadata_key: Public key of the metadata block's signer, x||y, 96 bytes; None when the realm has no
            metadata block. Without one the manager uses only keys that are bound to the RIM.

    Raises:
        InputError: `not-supported`: the policy asks for upstream's forms, which the manager does not run.
    """
    policy = manifest.policy
    if policy.compat:
        raise InputError(
            f"{manifest.path}: policy.compat: this image's app manager does not run upstream's storage layout",
            code="not-supported",
            hint="leave policy.compat out",
        )
    measured: dict[str, Any] = {"compat": False}
    if metadata_key is not None:
        measured["metadata"] = {"public_key": metadata_key.hex(), "realm_id": manifest.id, "min_svn": policy.min_svn}
    measured |= {
        "vendors": list(policy.vendors),
        "registries": list(policy.registries),
        "applications": [_application(item) for item in policy.applications],
        "offline": policy.offline,
        "forward_output": bool(policy.forward_output),
        "token_challenge": policy.token_challenge,
    }
    sealing = {"flags": list(policy.sealing_flags), "svn": policy.sealing_svn}
    return {
        "workdir": "/apps",
        "control": control_of(manifest),
        "vsock_port": VSOCK_PORT,
        "rsi": manifest.image.rsi,
        "crypto": {"cipher": "Aes", "block_mode": "Xts", "iv_mode": "Plain64", "iv_offset": 0, "key_bytes": 64},
        "launcher": {"Oci": {"RaTLS": {"root_ca": f"/{REGISTRY_CA_PATH}", "token_resolver": "rsi"}}},
        "ca_pub": f"/{CA_PATH}",
        "keysealing": {"HkdfSha256": {"RsiSealingKey": sealing}},
        "autostartall": True,
        "extend": "rem0",
        "ensure_same_app_vendor": True,
        "fs_type": "Ext4",
        "policy": measured,
    }


def _application(item: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"name": item.name}
    if item.vendor is not None:
        out["vendor"] = item.vendor
    return out | {"min_security_version": item.min_security_version}


def render(configuration: dict[str, Any]) -> bytes:
    """Write the configuration as text."""
    return json.dumps(configuration, indent=2, ensure_ascii=True, allow_nan=False).encode() + b"\n"
