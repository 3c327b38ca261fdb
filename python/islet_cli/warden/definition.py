"""What a realm is: read from `launch.json` or from upstream's `config.yaml`, made from the messages that create one.

The measured files of a launch are copied into the realm's directory under names with their digests, so that
nothing outside can change a realm and an update is one atomic rename of `launch.json`.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from islet_cli.errors import InputError
from islet_cli.fsutil import fsync_directory, os_error, read_file, write_atomic
from islet_cli.launch.plan import LaunchPlan
from islet_cli.warden.errors import WardenError
from islet_cli.warden.network import Publish, check_mac, check_publish
from islet_cli.warden.state import CONFIG_NAME, RealmDirectory, dump_upstream_config

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_LARGEST_CID = 0xFFFF_FFFE
_METADATA_SIZES = (432, 4096)


@dataclass(frozen=True)
class Definition:
    """A realm as it will be launched. `plan.disks` counts for the shared disk only."""

    uuid: uuid.UUID
    name: str
    plan: LaunchPlan | None
    metadata: Path | None
    publish: tuple[Publish, ...]
    internet: bool
    layout: Literal["shared", "per-application"]
    vsock_cid: int
    mac: str | None = None
    tap: str | None = None
    device: str = "virtio-net-pci"
    machine: str | None = None
    cpu: str | None = None

    def plan_for(self, applications: int) -> LaunchPlan:
        """The launch plan with this many applications.

        Raises:
            InputError: The realm has no initramfs (possible in upstream's form only).
        """
        if self.plan is None:
            raise InputError("the realm has no initramfs", code="bad-config", hint="create it with --kernel-initramfs")
        return self.plan if self.layout == "shared" else replace(self.plan, disks=applications)

    def metadata_block(self) -> bytes | None:
        """The 432 bytes of the realm metadata block, or None."""
        return None if self.metadata is None else read_block(self.metadata)


def read_block(file: Path) -> bytes:
    """The 432 bytes of a metadata block, from a file that may be padded to a page.

    Raises:
        InputError: It cannot be read, or has another size (`bad-config`).
    """
    data = read_file(file, limit=_METADATA_SIZES[-1])
    if len(data) not in _METADATA_SIZES:
        raise InputError(f"{file}: {len(data)} bytes, a metadata block has 432", code="bad-config")
    return data[: _METADATA_SIZES[0]]


def check_name(name: str) -> str:
    """Require a realm name that no uuid could be mistaken for.

    Raises:
        InputError: `bad-config`.
    """
    if not _NAME.fullmatch(name) or _is_uuid(name):
        raise InputError(f"realm name {name!r}: expected a-z, 0-9, '.', '_' and '-'", code="bad-config")
    return name


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


# ------------------------------------------------------------------------------------- islet's form


def write_launch(directory: RealmDirectory, message: dict[str, Any], name: str) -> None:
    """Copy the files of CreateRealmLaunch or UpdateRealm into the realm's directory and write `launch.json`.

    Raises:
        InputError: A file is missing, or its digest is not the plan's.
    """
    plan = LaunchPlan.from_json(message["launch"])
    if plan.disks != 1:
        raise WardenError(
            f"a launch with {plan.disks} disks: this warden gives a realm one shared disk",
            code="not-supported",
            hint='set devices.disk_layout = "shared" in the realm manifest',
        )
    publish = publish_of(message["publish"])
    copied = {}
    for kind, source, expected in (
        ("kernel", plan.kernel, plan.kernel_sha256),
        ("initramfs", plan.initramfs, plan.initramfs_sha256),
    ):
        copied[kind] = _copy_in(directory.path, kind, Path(source), expected)
    metadata = None
    if message["metadata"] is not None:
        read_block(Path(message["metadata"]))
        metadata = _copy_in(directory.path, "metadata", Path(message["metadata"]), None)[0]
    launch = plan.to_json() | {
        "kernel": copied["kernel"][0],
        "kernel_sha256": copied["kernel"][1],
        "initramfs": copied["initramfs"][0],
        "initramfs_sha256": copied["initramfs"][1],
    }
    directory.save_launch(
        {
            "schema": 1,
            "name": name,
            "launch": launch,
            "metadata": metadata,
            "publish": [item.to_message() for item in publish],
            "internet": message["internet"],
        }
    )


def remove_unused_files(directory: RealmDirectory) -> None:
    """Remove copies that `launch.json` no longer names."""
    launch = directory.launch()
    if launch is None:
        return
    used = {launch["launch"]["kernel"], launch["launch"]["initramfs"], launch["metadata"]}
    for file in directory.path.iterdir():
        if re.fullmatch(r"(kernel|initramfs|metadata)-[0-9a-f]{16}", file.name) and file.name not in used:
            file.unlink(missing_ok=True)


def _copy_in(directory: Path, kind: str, source: Path, expected: str | None) -> tuple[str, str]:
    """Copy a file under `KIND-DIGEST`; returns that name and the SHA-256."""
    temporary = directory / f".{kind}.tmp"
    digest = hashlib.sha256()
    try:
        with source.open("rb") as reader, temporary.open("wb") as writer:
            while chunk := reader.read(1 << 20):
                digest.update(chunk)
                writer.write(chunk)
            writer.flush()
            os.fsync(writer.fileno())
        temporary.chmod(0o600)
        value = digest.hexdigest()
        if expected is not None and value != expected:
            raise InputError(f"{source}: its SHA-256 is not the one of the launch plan", code="bad-config")
        name = f"{kind}-{value[:16]}"
        temporary.replace(directory / name)
        fsync_directory(directory)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise os_error(error, source) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return name, value


def publish_of(items: Iterable[dict[str, Any]]) -> tuple[Publish, ...]:
    """Convert and check the `publish` member of a message."""
    publish = tuple(Publish(item["address"], item["host_port"], item["guest_port"]) for item in items)
    check_publish(publish)
    return publish


def load(directory: RealmDirectory) -> Definition:
    """Read a realm's definition.

    Raises:
        IsletError: Its files are unreadable; the realm is then broken.
    """
    launch = directory.launch()
    return _from_upstream(directory) if launch is None else _from_launch(directory, launch)


def _from_launch(directory: RealmDirectory, launch: dict[str, Any]) -> Definition:
    try:
        plan = dict(launch["launch"])
        for kind in ("kernel", "initramfs"):
            plan[kind] = os.fspath(directory.path.absolute() / plan[kind])
        metadata = launch["metadata"]
        return Definition(
            uuid=directory.uuid,
            name=check_name(launch["name"]),
            plan=LaunchPlan.from_json(plan),
            metadata=None if metadata is None else directory.path / metadata,
            publish=publish_of(launch["publish"]),
            internet=bool(launch["internet"]),
            layout="shared",
            vsock_cid=3 + directory.uuid.int % (_LARGEST_CID - 3),
            mac=_mac_of(directory.uuid),
        )
    except (KeyError, TypeError) as error:
        raise WardenError(f"{directory.path}: launch.json lacks {error}", code="storage") from error


def _mac_of(realm: uuid.UUID) -> str:
    """A locally administered address of the realm's own."""
    return ":".join(["52", "55", *(f"{byte:02x}" for byte in hashlib.sha256(realm.bytes).digest()[:4])])


# ---------------------------------------------------------------------------------- upstream's form


def check_upstream(config: dict[str, Any]) -> None:
    """Validate CONFIG of CreateRealm.

    Raises:
        InputError: `bad-config`: sizes, MAC, CID, interface name, or a NUL in a string.
    """
    network = config["network"]
    strings = [
        config["machine"],
        config["cpu"]["cpu"],
        *network.values(),
        *config["kernel"].values(),
        config["metadata"],
    ]
    if any(isinstance(item, str) and "\0" in item for item in strings):
        raise InputError("a string with a NUL byte", code="bad-config")
    if not 3 <= network["vsock_cid"] <= _LARGEST_CID:
        raise InputError(f"vsock context id {network['vsock_cid']}: must be 3 to {_LARGEST_CID}", code="bad-config")
    if not 1 <= len(network["tap_device"].encode()) <= 15:
        raise InputError(f"interface name {network['tap_device']!r}: 1 to 15 bytes", code="bad-config")
    check_mac(network["mac_address"])
    for value in (config["machine"], config["cpu"]["cpu"], network["hardware_device"] or ""):
        if not re.fullmatch(r"[A-Za-z0-9._=,+-]*", value):
            raise InputError(f"{value!r} is not a machine, processor or device name", code="bad-config")
    if not 1 <= config["cpu"]["cores_number"] <= 64 or not 32 <= config["memory"]["ram_size"] <= 1 << 20:
        raise InputError("a realm has 1 to 64 cores and at least 32 MiB of memory", code="bad-config")
    if not Path(config["kernel"]["kernel_path"]).is_absolute():
        raise InputError("the kernel's path must be absolute: the daemon opens it", code="bad-config")


def write_upstream(directory: RealmDirectory, config: dict[str, Any]) -> None:
    """Write `config.yaml`."""
    write_atomic(directory.path / CONFIG_NAME, dump_upstream_config(config))


def _from_upstream(directory: RealmDirectory) -> Definition:
    config = directory.upstream_config()
    check_upstream(config)
    network, kernel = config["network"], config["kernel"]
    metadata = config["metadata"]
    return Definition(
        uuid=directory.uuid,
        name=str(directory.uuid),
        plan=_upstream_plan(config) if kernel["kernel_initramfs_path"] else None,
        metadata=None if metadata is None else Path(metadata),
        publish=(),
        internet=False,
        layout="per-application",
        vsock_cid=network["vsock_cid"],
        mac=network["mac_address"],
        tap=network["tap_device"],
        device=network["hardware_device"] or "e1000",
        machine=config["machine"],
        cpu=config["cpu"]["cpu"],
    )


def _upstream_plan(config: dict[str, Any]) -> LaunchPlan:
    """CONFIG as the emulated platform measures it: sha256, tf-rmm, one NIC, vsock."""
    kernel = config["kernel"]
    return LaunchPlan(
        kernel=kernel["kernel_path"],
        kernel_sha256=None,
        initramfs=kernel["kernel_initramfs_path"],
        initramfs_sha256=None,
        cmdline=kernel["kernel_cmd_params"] or "",
        vcpus=config["cpu"]["cores_number"],
        memory_mib=config["memory"]["ram_size"],
    )
