"""Doubles of what surrounds the app manager: monitor, registry, disks, containers; in memory or plain directories."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from islet_cli.appmanager import config as configuration
from islet_cli.appmanager.application import Surroundings
from islet_cli.appmanager.container import LaunchError, ProcessSpec
from islet_cli.appmanager.fetcher import FetchedImage
from islet_cli.appmanager.messages import ApplicationInfo
from islet_cli.appmanager.policy import Selection
from islet_cli.appmanager.provisioning import Provisioner
from islet_cli.appmanager.record import Record, Slot
from islet_cli.appmanager.rsi import RsiError
from islet_cli.appmanager.volumes import DataAtRiskError, DataState
from islet_cli.errors import IsletError, UnavailableError
from islet_cli.keys.ecc import PrivateKey, generate
from islet_cli.metadata.block import LAYOUT
from islet_cli.oci.descriptor import MEDIA_LAYER, Descriptor
from islet_cli.oci.digest import digest_of

CA = generate()
VENDOR = generate()
OTHER_VENDOR = generate()
SIGNER = bytes(range(96))
REALM_ID = "local.islet.test"


def document(**changes: Any) -> dict[str, Any]:
    """A configuration as `islet realm build` writes it; members of `policy` are given with `policy__`."""
    value: dict[str, Any] = {
        "workdir": "/apps",
        "control": "virtio-serial",
        "vsock_port": 1337,
        "rsi": "virtio-serial",
        "crypto": {"cipher": "Aes", "block_mode": "Xts", "iv_mode": "Plain64", "iv_offset": 0, "key_bytes": 64},
        "launcher": {"Oci": {"RaTLS": {"root_ca": "/ca.crt", "token_resolver": "rsi"}}},
        "ca_pub": "/ca.pub",
        "keysealing": {"HkdfSha256": {"RsiSealingKey": {"flags": ["RealmId"], "svn": 1}}},
        "autostartall": True,
        "extend": "rem0",
        "ensure_same_app_vendor": True,
        "fs_type": "Ext4",
        "policy": {
            "compat": False,
            "metadata": {"public_key": SIGNER.hex(), "realm_id": REALM_ID, "min_svn": 1},
        },
    }
    for name, change in changes.items():
        section, found, key = name.partition("__")
        if found:
            value[section][key] = change
        else:
            value[section] = change
    return value


def metadata_page(*, signer: bytes = SIGNER, realm_id: str = REALM_ID, svn: int = 1) -> bytes:
    """What the monitor returns for a metadata block."""
    block = LAYOUT.pack(1, realm_id.encode(), b"\1" * 32, 1, svn, 1, 0, 0, signer, bytes(96))
    return block.ljust(4096, b"\0")


class FakeRsi:
    """A monitor whose sealing keys depend on flags, svn, RIM and the signer of the metadata block."""

    def __init__(self, *, metadata: bytes | None = None, rim: bytes = b"rim") -> None:
        self.metadata = metadata_page() if metadata is None else metadata
        self.rim = rim
        self.extended: list[tuple[int, bytes]] = []
        self.challenges: list[bytes] = []
        self.asked: list[tuple[int, int]] = []

    def version(self) -> int:
        return 65536

    def measurement_read(self, index: int) -> bytes:
        return bytes(64)

    def measurement_extend(self, index: int, data: bytes) -> None:
        self.extended.append((index, data))

    def attestation_token(self, challenge: bytes) -> bytes:
        self.challenges.append(challenge)
        return b"token" + challenge

    def sealing_key(self, flags: int, svn: int) -> bytearray:
        self.asked.append((flags, svn))
        rim = self.rim if flags & 2 or not self.metadata else b""
        identity = self.metadata[240:336] if self.metadata else b""
        return bytearray(hashlib.sha256(repr((flags, svn, rim, identity)).encode()).digest())

    def realm_metadata(self) -> bytes:
        if not self.metadata:
            raise RsiError("realm metadata", errno.EBADF)
        return self.metadata


def layer_of(files: dict[str, bytes]) -> bytes:
    """An uncompressed layer."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def image_of(
    name: str,
    *,
    vendor: PrivateKey = VENDOR,
    ca: PrivateKey = CA,
    security_version: int | None = None,
    label: str | None = "",
    content: bytes = b"program",
    flip: bool = False,
) -> tuple[FetchedImage, bytes]:
    """A signed image and its one layer."""
    layer = layer_of({"app": content})
    labels = {} if label is None else {"io.islet.application": label or name}
    if security_version is not None:
        labels["io.islet.security-version"] = str(security_version)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": ["/app"], "Labels": labels},
            "rootfs": {"type": "layers", "diff_ids": [str(digest_of(layer))]},
        }
    ).encode()
    spki = vendor.public.spki
    annotations = {
        "com.samsung.islet.image.signature": vendor.sign(config).hex(),
        "com.samsung.islet.image.vendorpub": spki.hex(),
        "com.samsung.islet.image.vendorpub.signature": ca.sign(spki).hex(),
    }
    descriptor = Descriptor(MEDIA_LAYER, digest_of(layer), len(layer))
    served = bytes([layer[0] ^ 1]) + layer[1:] if flip else layer
    return FetchedImage(str(digest_of(b"manifest" + config)), annotations, config, (descriptor,)), served


