"""The lock file of a RIM: what it was made of, to notice drift in continuous integration.

JSON: `{"kind": "islet-rim-lock", "schema": 1, "tool", "rim", "manifest", "arguments", "inputs",
"explanation"}`. Paths are relative to the lock file. The explanation keeps one entry for a MiB of
contents, so that the lock stays small and drift can still be located.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from islet_cli import __version__
from islet_cli.errors import InputError, IsletError
from islet_cli.fsutil import read_file
from islet_cli.launch.plan import file_sha256
from islet_cli.rim.capabilities import Capabilities
from islet_cli.rim.diff import Comparison, Side, compare
from islet_cli.rim.explain import explain
from islet_cli.rim.explanation import Explanation, from_json
from islet_cli.rim.request import Request, checked, of_manifest

KIND = "islet-rim-lock"
_STRIDE = 256
_LIMIT = 64 << 20


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file that the RIM depends on."""

    what: str
    path: str
    size: int
    sha256: str


class Lock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A lock file. `manifest` None: `arguments`, given in `directory`, is what was measured."""

    kind: Literal["islet-rim-lock"] = "islet-rim-lock"
    schema: Literal[1] = 1
    tool: str
    rim: str
    manifest: str | None
    arguments: list[str]
    directory: str
    vmm: str
    dialect: str
    profile: str | None
    host: Capabilities
    host_name: str
    dtb: str | None
    inputs: list[Input]
    explanation: dict[str, Any]


@dataclass(frozen=True)
class Check:
    """The result of a check: changed inputs, and why the RIM drifted."""

    lock: Lock
    rim: str
    changed: tuple[str, ...]
    comparison: Comparison

    @property
    def equal(self) -> bool:
        return self.rim == self.lock.rim

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "equal": self.equal,
            "rim": self.rim,
            "locked_rim": self.lock.rim,
            "locked_by": self.lock.tool,
            "tool": f"islet {__version__}",
            "changed_inputs": list(self.changed),
            "comparison": self.comparison.to_json(),
        }


def make(
    request: Request,
    directory: Path,
    *,
    names: Mapping[str, str] | None = None,
    contents: Mapping[str, bytes] | None = None,
) -> bytes:
    """The lock file of a request.

    Args:
        request: What is measured.
        directory: Where the lock file will stand.
        names: Other file names to write, by what the file is (`manifest`, `kernel`, `initrd`): a bundle
            holds the files under names of its own.
        contents: What such a file will hold, where that is not what the request's own file holds.

    Raises:
        InputError: The request cannot be measured.
    """
    explanation = explain(request)
    names, contents = names or {}, contents or {}
    files = {file.what: Path(file.path) for file in explanation.files}
    if request.manifest is not None:
        files = {"manifest": request.manifest, **files}
    if request.dtb is not None:
        files["dtb"] = request.dtb
    inputs = [
        Input(
            what=what,
            path=names.get(what) or _relative(path, request.cwd, directory),
            size=len(contents[what]) if what in contents else path.stat().st_size,
            sha256=hashlib.sha256(contents[what]).hexdigest() if what in contents else file_sha256(path),
        )
        for what, path in files.items()
    ]
    paths = {item.what: item.path for item in inputs}
    value = Lock(
        tool=explanation.tool,
        rim=explanation.rim,
        manifest=paths.get("manifest"),
        arguments=[] if request.manifest else list(request.arguments),
        directory="." if request.manifest else os.path.relpath(request.cwd.absolute(), directory.absolute()),
        vmm=request.vmm,
        dialect=request.dialect,
        profile=None if request.manifest else request.profile,
        host=request.host,
        host_name=request.host_name,
        dtb=paths.get("dtb"),
        inputs=inputs,
        explanation=_portable(explanation, paths),
    )
    return json.dumps(msgspec.to_builtins(value), indent=1).encode() + b"\n"


def _portable(explanation: Explanation, paths: dict[str, str]) -> dict[str, Any]:
    """The explanation without the places of this machine."""
    files = [msgspec.structs.replace(file, path=paths[file.what]) for file in explanation.files]
    coarse = msgspec.structs.replace(explanation.coarse(_STRIDE), files=files, source="lock file")
    value: dict[str, Any] = msgspec.to_builtins(coarse)
    return value


def _relative(path: Path, cwd: Path, directory: Path) -> str:
    return os.path.relpath(cwd.absolute() / path, directory.absolute())


def load(path: Path) -> Lock:
    """Read a lock file.

    Raises:
        InputError: Missing or malformed (`rim-lock`).
    """
    try:
        return msgspec.json.decode(read_file(path, limit=_LIMIT), type=Lock)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: {error}", code="rim-lock", hint="islet realm publish writes one") from error


def check(path: Path) -> Check:
    """Measure again what a lock file names.

    Raises:
        InputError: The lock file or an input is missing or malformed.
    """
    lock = load(path)
    now = explain(_request(lock, path))
    locked = from_json(lock.explanation, what=str(path))
    if locked.rim != lock.rim:
        raise InputError(f"{path}: its RIM and its explanation do not belong together", code="rim-lock")
    comparison = compare(Side(locked, live=False), Side(now, live=True))
    return Check(lock, now.rim, tuple(_changed(lock, path.parent)), comparison)


def _request(lock: Lock, path: Path) -> Request:
    if lock.manifest is not None:
        return of_manifest(path.parent / lock.manifest)
    request = Request(
        arguments=tuple(lock.arguments),
        cwd=path.parent / lock.directory,
        vmm=lock.vmm,
        dialect=lock.dialect,
        profile=lock.profile,
        host=lock.host,
        host_name=lock.host_name,
        dtb=None if lock.dtb is None else path.parent / lock.dtb,
        source=str(path),
    )
    return checked(request)


def _changed(lock: Lock, directory: Path) -> list[str]:
    out = []
    for item in lock.inputs:
        try:
            same = file_sha256(directory / item.path) == item.sha256
        except IsletError:
            same = False
        if not same:
            out.append(f"{item.what} {item.path}")
    return out
