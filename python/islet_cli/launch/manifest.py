"""`realm.toml`: the only description of a realm.

Every key but `schema`, `name` and `id` has a default; an unknown key, an ill-typed or a
contradictory value is an error that names it. Paths are relative to the manifest file.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Literal

import msgspec

from islet_cli.config import STATE_NAME, decode_toml
from islet_cli.errors import InputError
from islet_cli.fsutil import read_file
from islet_cli.launch import types

MANIFEST_LIMIT = 1 << 20
_U64_MAX = (1 << 64) - 1
_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


class _Strict(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    pass


class ImageSettings(_Strict, frozen=True):
    """`[image]`: what boots. After `load_manifest` no member is None."""

    arch: Literal["x86_64", "aarch64"] | None = None
    kernel: types.RelativeOrAbsolutePath | None = None
    initramfs: types.RelativeOrAbsolutePath | None = None
    lock: types.RelativeOrAbsolutePath = "realm.lock"
    rsi: Literal["virtio-serial", "device"] = "virtio-serial"


class LaunchSettings(_Strict, frozen=True):
    """`[launch]`: everything that the RIM depends on besides the image and the devices."""

    vmm: types.Vmm = "kvmtool"
    profile: types.Profile = "tf-rmm"
    hash_algo: types.HashAlgo = "sha256"
    vcpus: types.Vcpus = 2
    memory_mib: types.MemoryMib = 512
    cmdline: types.Cmdline = "quiet loglevel=3 panic=-1"
    console: types.Console = "serial"
    irqchip: types.IrqChip = "gicv3"
    sve_vl: types.SveVl = 0
    pmu: bool = False
    pmu_counters: types.PmuCounters = 0
    personalization: types.Personalization = ""
    metadata: bool = True


class ApplicationPolicy(_Strict, frozen=True):
    """One entry of `policy.applications`; `vendor` None means any vendor that the policy allows."""

    name: types.ApplicationName
    vendor: types.Sha256Hex | None = None
    min_security_version: types.SecurityVersion = 0


class PolicySettings(_Strict, frozen=True):
    """`[policy]`: becomes the measured policy of the image.

    `forward_output` None follows `image.rsi`: true with `virtio-serial`, false with `device`.
    After `load_manifest` it is a boolean.
    """

    sealing_svn: types.Svn = 1
    min_svn: types.Svn = 1
    sealing_flags: list[types.SealingFlag] = msgspec.field(default_factory=lambda: ["RealmId"])
    offline: bool = True
    forward_output: bool | None = None
    vendors: list[types.Sha256Hex] = msgspec.field(default_factory=list)
    registries: list[types.RegistryName] = msgspec.field(default_factory=list)
    applications: list[ApplicationPolicy] = msgspec.field(default_factory=list)
    token_challenge: Literal["hashed", "raw"] = "hashed"  # noqa: S105 - a mode, not a secret
    compat: bool = False


class DeviceSettings(_Strict, frozen=True):
    """`[devices]`."""

    disk_layout: types.DiskLayout = "shared"
    nics: types.Nics = 1
    vsock: bool = True
    internet: bool = False


class _Document(_Strict, frozen=True, kw_only=True):
    schema: Literal[1]
    name: types.RealmName
    id: types.RealmId
    version: types.Version = "1.0.0"
    svn: types.Svn = 1
    image: ImageSettings = ImageSettings()
    launch: LaunchSettings = LaunchSettings()
    policy: PolicySettings = PolicySettings()
    devices: DeviceSettings = DeviceSettings()


class Manifest(_Document, frozen=True, kw_only=True):
    """A realm manifest with its defaults filled in.

    `path` is the absolute path of the file it came from; the `*_path` properties resolve against it.
    """

    path: Path

    @property
    def directory(self) -> Path:
        """Where relative paths of the manifest start."""
        return self.path.parent

    @property
    def kernel_path(self) -> Path:
        """The kernel file (absolute)."""
        return self.directory / (self.image.kernel or "")

    @property
    def initramfs_path(self) -> Path:
        """The initramfs file (absolute)."""
        return self.directory / (self.image.initramfs or "")

    @property
    def lock_path(self) -> Path:
        """The lock file of the realm image (absolute)."""
        return self.directory / self.image.lock

    @property
    def arch(self) -> str:
        """`x86_64` or `aarch64`."""
        return self.image.arch or host_arch()

    @property
    def personalization(self) -> bytes:
        """The Realm Personalization Value: 64 bytes, zero padded."""
        return self.launch.personalization.encode().ljust(64, b"\0")


def host_arch() -> str:
    """This machine's architecture as the manifest spells it.

    Raises:
        InputError: Neither x86_64 nor aarch64 (`arch`).
    """
    machine = platform.machine().lower()
    try:
        return _MACHINES[machine]
    except KeyError:
        raise InputError(
            f"this machine is a {machine}; realms run on x86_64 and aarch64",
            code="arch",
            hint='set image.arch = "x86_64" or "aarch64" in realm.toml',
        ) from None


def load_manifest(path: Path | str) -> Manifest:
    """Read and check a realm manifest.

    Raises:
        InputError: Missing or unreadable file, malformed TOML, unknown key, value out of range, or
            values that contradict each other (`bad-config`).
    """
    path = Path(path).absolute()
    return parse_manifest(read_file(path, limit=MANIFEST_LIMIT), path)


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """Like `load_manifest` for bytes already read; `path` is where relative paths start and what errors name."""
    document = decode_toml(data, _Document, what=str(path))
    _require_consistent(document, path)
    state = f"{STATE_NAME}/realms/{document.name}"
    image = msgspec.structs.replace(
        document.image,
        arch=document.image.arch or host_arch(),
        kernel=document.image.kernel or f"{state}/vmlinuz",
        initramfs=document.image.initramfs or f"{state}/initramfs.cpio.zst",
    )
    forward = document.policy.forward_output
    policy = msgspec.structs.replace(
        document.policy, forward_output=image.rsi == "virtio-serial" if forward is None else forward
    )
    members = {name: getattr(document, name) for name in document.__struct_fields__}
    return Manifest(**(members | {"image": image, "policy": policy, "path": path}))


def _require_consistent(document: _Document, path: Path) -> None:
    """Checks that concern more than one value."""
    policy = document.policy
    for name, value in (("sealing_svn", policy.sealing_svn), ("min_svn", policy.min_svn)):
        if value > document.svn:
            raise _contradiction(
                path, f"policy.{name} = {value} is above svn = {document.svn}", f"raise svn or lower {name}"
            )
    if len(document.launch.personalization.encode()) > 64:
        raise _contradiction(path, "launch.personalization is longer than 64 bytes", "shorten it")
    if any(not 0x20 <= ord(character) != 0x7F for character in document.launch.personalization):
        raise _contradiction(path, "launch.personalization has a control character", "remove it")
    if not policy.compat and not {"Rim", "RealmId"} & set(policy.sealing_flags):
        # Without either, every realm of the platform would derive the same keys.
        raise _contradiction(path, "policy.sealing_flags has neither Rim nor RealmId", "add RealmId")
    if any(int(part) > _U64_MAX for part in document.version.split(".")):
        raise _contradiction(path, f"version {document.version} has a part above 2^64-1", "lower it")
    _require_distinct(path, "policy.applications", [application.name for application in policy.applications])
    _require_distinct(path, "policy.sealing_flags", list(policy.sealing_flags))
    _require_one_vendor(document, path)


def _require_one_vendor(document: _Document, path: Path) -> None:
    """Applications of a realm share one vendor (outside compat mode), and it must be one that the policy allows."""
    policy = document.policy
    named = {application.vendor for application in policy.applications if application.vendor}
    if policy.vendors and not named <= set(policy.vendors):
        unlisted = sorted(named - set(policy.vendors))[0]
        raise _contradiction(path, f"policy.applications names vendor {unlisted}, which policy.vendors lacks", "add it")
    if len(named) > 1 and not policy.compat:
        raise _contradiction(path, "policy.applications names more than one vendor", "use a realm per vendor")


def _require_distinct(path: Path, what: str, values: list[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise _contradiction(path, f"{what} lists {value} twice", "list it once")
        seen.add(value)


def _contradiction(path: Path, problem: str, mend: str) -> InputError:
    return InputError(f"{path}: {problem}", code="bad-config", hint=mend)