class FakeSource:
    """A registry: name -> image and layer, or the error that it gives."""

    def __init__(self) -> None:
        self.images: dict[str, tuple[FetchedImage, bytes] | IsletError] = {}
        self.fetched: list[str] = []
        self.before_layers: Callable[[], None] = lambda: None

    def fetch(self, selection: Selection) -> FetchedImage:
        self.fetched.append(selection.info.name)
        found = self.images[selection.info.name]
        if isinstance(found, IsletError):
            raise found
        return found[0]

    def fetch_layers(
        self, selection: Selection, image: FetchedImage, directory: Path, report: Callable[[int, int], None]
    ) -> list[Path]:
        self.before_layers()
        report(0, 100)
        found = self.images[selection.info.name]
        assert not isinstance(found, IsletError)
        path = directory / "layer"
        path.write_bytes(found[1])
        return [path]


def unreachable() -> UnavailableError:
    """The error of a registry that is away."""
    return UnavailableError("the registry cannot be reached", code="registry_unreachable")


@dataclass
class Disk:
    """What a directory stands for: one partition."""

    key: bytes | None = None
    record: Record | None = None
    slots: list[Path] = field(default_factory=list)
    directory: Path | None = None
    writes: int = 0


class FakeStorage:
    """Partitions as directories. Every write is counted, so that a test can require that there was none."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.disks: dict[str, Disk] = {}
        self.open: list[str] = []
        self.fail: set[str] = set()
        self._lock = threading.Lock()

    def disk(self, guid: str) -> Disk:
        return self.disks.setdefault(guid, Disk())

    def note(self, what: str) -> None:
        with self._lock:
            self.open.append(what)

    def forget(self, what: str) -> None:
        with self._lock:
            self.open.remove(what)

    def open_image(self, guid: str, key: bytearray, directory: Path) -> FakeImage:
        self.note(f"image {guid}")
        return FakeImage(self, guid, bytes(key))

    def open_data(self, guid: str, key: bytearray, directory: Path, *, allow_reformat: bool) -> FakeData:
        disk = self.disk(guid)
        state = DataState.FRESH if disk.key is None else DataState.FILE_SYSTEM
        if disk.key is not None and disk.key != bytes(key):
            if not allow_reformat:
                raise DataAtRiskError("the data partition holds data that these keys do not open")
            state = DataState.FRESH
        self.note(f"data {guid}")
        return FakeData(self, guid, bytes(key), state)

    def mount_overlay(self, lower: Path, data: Path, target: Path) -> None:
        if "overlay" in self.fail:
            raise IsletError("overlay refused", code="storage")
        target.mkdir(parents=True, exist_ok=True)
        self.note(f"overlay {target}")

    def unmount(self, target: Path) -> None:
        self.forget(f"overlay {target}")


class FakeImage:
    def __init__(self, storage: FakeStorage, guid: str, key: bytes) -> None:
        self._storage, self._guid, self._key = storage, guid, key
        self._disk = storage.disk(guid)

    def record(self) -> Record | None:
        return self._disk.record if self._disk.key == self._key else None

    def install(self, fill: Callable[[Path], None], record_of: Callable[[Slot], Record]) -> None:
        slot = self._storage.root / f"{self._guid}-{len(self._disk.slots)}"
        root = slot / "img"
        root.mkdir(parents=True)
        fill(root)
        self._disk.writes += 1
        self._disk.key = self._key
        self._disk.slots.append(slot)
        self._disk.record = record_of(Slot(1 << 20, 1 << 20))

    def mount_live(self) -> Path:
        return self._disk.slots[-1] / "img"

    def close(self) -> None:
        self._storage.forget(f"image {self._guid}")


class FakeData:
    def __init__(self, storage: FakeStorage, guid: str, key: bytes, state: DataState) -> None:
        self._storage, self._guid, self._key, self.state = storage, guid, key, state

    def prepare(self) -> Path:
        disk = self._storage.disk(self._guid)
        if self.state is not DataState.FILE_SYSTEM:
            disk.key, disk.writes = self._key, disk.writes + 1
            disk.directory = self._storage.root / f"{self._guid}-data-{disk.writes}"
            disk.directory.mkdir()
        assert disk.directory is not None
        return disk.directory

    def close(self) -> None:
        self._storage.forget(f"data {self._guid}")


class FakeProcess:
    """Ends when it is told to; `stubborn` ones need a kill."""

    def __init__(self, output: Callable[[bytes], None], ended: Callable[[int], None], *, stubborn: bool) -> None:
        self.output, self._ended, self._stubborn = output, ended, stubborn
        self._over = threading.Event()
        self._status = 0
        self.signals: list[int] = []

    def finish(self, status: int) -> None:
        self._status = status
        self._ended(status)
        self._over.set()

    def signal(self, number: int) -> None:
        self.signals.append(number)
        if not self._stubborn:
            self.finish(number)

    def kill(self) -> None:
        self.signals.append(9)
        self.finish(9)

    def wait(self, timeout_s: float | None) -> int | None:
        return self._status if self._over.wait(timeout_s) else None


class FakeContainers:
    def __init__(self) -> None:
        self.started: list[tuple[ProcessSpec, FakeProcess]] = []
        self.stubborn = False
        self.refuse = False

    def start(self, spec: ProcessSpec, output: Callable[[bytes], None], ended: Callable[[int], None]) -> FakeProcess:
        if self.refuse:
            raise LaunchError("/app: no such program", code="not_found")
        process = FakeProcess(output, ended, stubborn=self.stubborn)
        self.started.append((spec, process))
        return process


class FakePower:
    def __init__(self) -> None:
        self.actions: list[str] = []
        self.error: OSError | None = None

    def end(self, action: str) -> None:
        if self.error is not None:
            raise self.error
        self.actions.append(action)


def uuid_of(text: str) -> str:
    """A uuid that stands for a text."""
    digits = hashlib.sha256(text.encode()).hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:32]}"


def info(name: str, /, **changes: str) -> ApplicationInfo:
    """What a host asks for."""
    members = {
        "id": uuid_of(name),
        "name": name,
        "version": "latest",
        "image_registry": "10.0.2.100:1337",
        "image_part_uuid": uuid_of(name + "/image"),
        "data_part_uuid": uuid_of(name + "/data"),
    }
    return ApplicationInfo(**(members | changes))


class Realm:
    """All doubles together, and a provisioner over them; `reboot` keeps the disks."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.root = root
        self.rsi = FakeRsi()
        self.source = FakeSource()
        self.storage = FakeStorage(root)
        self.containers = FakeContainers()
        self.lines: list[str] = []
        self.progress: list[tuple[str, str, int, int]] = []
        self.locked = 0
        self.configure(**changes)

    def configure(self, **changes: Any) -> None:
        """Another configuration (a rebuilt image), then a reboot."""
        self.config = configuration.parse(document(workdir=str(self.root / "apps"), **changes))
        self.reboot()

    def reboot(self) -> None:
        """A new boot: same disks, untouched measurements."""
        self.rem_marker = self.root / "rem-extended"
        self.rem_marker.unlink(missing_ok=True)
        self.rsi.extended.clear()
        self.storage.open.clear()
        self.provisioner = Provisioner(
            self.config,
            self._surroundings,
            self.rsi,
            rem_marker=self.rem_marker,
            report=lambda *what: self.progress.append(what),
            say=self.lines.append,
            lock_down=self._lock,
        )

    def _lock(self) -> None:
        self.locked += 1

    def _surroundings(self) -> Surroundings:
        return Surroundings(
            config=self.config,
            storage=self.storage,
            source=self.source,
            containers=self.containers,
            ca=CA.public,
            run_dir=self.root / "run",
        )

    def publish(self, name: str, **changes: Any) -> None:
        """Put an image into the registry."""
        self.source.images[name] = image_of(name, **changes)

    def provision(self, *infos: ApplicationInfo, reformat: frozenset[str] = frozenset()) -> list[Any]:
        return self.provisioner.provision(infos, reformat)
