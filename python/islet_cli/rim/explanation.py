"""What went into a RIM, as one value: made by `explain`, saved as JSON, compared by `diff`."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from islet_cli.errors import InputError
from islet_cli.rim import devicetree

KIND = "islet-rim-explanation"
PREFIX_SIZE = 8
PAGE = 4096


class _Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Group(_Value, frozen=True, kw_only=True):
    """Successive steps of one kind.

    Attributes:
        kind: `create`, `data`, `ripas` or `rec`.
        what: What the memory holds; `parameters`, or `vCPU N`.
        start: First address; 0 without.
        top: The address behind the last; 0 without.
        first_step: Number of the first step; the first of all has number 0.
        steps: How many.
        measured: Whether contents entered the RIM, and not only addresses.
        digest: The realm's hash over the content digests of the steps, hex; empty without contents.
        rim: The RIM after the group, hex.
        stride: How many granules one entry of `granules` stands for.
        granules: Base64 of 8 bytes each: the beginning of a granule's digest, or of the SHA-256 over
            the beginnings of `stride` granules.
    """

    kind: str
    what: str
    start: int
    top: int
    first_step: int
    steps: int
    measured: bool
    digest: str
    rim: str
    stride: int = 1
    granules: str = ""

    @property
    def entries(self) -> list[bytes]:
        """`granules`, one by one.

        Raises:
            InputError: Not base64.
        """
        try:
            raw = base64.b64decode(self.granules, validate=True)
        except binascii.Error as error:
            raise InputError(f"saved explanation: granules of {self.what}: {error}", code="explanation") from error
        return [raw[at : at + PREFIX_SIZE] for at in range(0, len(raw), PREFIX_SIZE)]


class Vcpu(_Value, frozen=True, kw_only=True):
    """The measured parameters of vCPUs `first` to `last`."""

    first: int
    last: int
    runnable: bool
    pc: int
    x0: int


class File(_Value, frozen=True, kw_only=True):
    """A file of the launch: its place on disk and in memory (address of its first byte)."""

    what: str
    path: str
    size: int
    start: int


class Influence(_Value, frozen=True, kw_only=True):
    """One argument, and what it changed; nothing when `influences` is empty, then `remark` says why."""

    argument: str
    influences: list[str]
    remark: str = ""


class DeviceTree(_Value, frozen=True, kw_only=True):
    """The device tree: where it stands, its blob in base64, and the file that it was given in (None: built)."""

    start: int
    area_size: int
    area_sha256: str
    blob: str
    given: str | None = None


class Explanation(_Value, frozen=True, kw_only=True, dict=True):
    """Everything that a RIM follows from.

    `parameters` are the measured fields of RmiRealmParams by name.
    """

    kind: str = KIND
    schema: int = 1
    tool: str
    rim: str
    hash_algo: str
    vmm: str
    dialect: str
    profile: str
    source: str
    parameters: dict[str, int]
    groups: list[Group]
    vcpus: list[Vcpu]
    files: list[File]
    device_tree: DeviceTree
    arguments: list[Influence]
    notes: list[str]

    @cached_property
    def tree(self) -> devicetree.Tree:
        """The device tree, read.

        Raises:
            InputError: The blob is damaged.
        """
        try:
            return devicetree.parse(base64.b64decode(self.device_tree.blob, validate=True))
        except binascii.Error as error:
            raise InputError(f"saved explanation: device tree: {error}", code="explanation") from error

    @property
    def steps(self) -> int:
        """How many times the RIM was set or extended."""
        return sum(group.steps for group in self.groups)

    def file(self, what: str) -> File | None:
        """The file that is `what` (kernel, firmware, initrd)."""
        return next((file for file in self.files if file.what == what), None)

    def to_json(self) -> dict[str, Any]:
        """The format of `islet rim explain --json`; the device tree's source is added for readers."""
        value: dict[str, Any] = msgspec.to_builtins(self)
        value["device_tree"]["source"] = devicetree.source(self.tree)
        return value

    def coarse(self, stride: int) -> Explanation:
        """The same with one entry for `stride` granules: small enough to keep beside a manifest."""
        groups = [
            msgspec.structs.replace(group, stride=stride, granules=condensed(group, stride))
            if group.granules
            else group
            for group in self.groups
        ]
        return msgspec.structs.replace(self, groups=groups)


def condensed_entries(group: Group, stride: int) -> list[bytes]:
    """The entries of a group for a stride that is its own or, from 1, any other."""
    entries = group.entries
    if group.stride == stride:
        return entries
    pieces = (b"".join(entries[at : at + stride]) for at in range(0, len(entries), stride))
    return [hashlib.sha256(piece).digest()[:PREFIX_SIZE] for piece in pieces]


def condensed(group: Group, stride: int) -> str:
    """Like `condensed_entries`, in base64."""
    return base64.b64encode(b"".join(condensed_entries(group, stride))).decode()


def from_json(value: Any, *, what: str) -> Explanation:
    """Read a decoded explanation.

    Raises:
        InputError: It is none, or of another version (`explanation`).
    """
    if not isinstance(value, dict) or value.get("kind") != KIND or value.get("schema") != 1:
        raise InputError(f"{what}: no saved explanation", code="explanation", hint="make one: islet rim explain --json")
    value = json.loads(json.dumps(value))
    if isinstance(value.get("device_tree"), dict):
        value["device_tree"].pop("source", None)
    try:
        return msgspec.convert(value, Explanation)
    except msgspec.ValidationError as error:
        raise InputError(f"{what}: {error}", code="explanation") from error


@dataclass(frozen=True)
class Place:
    """One step, found by its number: the group and the index within it."""

    group: Group
    index: int

    @property
    def text(self) -> str:
        """What the step did, in words."""
        group = self.group
        if group.kind == "create":
            return "RMI_REALM_CREATE (realm parameters)"
        if group.kind == "rec":
            return f"RMI_REC_CREATE of {group.what}"
        if group.kind == "ripas":
            return f"RMI_RTT_INIT_RIPAS of {group.what} from {group.start:#x}"
        address = group.start + self.index * PAGE
        return f"RMI_DATA_CREATE of {group.what}, granule {self.index} at {address:#x}"
