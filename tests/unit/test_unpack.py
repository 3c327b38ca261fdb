"""The Python side of unpacking: all or nothing, progress, interruption, and what needs no privileges."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from islet_cli.errors import InputError, OperationError, VerificationError
from islet_cli.oci.unpack import LayerInput, Limits, apply_layers, pair_layers, unpack_to

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _layer(directory: Path, files: dict[str, bytes], *, mode: int = 0o644) -> LayerInput:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            archive.addfile(info, io.BytesIO(data))
    blob = gzip.compress(out.getvalue(), compresslevel=1, mtime=0)
    path = directory / _digest(blob)[7:]
    path.write_bytes(blob)
    return LayerInput(path, GZIP, _digest(blob), len(blob), _digest(out.getvalue()))


def test_an_image_appears_whole(tmp_path: Path) -> None:
    layers = [_layer(tmp_path, {"a/f": b"1"}), _layer(tmp_path, {"a/.wh.f": b"", "b": b"2"})]
    target = tmp_path / "image"
    assert unpack_to(target, layers) == []
    assert [path.name for path in target.iterdir() if path.is_file()] == ["b"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    assert not list(tmp_path.glob(".*"))


def test_a_refused_image_does_not_appear(tmp_path: Path) -> None:
    layers = [_layer(tmp_path, {"f": b"1"}), replace(_layer(tmp_path, {"g": b"2"}), diff_id=_digest(b"other"))]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(VerificationError) as caught:
        unpack_to(tmp_path / "image", layers)
    assert caught.value.code == "diff_id_mismatch"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", ["full", "file", "link"])
def test_what_is_there_is_left_alone(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "image"
    if kind == "full":
        target.mkdir()
        (target / "kept").touch()
    elif kind == "file":
        target.touch()
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError) as caught:
        unpack_to(target, [])
    assert caught.value.code == "exists"
    assert os.path.lexists(target)


def test_an_empty_directory_may_be_filled(tmp_path: Path) -> None:
    target = tmp_path / "image"
    target.mkdir()
    unpack_to(target, [_layer(tmp_path, {"f": b"1"})])
    assert (target / "f").read_bytes() == b"1"


def test_progress_reaches_its_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    layer = _layer(tmp_path, {"f": os.urandom(1 << 20)})
    unpack_to(tmp_path / "image", [layer], progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3 * layer.size, 3 * layer.size)


def test_an_interrupt_ends_the_work(tmp_path: Path) -> None:
    layer = _layer(tmp_path, {"zeros": bytes(64 << 20)})

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack_to(tmp_path / "image", [layer], progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == [layer.path.name]


def test_pairing_counts(tmp_path: Path) -> None:
    layer = _layer(tmp_path, {})
    assert pair_layers([layer], [layer.diff_id], lambda _digest: layer.path) == [layer]
    with pytest.raises(VerificationError) as caught:
        pair_layers([layer], [], lambda _digest: layer.path)
    assert caught.value.code == "diff_id_count_mismatch"


def test_open_descriptors_serve_as_paths(tmp_path: Path) -> None:
    layer = _layer(tmp_path, {"f": b"1"})
    root = tmp_path / "root"
    root.mkdir()
    with layer.path.open("rb") as blob:
        layer.path.unlink()
        descriptor = os.open(root, os.O_PATH)
        try:
            apply_layers(
                Path(f"/proc/self/fd/{descriptor}"), [replace(layer, path=Path(f"/proc/self/fd/{blob.fileno()}"))]
            )
        finally:
            os.close(descriptor)
    assert (root / "f").read_bytes() == b"1"


def test_without_ownership_nothing_is_set_id(tmp_path: Path) -> None:
    warnings = unpack_to(tmp_path / "image", [_layer(tmp_path, {"su": b"1"}, mode=0o6755)], ownership="none")
    assert [(warning.code, warning.entry) for warning in warnings] == [("setid_dropped", "'su'")]
    assert stat.S_IMODE((tmp_path / "image" / "su").stat().st_mode) == 0o755


# Imports come first: the interpreter's own files may be closed to that user.
_UNPRIVILEGED = """
import hashlib, os, sys
from pathlib import Path
from islet_cli.oci.unpack import LayerInput, unpack_to
os.setgroups([]), os.setgid(65534), os.setuid(65534)
home = Path(sys.argv[1])
layers = []
for path in sorted(home.iterdir()):
    digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    media_type = "application/vnd.oci.image.layer.v1.tar"
    layers.append(LayerInput(path, media_type, digest, path.stat().st_size, digest))
unpack_to(home / "image", layers)
"""


@pytest.mark.root
def test_unprivileged_users_can_unpack(tmp_path: Path) -> None:
    """As user 65534: closed directories, names replaced, nothing owned by somebody else."""
    with tempfile.TemporaryDirectory() as home:
        closed = tarfile.TarInfo("closed")
        closed.type, closed.mode, closed.uid = tarfile.DIRTYPE, 0o500, 1234
        for number, entries in enumerate(([closed, tarfile.TarInfo("closed/low")], [tarfile.TarInfo("closed/high")])):
            with tarfile.open(Path(home, f"layer{number}"), mode="w") as archive:
                for entry in entries:
                    archive.addfile(entry)
        os.chown(home, 65534, 65534)
        subprocess.run([sys.executable, "-c", _UNPRIVILEGED, home], check=True)
        image = Path(home) / "image" / "closed"
        status = image.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o500, 65534)
        assert sorted(path.name for path in image.iterdir()) == ["high", "low"]


@pytest.mark.root
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(mount)], check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        with pytest.raises(OperationError) as caught:
            apply_layers(mount, [_layer(tmp_path, {"big": bytes(1 << 20)})], limits=Limits())
        assert caught.value.code == "disk-full"
    finally:
        subprocess.run(["umount", str(mount)], check=True)
