"""The emulated realm management monitor: realm descriptors, their states, measurements, tokens and keys.

    NEW --activate--> ACTIVE --the VM ends--> SYSTEM_OFF

A descriptor serves one VM process. Extensible measurements start at zero with it and no call resets them.

Source: RMM specification (realm states, measurements, attestation); Islet RMM (metadata, sealing keys).
"""

from __future__ import annotations

import enum
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from islet_cli.attestation import rem
from islet_cli.attestation.cose import key_to_cose
from islet_cli.attestation.token import REALM_PROFILE_1_0
from islet_cli.errors import InputError
from islet_cli.launch.plan import LaunchPlan
from islet_cli.metadata import block as blocks
from islet_cli.metadata import monitor
from islet_cli.platform import evidence, sealing
from islet_cli.platform.errors import PlatformError
from islet_cli.platform.hes import Hes
from islet_cli.platform.memfile import SealedFile, copy_sealed

MAX_REALMS = 64
REM_COUNT = 4
_CLAIM_NAMES = {"sha256": "sha-256", "sha512": "sha-512"}


class State(enum.Enum):
    """The life of a realm descriptor."""

    NEW = "NEW"
    ACTIVE = "ACTIVE"
    SYSTEM_OFF = "SYSTEM_OFF"


class Measured(Protocol):
    """What the monitor needs of a measurement: the RIM, and the kernel parameters of the measured tree."""

    @property
    def rim(self) -> bytes: ...

    @property
    def bootargs(self) -> str: ...


Measure = Callable[[LaunchPlan, Path, Path], Measured]
"""`measure(plan, kernel, initramfs)`: the paths name the sealed copies."""


def measure_launch(plan: LaunchPlan, kernel: Path, initramfs: Path) -> Measured:
    """The measurement that `islet rim compute` makes."""
    from islet_cli.rim.measure import measure_plan

    return measure_plan(plan, kernel=kernel, initramfs=initramfs)


class NotActiveError(PlatformError):
    """A realm service was called while the realm is not ACTIVE."""

    def __init__(self, state: State) -> None:
        super().__init__(f"the realm is {state.value}", code="realm", reason="state")


class Realm:
    """One realm descriptor. Its methods are atomic; every realm has its own lock."""

    def __init__(self, rd: str, plan: LaunchPlan, measured: Measured, files: tuple[SealedFile, SealedFile]) -> None:
        """Take over `files` (kernel, initramfs)."""
        self.rd = rd
        self.hash_algo: str = plan.hash_algo
        self.rpv = bytes.fromhex(plan.personalization)
        self.rim = measured.rim
        self.bootargs = measured.bootargs.strip()
        self._files: tuple[SealedFile, SealedFile] | None = files
        self._rems = [bytes(rem.hash_size(plan.hash_algo))] * REM_COUNT
        self._metadata: blocks.MetadataBlock | None = None
        self._state = State.NEW
        self._lock = threading.Lock()

    @property
    def state(self) -> State:
        return self._state

    def status(self) -> dict[str, Any]:
        """What the management interface shows; measurements in hex."""
        with self._lock:
            return {
                "rd": self.rd,
                "state": self._state.value,
                "rim": self.rim.hex(),
                "rems": [value.hex() for value in self._rems],
                "has_metadata": self._metadata is not None,
            }

    def set_metadata(self, data: bytes) -> None:
        """Attach a metadata block, once, before activation.

        Raises:
            PlatformError: `input` with reason `signature`, `format`, `svn`, `hash-algo` or `realm-id`;
                `realm` with reason `state` or `already-set`.
        """
        if len(data) != blocks.BLOCK_SIZE:
            raise PlatformError(f"a metadata block has {blocks.BLOCK_SIZE} bytes, not {len(data)}", code="input")
        reason = monitor.refusal_at_set(data)
        if reason is not None:
            raise PlatformError(f"the metadata block is refused: {reason}", code="input", reason=reason)
        with self._lock:
            self._require_new()
            if self._metadata is not None:
                raise PlatformError("the realm has a metadata block already", code="realm", reason="already-set")
            self._metadata = blocks.parse(data)

    def activate(self) -> tuple[SealedFile, SealedFile]:
        """Make the realm ACTIVE and give its kernel and initramfs away.

        Raises:
            PlatformError: `realm` with reason `rim` or `hash-algo` (metadata for another realm) or `state`.
        """
        with self._lock:
            if self._metadata is not None:
                reason = monitor.refusal_at_activation(self._metadata, self.rim, self.hash_algo)
                if reason is not None:
                    raise PlatformError(self._mismatch(reason), code="realm", reason=reason)
            self._require_new()
            assert self._files is not None
            files, self._files = self._files, None
            self._state = State.ACTIVE
            return files

    def _mismatch(self, reason: str) -> str:
        assert self._metadata is not None
        if reason == "rim":
            stated = self._metadata.rim[: len(self.rim)].hex()
            return f"the metadata block is for RIM {stated}, the realm has {self.rim.hex()}"
        return f"the metadata block is for {self._metadata.hash_name}, the realm measures with {self.hash_algo}"

    def _require_new(self) -> None:
        if self._state is not State.NEW:
            raise PlatformError(f"the realm is {self._state.value}, not NEW", code="realm", reason="state")

    def power_off(self) -> None:
        """The VM ended: every later realm service fails."""
        with self._lock:
            self._state = State.SYSTEM_OFF
            files, self._files = self._files, None
        for file in files or ():
            file.close()

    def _require_active(self) -> None:
        if self._state is not State.ACTIVE:
            raise NotActiveError(self._state)

    def read_measurement(self, index: int) -> bytes:
        """Measurement 0 (RIM) or 1..4 (REM0..REM3), zero padded to 64 bytes."""
        with self._lock:
            self._require_active()
            return [self.rim, *self._rems][index].ljust(blocks.RIM_SIZE, b"\0")

    def extend_measurement(self, index: int, data: bytes) -> None:
        """Extend measurement 1..4 with 1..64 bytes."""
        with self._lock:
            self._require_active()
            self._rems[index - 1] = rem.extend(self._rems[index - 1], data, self.hash_algo)

    def metadata_page(self) -> bytes | None:
        """The metadata block padded to a page of 4096 bytes, or None."""
        with self._lock:
            self._require_active()
            return self._metadata.to_bytes().ljust(blocks.PAGE_SIZE, b"\0") if self._metadata else None

    def evidence_inputs(self) -> tuple[bytes, ...]:
        """The REMs of this moment."""
        with self._lock:
            self._require_active()
            return tuple(self._rems)

    def sealing_key(self, vhuks: tuple[bytes, bytes], flags: int, svn: int) -> bytes:
        """The sealing key for `flags` and `svn`, 32 bytes.

        Raises:
            InputError: `svn`.
        """
        with self._lock:
            self._require_active()
            return sealing.sealing_key(
                *vhuks,
                rpv=self.rpv,
                rim=self.rim.ljust(sealing.RIM_SLOT, b"\0"),
                flags=flags,
                svn=svn,
                metadata=self._metadata,
            )


