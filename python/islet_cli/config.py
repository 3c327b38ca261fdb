"""The workspace: `islet.toml`, the `.islet` directory and the run directory.

Source: docs/formats.md (workspace).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from islet_cli.errors import InputError, UnavailableError
from islet_cli.fsutil import make_private_directory, read_file, require_private

SETTINGS_NAME = "islet.toml"
STATE_NAME = ".islet"

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
T = TypeVar("T")


class _Strict(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    pass


class KeySettings(_Strict, frozen=True):
    """Where the signing keys are, relative to islet.toml."""

    ca: str = ".islet/keys/root-ca.prv"
    vendor: str = ".islet/keys/vendor.prv"
    realm: str = ".islet/keys/realm.pem"
    registry_ca: str = ".islet/keys/registry-ca.key"


class CpakSettings(_Strict, frozen=True):
    """One pinned platform attestation key."""

    file: str
    kind: Literal["real", "emulated"] = "real"


class RegistrySettings(_Strict, frozen=True):
    """`[registry]`."""

    root: str = ".islet/registry"
    listen: str = "127.0.0.1:1337"
    tls: Literal["none", "tls", "ra-tls"] = "ra-tls"
    cert: str = ".islet/registry-tls/server.crt"
    key: str = ".islet/registry-tls/server.key"
    ca: str = ".islet/registry-tls/ca.crt"
    cpak: list[CpakSettings] = msgspec.field(
        default_factory=lambda: [CpakSettings(file=".islet/platform/cpak.bin", kind="emulated")]
    )
    reference: list[str] = msgspec.field(default_factory=lambda: [".islet/published/*/reference-pull.json"])
    allow_emulated: bool = False
    # "socket": one below the run directory; else a socket's path, ADDR:PORT, or "off".
    push_listen: str = "socket"
    push_htpasswd: str = ""
    push_tls: Literal["none", "tls"] = "none"


class WardenSettings(_Strict, frozen=True):
    """`[warden]`."""

    runner: Literal["qemu"] = "qemu"
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    network: Literal["user", "none"] = "user"
    transport: Literal["virtio-serial", "vsock"] = "virtio-serial"


class RunSettings(_Strict, frozen=True):
    """`[run]`."""

    realm: str = "default"
    data_mb: Annotated[int, msgspec.Meta(ge=1, le=102400)] = 256


class Settings(_Strict, frozen=True):
    """`islet.toml`."""

    schema: Literal[1]
    keys: KeySettings = KeySettings()
    registry: RegistrySettings = RegistrySettings()
    warden: WardenSettings = WardenSettings()
    run: RunSettings = RunSettings()


def decode_toml(data: bytes, kind: type[T], *, what: str) -> T:
    """Decode TOML into a strict msgspec type.

    Raises:
        InputError: Malformed TOML, an unknown key, a missing or ill-typed value; the message names it.
    """
    try:
        return msgspec.toml.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{what}: {error}", code="bad-config") from error


@dataclass(frozen=True)
class Workspace:
    """A directory with an `islet.toml` and its `.islet` state."""

    root: Path
    settings: Settings

    @classmethod
    def load(cls, root: Path) -> Workspace:
        """Open the workspace at `root`.

        Raises:
            InputError: Malformed `islet.toml`, or a directory that is not private to this user.
        """
        root = root.resolve()
        file = root / SETTINGS_NAME
        if not file.is_file():
            raise UnavailableError(
                f"{root}: no {SETTINGS_NAME} here", code="no-workspace", hint=f"run: islet init {root}"
            )
        require_private(root)
        settings = decode_toml(read_file(file), Settings, what=str(file))
        workspace = cls(root, settings)
        if workspace.state.exists():
            require_private(workspace.state)
        return workspace

    @classmethod
    def find(cls, explicit: Path | None = None, start: Path | None = None) -> Workspace:
        """Open `explicit`, else `$ISLET_WORKSPACE`, else the nearest `islet.toml` upward.

        Raises:
            UnavailableError: There is none (`no-workspace`).
        """
        chosen = explicit or (Path(os.environ["ISLET_WORKSPACE"]) if os.environ.get("ISLET_WORKSPACE") else None)
        if chosen is not None:
            return cls.load(chosen)
        here = (start or Path.cwd()).resolve()
        for directory in (here, *here.parents):
            if (directory / SETTINGS_NAME).is_file():
                return cls.load(directory)
        raise UnavailableError(f"no {SETTINGS_NAME} in {here} or above it", code="no-workspace", hint="run: islet init")

    def path(self, relative: str) -> Path:
        """Resolve a path of `islet.toml`, which is relative to that file."""
        return self.root / relative

    @property
    def state(self) -> Path:
        """`.islet`, mode 0700."""
        return self.root / STATE_NAME

    @property
    def keys_dir(self) -> Path:
        return self.state / "keys"

    @property
    def platform_dir(self) -> Path:
        return self.state / "platform"

    @property
    def warden_dir(self) -> Path:
        return self.state / "warden"

    @property
    def log_dir(self) -> Path:
        return self.state / "log"

    @property
    def cache_dir(self) -> Path:
        return self.state / "cache"

    def realm_dir(self, name: str) -> Path:
        """Where the image of realm `name` is built."""
        return self.state / "realms" / name

    def published_dir(self, name: str) -> Path:
        """Where reference values, RIM and metadata block of realm `name` are published."""
        return self.state / "published" / name

    def manifest_path(self, name: str) -> Path:
        """The realm manifest: `realm.toml` when it describes `name`, else `NAME.realm.toml`."""
        own = self.root / f"{name}.realm.toml"
        return own if own.exists() else self.root / "realm.toml"

    @property
    def registry_root(self) -> Path:
        return self.path(self.settings.registry.root)

    @cached_property
    def run_dir(self) -> Path:
        """Sockets and pid files: `$XDG_RUNTIME_DIR/islet/ID`, else a private directory in the temporary one.

        ID is 16 hex digits of SHA-256 of the workspace's real path, because a Unix socket path holds
        at most 107 bytes.
        """
        identity = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        base = os.environ.get("XDG_RUNTIME_DIR")
        parent = Path(base) / "islet" if base else Path(tempfile.gettempdir()) / f"islet-{os.geteuid()}"
        make_private_directory(parent)
        return make_private_directory(parent / identity)

    @property
    def platform_socket(self) -> Path:
        return self.run_dir / "platform.sock"

    @property
    def warden_socket(self) -> Path:
        return self.run_dir / "warden.sock"
