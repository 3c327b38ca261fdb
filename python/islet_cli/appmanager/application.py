"""Setting up one application: its volumes, its image, its root, and the undoing of all that.

Each step adds its own undoing; `close` undoes everything in reverse, whatever was reached.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from islet_cli.appmanager import keys
from islet_cli.appmanager.config import Config
from islet_cli.appmanager.container import Containers, ProcessSpec, identity_files
from islet_cli.appmanager.fetcher import ImageSource
from islet_cli.appmanager.installer import Decision, Report, decide, install, refuse_rollback
from islet_cli.appmanager.policy import Selection
from islet_cli.appmanager.sealing import SealingMaterial
from islet_cli.appmanager.supervise import Supervisor
from islet_cli.appmanager.volumes import (
    DataAtRiskError,
    DataState,
    DataVolume,
    ImageVolume,
    Storage,
    VolumeState,
    read_state,
    write_state,
)
from islet_cli.errors import InternalError, IsletError
from islet_cli.strictjson import loads

if TYPE_CHECKING:
    from islet_cli.keys.ecc import PublicKey

_HOSTNAME = re.compile(r"[^a-z0-9-]+")


@dataclass(frozen=True)
class Surroundings:
    """What every application's set-up uses; replaced in tests.

    Attributes:
        run_dir: Directory for small files that applications get, outside every application's root.
    """

    config: Config
    storage: Storage
    source: ImageSource
    containers: Containers
    ca: PublicKey
    run_dir: Path


class Application:
    """One application of the realm.

    Args:
        surroundings: See `Surroundings`.
        selection: What the host selected and the policy allowed.
        allow_reformat: The host allowed formatting of the data partition in this provisioning.
    """

    def __init__(self, surroundings: Surroundings, selection: Selection, *, allow_reformat: bool = False) -> None:
        self.selection = selection
        self.id = selection.info.id
        self.name = selection.info.name
        self._in = surroundings
        self._allow_reformat = allow_reformat
        self._directory = surroundings.config.workdir / self.id
        self._cleanup = contextlib.ExitStack()
        self._image: ImageVolume | None = None
        self._data: DataVolume | None = None
        self._data_root: Path | None = None
        self._highest = 0
        self._decision: Decision | None = None
        self._supervisor: Supervisor | None = None

    @property
    def decision(self) -> Decision:
        """What runs; set by `recognise`."""
        if self._decision is None:
            raise InternalError(f"{self.name}: not decided yet")
        return self._decision

    @property
    def supervisor(self) -> Supervisor:
        """The application's process; set by `assemble`."""
        if self._supervisor is None:
            raise InternalError(f"{self.name}: not set up yet")
        return self._supervisor

    @property
    def vendor_data(self) -> list[bytes]:
        """Vendor public key and the CA's signature over it."""
        return self.decision.image.vendor.vendor_data

    # -- steps, in this order ---------------------------------------------------------------------------

    def recognise(self, material: SealingMaterial) -> None:
        """Open the image partition, decide which image runs, open the data partition. Writes nothing.

        Raises:
            IsletError: The reason not to go on; both partitions are as they were.
        """
        info = self.selection.info
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._cleanup.callback(shutil.rmtree, self._directory / "files", ignore_errors=True)
        key = keys.image_key(material.ikm, self.name)
        try:
            self._image = self._in.storage.open_image(info.image_part_uuid, key, self._directory)
        finally:
            keys.wipe(key)
        self._cleanup.callback(self._image.close)
        record = self._image.record()
        if record is not None and record.name != self.name:
            record = None
        self._highest = record.highest_security_version if record else 0
        self._decision = decide(self._in.source, record, self._in.ca, self._in.config.policy, self.selection)
        self._open_data(material, self._decision)
        self._read_data_floor()

    def _open_data(self, material: SealingMaterial, decision: Decision) -> None:
        image = decision.image
        config = image.config if material.bind_image else None
        key = keys.data_key(material.ikm, self.name, image.vendor.public_key, image.security_version, config)
        try:
            self._data = self._in.storage.open_data(
                self.selection.info.data_part_uuid, key, self._directory, allow_reformat=self._allow_reformat
            )
        except DataAtRiskError as error:
            raise DataAtRiskError(self._risk(error, material)) from error
        finally:
            keys.wipe(key)
        self._cleanup.callback(self._data.close)

    def _risk(self, error: DataAtRiskError, material: SealingMaterial) -> str:
        """The reason why data are at risk, as far as it is known."""
        if material.reason is not None:
            return f"{error.message} ({material.reason})"
        version = self.decision.image.security_version
        if self._highest and version > self._highest:
            return (
                f"{error.message} (the image's security version rose from {self._highest} to {version}, "
                "which needs re-encryption)"
            )
        return error.message

    def _read_data_floor(self) -> None:
        """Mount existing data and take the security version kept there into account."""
        assert self._data is not None
        if self._data.state is not DataState.FILE_SYSTEM:
            return
        self._data_root = self._data.prepare()
        self._highest = max(self._highest, read_state(self._data_root).highest_security_version)
        refuse_rollback(self.name, self.decision.image.security_version, self._highest)

    def install(self, report: Report) -> None:
        """Install the decided image unless it is installed already.

        Raises:
            IsletError: The image that was installed before stays.
        """
        assert self._image is not None
        if self.decision.fetched is not None:
            install(self._in.source, self._image, self.selection, self.decision, self._highest, report)

    def assemble(self) -> None:
        """Mount image and data over each other and prepare the process.

        Raises:
            IsletError: A volume cannot be used, or the configuration names no runnable process.
        """
        assert self._image is not None and self._data is not None
        lower = self._image.mount_live()
        if self._data_root is None:
            self._data_root = self._data.prepare()
        highest = max(self._highest, self.decision.image.security_version)
        state = VolumeState(highest, read_state(self._data_root).fresh)
        write_state(self._data_root, state)
        overlay = self._directory / "overlay"
        self._in.storage.mount_overlay(lower, self._data_root, overlay)
        self._cleanup.callback(self._in.storage.unmount, overlay)
        self._supervisor = self._make_supervisor(lower, overlay, state)

    def _make_supervisor(self, lower: Path, root: Path, state: VolumeState) -> Supervisor:
        from islet_cli.appmanager.execconfig import read_user_files, resolve

        # Users come from the verified image, not from what the application made of it.
        descriptor = os.open(lower, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            users = read_user_files(descriptor)
        finally:
            os.close(descriptor)
        document = loads(self.decision.image.config, what=f"{self.name}: image configuration")
        plan = resolve(document.get("config"), users.passwd, users.group)
        hostname = _HOSTNAME.sub("-", self.name).strip("-")[:63] or "app"
        spec = ProcessSpec(
            root=root,
            argv=tuple(plan.argv),
            env=tuple(plan.env),
            cwd=plan.cwd,
            uid=plan.uid,
            gid=plan.gid,
            groups=tuple(plan.groups),
            hostname=hostname,
            binds=tuple(identity_files(self._in.run_dir / self.id, hostname, fresh=state.fresh)),
        )
        data = self._data_root
        assert data is not None

        def started() -> None:
            if state.fresh:
                write_state(data, VolumeState(state.highest_security_version, fresh=False))

        return Supervisor(spec, plan.stop_signal, self._in.containers, on_start=started)

    # -- the end ----------------------------------------------------------------------------------------

    def close(self, complain: Callable[[str], None]) -> None:
        """Stop it and undo every step, newest first, going on past errors, which are handed to `complain`."""
        if self._supervisor is not None:
            try:
                self._supervisor.end()
            except Exception as error:  # each undoing must get its turn
                complain(f"{self.name}: {error}")
        cleanup, self._cleanup = self._cleanup, contextlib.ExitStack()
        try:
            cleanup.close()
        except (IsletError, OSError) as error:
            # ExitStack runs all callbacks and chains what they raise.
            complain(f"{self.name}: {error}")
        self._image = self._data = self._data_root = None
