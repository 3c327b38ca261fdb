"""The disks of a realm's applications, in both layouts. Blocking; called in threads.

Source: docs/protocols.md (update and sizes). A disk that cannot be read is never overwritten.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from islet_cli.volumes import disk
from islet_cli.volumes.disk import ApplicationPartitions, SharedDisk
from islet_cli.volumes.gpt import MIB_SECTORS, DiskError
from islet_cli.warden.definition import Definition
from islet_cli.warden.runner import Disk
from islet_cli.warden.state import DISK_NAME, ApplicationConfig, RealmDirectory

_SERIAL_LENGTH = 20
Applications = Mapping[uuid.UUID, ApplicationConfig]


class Storage(Protocol):
    """Where a realm's applications keep their images and data."""

    def create(self, application: uuid.UUID, config: ApplicationConfig, directory: Path) -> None:
        """Make the partitions of a new application whose directory is being built at `directory`."""

    def remove(self, application: uuid.UUID) -> None:
        """Wipe what the application had, after its directory has gone."""

    def prepare(self, applications: Applications, discard: set[uuid.UUID]) -> None:
        """Before a start: mend what a crash left, and give partitions the configured sizes.

        Args:
            applications: Every application that will be provisioned.
            discard: Applications whose data may be lost.
        """

    def partitions(self, applications: Applications) -> dict[uuid.UUID, ApplicationPartitions]:
        """The partitions of every application."""

    def disks(self, applications: Applications) -> tuple[Disk, ...]:
        """The block devices of the VM, in measured order."""


def storage_of(directory: RealmDirectory, definition: Definition) -> Storage:
    """The storage of a realm's layout."""
    return SharedStorage(directory) if definition.layout == "shared" else SeparateStorage(directory)


def check_resize(old: ApplicationConfig, new: ApplicationConfig, *, has_data: bool) -> None:
    """Refuse an update that would lose data.

    Raises:
        DiskError: `bad-config` for impossible sizes; `data-at-risk` for a smaller data partition or another name
            while there is data.
    """
    disk.check_sizes(new.image_storage_size_mb, new.data_storage_size_mb)
    if not has_data:
        return
    hint = "islet app reformat REALM APP --yes discards the data"
    if new.name != old.name:
        raise DiskError(f"renaming {old.name} to {new.name} changes its data key", code="data-at-risk", hint=hint)
    if new.data_storage_size_mb < old.data_storage_size_mb:
        raise DiskError("shrinking the data partition would lose data", code="data-at-risk", hint=hint)


class SharedStorage:
    """All applications on one disk."""

    def __init__(self, directory: RealmDirectory) -> None:
        self._directory = directory
        self._disk = SharedDisk(directory.disk)

    def create(self, application: uuid.UUID, config: ApplicationConfig, directory: Path) -> None:
        del directory
        self._sweep()
        self._disk.create_application(application, config.image_storage_size_mb, config.data_storage_size_mb)

    def remove(self, application: uuid.UUID) -> None:
        self._disk.remove_application(application)

    def prepare(self, applications: Applications, discard: set[uuid.UUID]) -> None:
        self._disk.repair()
        self._sweep()
        for application, config in applications.items():
            found = self._disk.find(application)
            wanted, now = config.image_storage_size_mb, found.image.sectors // MIB_SECTORS
            self._disk.resize(found.image.guid, wanted, keep=wanted > now)
            wanted, now = config.data_storage_size_mb, found.data.sectors // MIB_SECTORS
            self._disk.resize(found.data.guid, wanted, keep=wanted > now or application not in discard)

    def partitions(self, applications: Applications) -> dict[uuid.UUID, ApplicationPartitions]:
        found = self._disk.applications()
        return {application: found.get(application) or self._disk.find(application) for application in applications}

    def disks(self, applications: Applications) -> tuple[Disk, ...]:
        del applications
        return (Disk(self._directory.disk, str(self._directory.uuid)[:_SERIAL_LENGTH]),)

    def _sweep(self) -> None:
        """Wipe partitions of applications without a directory: a kill came between the two steps of a change."""
        for application in self._disk.applications():
            if not self._directory.application_path(application).is_dir():
                self._disk.remove_application(application)


class SeparateStorage:
    """Each application on a disk of its own, in upstream's layout."""

    def __init__(self, directory: RealmDirectory) -> None:
        self._directory = directory

    def _path(self, application: uuid.UUID) -> Path:
        return self._directory.application_path(application) / DISK_NAME

    def create(self, application: uuid.UUID, config: ApplicationConfig, directory: Path) -> None:
        del application
        disk.create_application_disk(directory / DISK_NAME, config.image_storage_size_mb, config.data_storage_size_mb)

    def remove(self, application: uuid.UUID) -> None:
        del application  # its disk went with its directory

    def prepare(self, applications: Applications, discard: set[uuid.UUID]) -> None:
        for application, config in applications.items():
            path = self._path(application)
            table = disk.require_consistent(path)
            sizes = [table.by_name(name) for name in ("image", "data")]
            wanted = (config.image_storage_size_mb, config.data_storage_size_mb)
            if any(
                part is None or part.sectors != size * MIB_SECTORS for part, size in zip(sizes, wanted, strict=True)
            ):
                disk.resize_application_disk(path, *wanted, discard=application in discard)

    def partitions(self, applications: Applications) -> dict[uuid.UUID, ApplicationPartitions]:
        return {
            application: disk.read_application_disk(
                self._path(application), config.image_storage_size_mb, config.data_storage_size_mb
            )
            for application, config in applications.items()
        }

    def disks(self, applications: Applications) -> tuple[Disk, ...]:
        return tuple(Disk(self._path(application), str(application)[:_SERIAL_LENGTH]) for application in applications)