class Rmm:
    """The monitor: all realm descriptors of one boot of the platform."""

    def __init__(self, hes: Hes, *, measure: Measure = measure_launch) -> None:
        self.hes = hes
        self._measure = measure
        self._realms: dict[str, Realm] = {}
        self._lock = threading.Lock()
        self._rak = hes.delegated_key()
        self._key_claim = key_to_cose(self._rak.public.sec1)
        self._platform_token = hes.platform_token(self._key_claim)
        self._vhuks = hes.vhuks()

    def create(self, launch: Any) -> Realm:
        """Make a realm descriptor from a launch plan (decoded JSON): copy, check and measure its files.

        Raises:
            PlatformError: `input` (malformed plan, a launch that cannot be measured), `file`, `realm` (too many).
        """
        try:
            plan = LaunchPlan.from_json(launch)
        except InputError as error:
            raise PlatformError(error.message, code="input", hint=error.hint) from error
        kernel = copy_sealed(Path(plan.kernel), plan.kernel_sha256)
        try:
            initramfs = copy_sealed(Path(plan.initramfs), plan.initramfs_sha256)
            try:
                measured = self._measure(plan, kernel.path, initramfs.path)
                realm = Realm(secrets.token_hex(8), plan, measured, (kernel, initramfs))
                with self._lock:
                    if len(self._realms) >= MAX_REALMS:
                        raise PlatformError(f"there are {MAX_REALMS} realm descriptors already", code="realm")
                    self._realms[realm.rd] = realm
            except BaseException:
                initramfs.close()
                raise
        except BaseException as error:
            kernel.close()
            if isinstance(error, InputError):
                raise PlatformError(error.message, code="input", hint=error.hint) from error
            raise
        return realm

    def find(self, rd: str) -> Realm:
        """The realm with descriptor `rd`.

        Raises:
            PlatformError: `no-such-realm`.
        """
        with self._lock:
            realm = self._realms.get(rd)
        if realm is None:
            raise PlatformError(f"there is no realm descriptor {rd[:32]!r}", code="no-such-realm")
        return realm

    def all(self) -> list[Realm]:
        """Every descriptor, oldest first."""
        with self._lock:
            return list(self._realms.values())

    def destroy(self, realm: Realm) -> None:
        """Forget a descriptor. Doing so twice does no harm."""
        with self._lock:
            self._realms.pop(realm.rd, None)
        realm.power_off()

    def token(self, realm: Realm, challenge: bytes) -> bytes:
        """The CCA token of a realm for a challenge of 64 bytes."""
        rems = realm.evidence_inputs()
        content = evidence.RealmClaims(
            challenge=challenge,
            profile=REALM_PROFILE_1_0,
            rpv=realm.rpv,
            rim=realm.rim,
            rems=rems,
            hash_algo=_CLAIM_NAMES[realm.hash_algo],
            public_key=self._key_claim,
        )
        return evidence.wrap(self._platform_token, evidence.sign(content.encode(), self._rak))

    def sealing_key(self, realm: Realm, flags: int, svn: int) -> bytes:
        """A sealing key of a realm; see `Realm.sealing_key`."""
        return realm.sealing_key(self._vhuks, flags, svn)
