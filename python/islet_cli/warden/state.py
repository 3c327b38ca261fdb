"""What the warden keeps on disk: one directory a realm, one directory an application in it.

    WORKDIR/<realm uuid>/launch.json      what it is launched with (islet), or
    WORKDIR/<realm uuid>/config.yaml      the same in upstream's form
    WORKDIR/<realm uuid>/state.json       order of applications, VM process, last error
    WORKDIR/<realm uuid>/kernel-…         copies of the measured files, named by digest
    WORKDIR/<realm uuid>/disk.raw         the shared disk
    WORKDIR/<realm uuid>/<application uuid>/config.yaml
    WORKDIR/<realm uuid>/<application uuid>/disk.raw    with a disk per application

New directories are built under a name that starts with a dot and renamed into place last; removed ones
are renamed away first. Names that are no uuid are ignored.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from islet_cli import strictjson
from islet_cli.errors import IsletError
from islet_cli.fsutil import fsync_directory, make_private_directory, os_error, read_file, write_atomic
from islet_cli.warden import codec, messages
from islet_cli.warden.errors import WardenError

LAUNCH_NAME = "launch.json"
CONFIG_NAME = "config.yaml"
STATE_NAME = "state.json"
DISK_NAME = "disk.raw"
CONSOLE_NAME = "console.log"
VM_LOG_NAME = "vm.log"
_STAGING = ".new-"
_TRASH = ".trash-"

log = logging.getLogger(__name__)


@dataclass
class RealmState:
    """`state.json`: what changes while a realm lives."""

    applications: list[uuid.UUID] = field(default_factory=list)
    desired: str = "Halted"
    vm_pid: int | None = None
    vm_started: int | None = None
    last_error: str | None = None
    rim: str | None = None
    provisioned: list[uuid.UUID] = field(default_factory=list)
    """Applications whose data partition has been set up once, so that losing it would lose data."""
    reformat: list[uuid.UUID] = field(default_factory=list)
    """Applications whose data may be discarded at the next start, on the user's order."""

    def encode(self) -> bytes:
        vm = None if self.vm_pid is None else {"pid": self.vm_pid, "started": self.vm_started}
        value = {
            "schema": 1,
            "desired": self.desired,
            "applications": [str(item) for item in self.applications],
            "vm": vm,
            "last_error": self.last_error,
            "rim": self.rim,
            "provisioned": [str(item) for item in self.provisioned],
            "reformat": [str(item) for item in self.reformat],
        }
        return json.dumps(value, indent=1, ensure_ascii=False).encode()

    @classmethod
    def decode(cls, data: bytes, what: str) -> RealmState:
        value = strictjson.loads(data, what=what, code="storage")
        try:
            if value["schema"] != 1:
                raise ValueError(f"schema {value['schema']!r}")
            vm = value["vm"] or {}
            lists = {
                name: [uuid.UUID(item) for item in value[name]] for name in ("applications", "provisioned", "reformat")
            }
            return cls(
                lists["applications"],
                str(value["desired"]),
                vm.get("pid"),
                vm.get("started"),
                value["last_error"],
                value["rim"],
                lists["provisioned"],
                lists["reformat"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WardenError(f"{what}: not a state file of this version ({error})", code="storage") from error


@dataclass(frozen=True)
class ApplicationConfig:
    """One application's configuration, in upstream's terms; sizes in MiB."""

    name: str
    version: str
    image_registry: str
    image_storage_size_mb: int
    data_storage_size_mb: int

    @classmethod
    def from_message(cls, value: dict[str, Any]) -> ApplicationConfig:
        return cls(**value)

    def to_message(self) -> dict[str, Any]:
        return dict(self.__dict__)


class RealmDirectory:
    """The files of one realm."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.uuid = uuid.UUID(path.name)

    @property
    def disk(self) -> Path:
        return self.path / DISK_NAME

    @property
    def console_log(self) -> Path:
        return self.path / CONSOLE_NAME

    @property
    def vm_log(self) -> Path:
        return self.path / VM_LOG_NAME

    def launch(self) -> dict[str, Any] | None:
        """The content of `launch.json`, or None for a realm in upstream's form."""
        file = self.path / LAUNCH_NAME
        if not file.exists():
            return None
        value = strictjson.loads(read_file(file), what=str(file), code="storage")
        if not isinstance(value, dict) or value.get("schema") != 1:
            raise WardenError(f"{file}: not a launch of this version", code="storage")
        return value

    def upstream_config(self) -> dict[str, Any]:
        """`config.yaml` as CONFIG of CreateRealm."""
        file = self.path / CONFIG_NAME
        value = _load_yaml(file)
        value.pop("id", None)
        return _checked(messages.REALM_CONFIG, {"id": str(self.uuid), **value}, file)

    def state(self) -> RealmState:
        """`state.json`; a realm without one (upstream's) has the initial state."""
        file = self.path / STATE_NAME
        return RealmState.decode(read_file(file), str(file)) if file.exists() else RealmState()

    def save_state(self, state: RealmState) -> None:
        write_atomic(self.path / STATE_NAME, state.encode())

    def save_launch(self, value: dict[str, Any]) -> None:
        write_atomic(self.path / LAUNCH_NAME, json.dumps(value, indent=1, ensure_ascii=False).encode())

    def application_path(self, application: uuid.UUID) -> Path:
        return self.path / str(application)

    def applications(self) -> dict[uuid.UUID, ApplicationConfig]:
        """Every readable application; an unreadable one is logged and left out."""
        found: dict[uuid.UUID, ApplicationConfig] = {}
        for directory in sorted(_uuid_directories(self.path)):
            file = directory / CONFIG_NAME
            try:
                value = _checked(messages.APPLICATION_CONFIG, _load_yaml(file), file)
            except IsletError as error:
                log.error("application %s of realm %s is broken: %s", directory.name, self.uuid, error.message)
                continue
            found[uuid.UUID(directory.name)] = ApplicationConfig.from_message(value)
        return found

    def save_application(self, application: uuid.UUID, config: ApplicationConfig) -> None:
        write_atomic(self.application_path(application) / CONFIG_NAME, _dump_yaml(config.to_message()))

    @contextlib.contextmanager
    def new_application(self, application: uuid.UUID, config: ApplicationConfig) -> Iterator[Path]:
        """A directory for a new application; it appears under its name when the block succeeds."""
        with _built_aside(self.path, str(application)) as staging:
            write_atomic(staging / CONFIG_NAME, _dump_yaml(config.to_message()))
            yield staging

    def remove_application(self, application: uuid.UUID) -> None:
        _remove(self.application_path(application))


class Workdir:
    """The state directory of a warden."""

    def __init__(self, path: Path) -> None:
        self.path = make_private_directory(path)

    def sweep(self) -> None:
        """Remove what a kill left half built or half removed."""
        for directory in (self.path, *_uuid_directories(self.path)):
            for remnant in directory.iterdir():
                if remnant.name.startswith((_STAGING, _TRASH)) and remnant.is_dir() and not remnant.is_symlink():
                    log.warning("removing remnant %s", remnant)
                    shutil.rmtree(remnant, ignore_errors=True)

    def realms(self) -> list[RealmDirectory]:
        """Every directory whose name is a uuid; others are reported and ignored."""
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.name.startswith(".") and not _is_uuid(entry.name):
                log.warning("%s: not a realm, ignored", entry)
        return [RealmDirectory(path) for path in sorted(_uuid_directories(self.path))]

    @contextlib.contextmanager
    def new_realm(self, realm: uuid.UUID) -> Iterator[RealmDirectory]:
        """A directory for a new realm; it appears under its name when the block succeeds."""
        with _built_aside(self.path, str(realm)) as staging:
            directory = RealmDirectory.__new__(RealmDirectory)
            directory.path, directory.uuid = staging, realm
            yield directory

    def realm(self, realm: uuid.UUID) -> RealmDirectory:
        return RealmDirectory(self.path / str(realm))

    def remove_realm(self, realm: uuid.UUID) -> None:
        _remove(self.path / str(realm))


def dump_upstream_config(config: dict[str, Any]) -> bytes:
    """CONFIG of CreateRealm as `config.yaml`: no id in it, strings quoted where YAML 1.1 would misread them."""
    return _dump_yaml({key: value for key, value in config.items() if key != "id"})


class _Strings(yaml.SafeLoader):
    """YAML where only null, integers written in plain decimal, and strings exist.

    YAML 1.1 readers take `52:55:00:11:55:01` for a base-60 number, `on` for true and `1.10` for 1.1.
    """


_Strings.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_INTEGERS = frozenset(("cores_number", "ram_size", "vsock_cid", "image_storage_size_mb", "data_storage_size_mb"))


def _load_yaml(file: Path) -> dict[str, Any]:
    try:
        value = yaml.load(read_file(file, limit=1 << 20), _Strings)  # noqa: S506 - derived from SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise WardenError(f"{file}: not valid YAML: {error}", code="storage") from error
    if not isinstance(value, dict):
        raise WardenError(f"{file}: not a mapping", code="storage")
    return {str(key): _integers(str(key), item) for key, item in value.items()}


def _integers(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _integers(str(name), item) for name, item in value.items()}
    if key in _INTEGERS and isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    return value


def _checked(shape: codec.Shape, value: Any, file: Path) -> dict[str, Any]:
    try:
        return dict(shape.read(value))
    except codec.MessageError as error:
        raise WardenError(f"{file}: {error.message}", code="storage") from error


class _Quoting(yaml.SafeDumper):
    """Writes every string value between quotes."""


_Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'"))


def _dump_yaml(value: dict[str, Any]) -> bytes:
    lines: list[str] = []

    def emit(mapping: dict[str, Any], indent: str) -> None:
        for key, item in mapping.items():
            if isinstance(item, dict):
                lines.append(f"{indent}{key}:")
                emit(item, indent + "  ")
            else:
                scalar = yaml.dump(item, Dumper=_Quoting, width=float("inf"), allow_unicode=True)
                lines.append(f"{indent}{key}: {scalar.removesuffix('...' + chr(10)).strip()}")

    emit(value, "")
    return ("\n".join(lines) + "\n").encode()


def _is_uuid(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False


def _uuid_directories(path: Path) -> list[Path]:
    return [entry for entry in path.iterdir() if _is_uuid(entry.name) and entry.is_dir() and not entry.is_symlink()]


@contextlib.contextmanager
def _built_aside(parent: Path, name: str) -> Iterator[Path]:
    staging = parent / f"{_STAGING}{secrets.token_hex(8)}"
    try:
        staging.mkdir(mode=0o700)
        yield staging
        fsync_directory(staging)
        staging.rename(parent / name)
        fsync_directory(parent)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise os_error(error, parent / name) from error
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _remove(path: Path) -> None:
    trash = path.with_name(f"{_TRASH}{secrets.token_hex(8)}")
    try:
        path.rename(trash)
        fsync_directory(path.parent)
        shutil.rmtree(trash)
    except OSError as error:
        raise os_error(error, path) from error
