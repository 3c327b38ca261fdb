"""Every layer case: the exact tree, or the named refusal and nothing left of the image."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import vectors

from islet_cli.errors import VerificationError
from islet_cli.oci.unpack import LayerInput, Limits, apply_layers, pair_layers, unpack_to

_DATA = vectors.images("layers", "expected.json") or {"cases": [], "never_on_host": []}
_DIRECTORY = vectors.path("ISLET_VECTORS_IMAGES") / "layers"

# Owners are applied, and the trees compared with them.
pytestmark = pytest.mark.root


@dataclass(frozen=True)
class _Descriptor:
    file: str
    media_type: str
    digest: str
    size: int


def _inputs(case: dict[str, Any]) -> list[LayerInput]:
    layers = [_Descriptor(x["file"], x["mediaType"], x["digest"], x["size"]) for x in case["layers"]]
    files = iter(layers)
    # The digest may be wrong on purpose, so the file is the one that the case names.
    return pair_layers(layers, case["diff_ids"], lambda _digest: _DIRECTORY / next(files).file)


def _options(case: dict[str, Any]) -> dict[str, Any]:
    options = dict(case.get("options", {}))
    out: dict[str, Any] = {key: options.pop(key) for key in ("ownership", "devices") if key in options}
    out["limits"] = Limits(**options)
    return out


def _escaped(name: bytes) -> str:
    return "".join(chr(byte) if 0x20 <= byte < 0x7F and byte != 0x25 else f"%{byte:02X}" for byte in name)


def _paths(root: Path) -> dict[str, Path]:
    """Everything below `root`, by the escaped path that the vectors use; no link is followed."""
    found = [Path(top) / name for top, directories, files in os.walk(root) for name in (*directories, *files)]
    return {_escaped(os.fsencode(path.relative_to(root))): path for path in found}


_KINDS = {stat.S_IFDIR: "dir", stat.S_IFREG: "file", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo"}


def _compare(root: Path, path: Path, expected: dict[str, Any]) -> None:
    status = path.lstat()
    assert _KINDS[stat.S_IFMT(status.st_mode)] == expected["type"]
    if expected["type"] == "symlink":
        assert _escaped(os.fsencode(path.readlink())) == expected["target"]
    if "mode" in expected:
        assert f"{stat.S_IMODE(status.st_mode):04o}" == expected["mode"]
    for key, value in (("uid", status.st_uid), ("gid", status.st_gid)):
        if expected.get(key) is not None:
            assert value == expected[key]
    if "mtime" in expected:
        assert status.st_mtime == expected["mtime"]
    if expected["type"] == "file":
        content = path.read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (expected["size"], expected["sha256"])
    if "xattrs" in expected:
        assert {name: os.getxattr(path, name).hex() for name in os.listxattr(path)} == expected["xattrs"]
    if "same_inode" in expected:
        assert path.samefile(root / expected["same_inode"])


def _compare_tree(root: Path, tree: list[dict[str, Any]]) -> None:
    found = _paths(root)
    assert sorted(found) == sorted(item["path"] for item in tree)
    for item in tree:
        _compare(root, found[item["path"]], item)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    canary = tmp_path / "outside" / "canary"
    canary.write_text("canary\n")
    canary.chmod(0o644)
    return tmp_path


def _check_outside(place: Path) -> None:
    outside = place / "outside"
    assert [item.name for item in outside.iterdir()] == ["canary"]
    canary = outside / "canary"
    assert canary.read_text() == "canary\n"
    assert stat.S_IMODE(canary.lstat().st_mode) == 0o644
    for path in _DATA["never_on_host"]:
        assert not os.path.lexists(path)


@pytest.mark.parametrize("case", _DATA["cases"], ids=lambda case: str(case["name"]))
def test_layers(case: dict[str, Any], place: Path) -> None:
    expected = case["expect"]
    if expected["result"] == "ok":
        warnings = apply_layers(place / "root", _inputs(case), **_options(case))
        _compare_tree(place / "root", expected["tree"])
        assert {warning.code for warning in warnings} == set(expected.get("warnings", case.get("warnings", [])))
        _check_outside(place)
        return
    with pytest.raises(VerificationError) as caught:
        apply_layers(place / "root", _inputs(case), **_options(case))
    assert caught.value.code == expected["error"]
    assert caught.value.message.isprintable()
    _check_outside(place)
    with pytest.raises(VerificationError):
        unpack_to(place / "image", _inputs(case), **_options(case))
    assert sorted(item.name for item in place.iterdir()) == ["outside", "root"]
