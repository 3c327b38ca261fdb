"""Names, exact JSON form, layouts and their hash cache."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from islet_cli.errors import InputError, IsletError
from islet_cli.oci import blobs, jsonform, layout, names
from islet_cli.oci.descriptor import MEDIA_INDEX, MEDIA_MANIFEST, parse_descriptor
from islet_cli.oci.digest import Digest, digest_of, parse_digest
from islet_cli.oci.words import split_words


@pytest.mark.parametrize(
    ("file_name", "expected"),
    [
        ("my_app", "my_app"),
        ("My App.BIN", "my-app.bin"),
        ("--x--", "x"),
        ("a._b", "a-b"),
        ("a__b", "a__b"),
        ("a___b", "a-b"),
        ("Größe", "gr-e"),
        ("x" * 300, "x" * 128),
    ],
)
def test_fit_repository(file_name: str, expected: str) -> None:
    fitted = names.fit_repository(file_name)
    assert fitted == expected
    assert names.is_repository(fitted)


def test_nothing_to_fit() -> None:
    with pytest.raises(InputError) as caught:
        names.fit_repository("...")
    assert caught.value.code == "name_invalid"


@pytest.mark.parametrize("text", ["a/b", "a.b-c/d__e", "0"])
def test_repository_names(text: str) -> None:
    assert names.check_repository(text) == text


@pytest.mark.parametrize("text", ["", "A", "a//b", "/a", "a/", "a..b", "a_-b", "../a", "a\n", "a" * 256])
def test_bad_repository_names(text: str) -> None:
    with pytest.raises(InputError):
        names.check_repository(text)


def test_full_names_get_a_hint() -> None:
    with pytest.raises(InputError) as caught:
        names.check_tag("localhost/foo:latest")
    assert "--tag latest" in (caught.value.hint or "")


def test_remote_names() -> None:
    assert names.parse_remote("docker://h:5000/a/b:t") == names.RemoteImage("h:5000", "a/b", "t")
    assert names.parse_remote("docker://h/a").reference == "latest"
    digest = "sha256:" + "a" * 64
    assert names.parse_remote(f"docker://h/a@{digest}").reference == digest
    for text in ("docker://h", "docker:///a", "docker://h/A:t", "docker://h/a@sha256:0", "docker://h/../x"):
        with pytest.raises(InputError):
            names.parse_remote(text)


def test_digests() -> None:
    digest = digest_of(b"abc")
    assert (digest.algorithm, len(digest.hex), digest.matches(b"abc"), digest.matches(b"abd")) == (
        "sha256",
        64,
        True,
        False,
    )
    for text in (None, 5, "", "sha256:", "sha256:" + "A" * 64, "md5:" + "0" * 32, f"{digest}\n", "sha512:" + "0" * 64):
        with pytest.raises(InputError) as caught:
            parse_digest(text)
        assert caught.value.code == "digest_invalid"


def test_exact_json_form() -> None:
    manifest = {
        "annotations": {"z": "1", "a": 'quote " \\ \n \x01 ü'},
        "unknown": {"b": 1, "a": []},
        "layers": [],
        "config": {"size": 2, "digest": "d", "mediaType": "m", "x": None, "platform": {"os": "l", "architecture": "a"}},
        "schemaVersion": 2,
        "subject": None,
    }
    expected = """{
  "schemaVersion": 2,
  "config": {
    "mediaType": "m",
    "digest": "d",
    "size": 2,
    "platform": {
      "architecture": "a",
      "os": "l"
    },
    "x": null
  },
  "layers": [],
  "annotations": {
    "a": "quote \\" \\\\ \\n \\u0001 ü",
    "z": "1"
  },
  "unknown": {
    "b": 1,
    "a": []
  }
}"""
    assert jsonform.dumps(manifest).decode() == expected


def write_layout(root: Path, manifests: list[dict[str, Any]]) -> None:
    root.mkdir(exist_ok=True)
    (root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))


def add(root: Path, data: bytes, media_type: str = "application/octet-stream", **more: Any) -> dict[str, Any]:
    blobs.write_blob(root, digest_of(data), data)
    return {"mediaType": media_type, "digest": str(digest_of(data)), "size": len(data), **more}


def add_index(root: Path, manifests: list[dict[str, Any]]) -> dict[str, Any]:
    return add(root, json.dumps({"schemaVersion": 2, "manifests": manifests}).encode(), MEDIA_INDEX)


@pytest.mark.parametrize("levels", [1, 8, 9])
def test_nesting(tmp_path: Path, levels: int) -> None:
    root = tmp_path / "layout"
    root.mkdir()
    leaf = [add(root, b"leaf")]
    for _ in range(levels):
        leaf = [add_index(root, leaf)]
    write_layout(root, leaf)
    if levels <= layout.MAX_DEPTH:
        assert len(layout.load(root).blobs) == levels + 1
        return
    with pytest.raises(InputError) as caught:
        layout.load(root)
    assert caught.value.code == "nesting_too_deep"


def test_a_shared_index_counts_where_it_is_deepest(tmp_path: Path) -> None:
    root = tmp_path / "layout"
    root.mkdir()
    shared = add_index(root, [add_index(root, [add(root, b"leaf")])])
    deep = shared
    for number in range(7):
        deep = add_index(root, [deep, add(root, b"%d" % number)])
    write_layout(root, [shared, deep])
    with pytest.raises(InputError) as caught:
        layout.load(root)
    assert caught.value.code == "nesting_too_deep"


def test_wide_sharing_is_walked_once(tmp_path: Path) -> None:
    root = tmp_path / "layout"
    root.mkdir()
    level = add(root, b"leaf")
    for _ in range(8):
        level = add_index(root, [level] * 200)
    write_layout(root, [level] * 200)
    assert len(layout.load(root).blobs) == 9


@pytest.mark.parametrize("kind", ["blob", "algorithm", "blobs", "fifo", "directory"])
def test_blobs_are_plain_files_in_plain_directories(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "layout"
    root.mkdir()
    descriptor = add(root, b"data")
    write_layout(root, [descriptor])
    layout.load(root)
    path = {"algorithm": root / "blobs/sha256", "blobs": root / "blobs"}.get(
        kind, blobs.blob_path(root, Digest(descriptor["digest"]))
    )
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(elsewhere)
    with pytest.raises(IsletError) as caught:
        layout.load(root)
    assert caught.value.code == "blob_missing"


def test_hash_cache_notices_changes(tmp_path: Path) -> None:
    root = tmp_path / "layout"
    root.mkdir()
    descriptor = add(root, b"data")
    write_layout(root, [descriptor])
    cache = layout.HashCache()
    hashed: list[int] = []
    layout.load(root, cache=cache, report=lambda done, _total: hashed.append(done))
    layout.load(root, cache=cache, report=lambda done, _total: hashed.append(done))
    assert hashed == [4]
    blobs.blob_path(root, Digest(descriptor["digest"])).write_bytes(b"atad")
    with pytest.raises(IsletError) as caught:
        layout.load(root, cache=cache)
    assert caught.value.code == "digest_mismatch"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("", None),
        (base64.b64encode(b"data").decode(), None),
        ("AAAA", "descriptor_data_mismatch"),
        (5, "descriptor_data_mismatch"),
        ("*", "descriptor_data_mismatch"),
    ],
)
def test_embedded_data(data: Any, code: str | None) -> None:
    value = {"mediaType": "x", "digest": str(digest_of(b"data")), "size": 4}
    if data != "":
        value["data"] = data
    if code is None:
        assert parse_descriptor(value).size == 4
        return
    with pytest.raises(InputError) as caught:
        parse_descriptor(value)
    assert caught.value.code == code


@pytest.mark.parametrize("size", [True, 1.0, "1", -1, 1 << 63, None])
def test_sizes_are_integers(size: Any) -> None:
    with pytest.raises(InputError) as caught:
        parse_descriptor({"mediaType": "x", "digest": str(digest_of(b"")), "size": size})
    assert caught.value.code == "descriptor_invalid"


def test_lone_surrogates_are_refused(tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", [])
    (tmp_path / "layout/index.json").write_text('{"schemaVersion":2,"manifests":[],"x":"\\ud800"}')
    with pytest.raises(InputError) as caught:
        layout.load(tmp_path / "layout")
    assert caught.value.code == "index_invalid"


def test_resolve(tmp_path: Path) -> None:
    root = tmp_path / "layout"
    root.mkdir()
    config, layer = add(root, b"{}"), add(root, b"layer")
    data = json.dumps({"schemaVersion": 2, "config": config, "layers": [layer]}).encode()
    tagged = add(root, data, MEDIA_MANIFEST, annotations={"org.opencontainers.image.ref.name": "t"})
    write_layout(root, [tagged])
    loaded = layout.load(root)
    assert loaded.resolve("t") == loaded.resolve(tagged["digest"])
    assert loaded.read(loaded.resolve("t")) == data
    for reference in ("u", config["digest"], "sha256:" + "0" * 64):
        with pytest.raises(InputError) as caught:
            loaded.resolve(reference)
        assert caught.value.code == "reference_unknown"


def test_words() -> None:
    assert split_words("a 'b c'", what="x") == ["a", "b c"]
    assert split_words('["a b", ""]', what="x") == ["a b", ""]
    for text in ("", "'", "[1]", "[", "[]"):
        with pytest.raises(InputError):
            split_words(text, what="x")


@pytest.mark.parametrize("levels", [60, 70, 900, 100_000])
def test_deep_documents(tmp_path: Path, levels: int) -> None:
    write_layout(tmp_path / "layout", [])
    text = '{"schemaVersion":2,"manifests":[],"x":' + "[" * levels + "]" * levels + "}"
    (tmp_path / "layout/index.json").write_text(text)
    if levels == 60:
        assert jsonform.dumps(layout.load(tmp_path / "layout").index.raw)
        return
    with pytest.raises(InputError) as caught:
        layout.load(tmp_path / "layout")
    assert caught.value.code == "index_invalid"


def test_documents_are_bounded(tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", [])
    with (tmp_path / "layout/index.json").open("ab") as file:
        file.write(b" " * (4 << 20))
    with pytest.raises(InputError) as caught:
        layout.load(tmp_path / "layout")
    assert caught.value.code == "index_invalid"
