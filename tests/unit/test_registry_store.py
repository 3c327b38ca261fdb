"""The store on disk: adding, replacing, listing, removing, checking; nothing half done is ever visible."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from registry_support import digest, image, write_layout

from islet_cli.errors import InputError, IsletError, VerificationError
from islet_cli.oci import layout as layouts
from islet_cli.registry import store

ONE, TWO = image(b"one", b"shared", label="app"), image(b"two", b"shared", label="app")


def visible(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name != ".lock")


def test_a_new_application_takes_its_name_from_the_label(tmp_path: Path) -> None:
    added = store.add(tmp_path / "store", write_layout(tmp_path / "in", {"v1": ONE}))
    assert added.to_json() == {
        "name": "app",
        "tags": {"v1": digest(ONE.manifest)},
        "path": str(tmp_path / "store" / "app"),
    }
    loaded = layouts.load(tmp_path / "store" / "app")
    assert set(loaded.tags) == {"v1"} and loaded.warnings == []
    assert visible(tmp_path / "store") == ["app"]


def test_a_tag_is_replaced_and_others_stay(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store.add(root, write_layout(tmp_path / "first", {"v1": ONE, "stable": ONE}))
    index = root / "app" / "index.json"
    document = json.loads(index.read_text()) | {"annotations": {"kept": "yes"}}
    index.write_text(json.dumps(document))
    store.add(root, write_layout(tmp_path / "second", {"stable": TWO, "v2": TWO}))
    loaded = layouts.load(root / "app")
    assert {tag: item.digest for tag, item in loaded.tags.items()} == {
        "v1": digest(ONE.manifest),
        "stable": digest(TWO.manifest),
        "v2": digest(TWO.manifest),
    }
    assert json.loads(index.read_text())["annotations"] == {"kept": "yes"}


def test_only_the_tag_that_was_named(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store.add(root, write_layout(tmp_path / "in", {"v1": ONE, "v2": TWO}), tag="v2")
    loaded = layouts.load(root / "app")
    assert set(loaded.tags) == {"v2"} and loaded.warnings == []


def test_adding_twice_changes_nothing(tmp_path: Path) -> None:
    root, source = tmp_path / "store", write_layout(tmp_path / "in", {"v1": ONE})
    store.add(root, source)
    before = (root / "app" / "index.json").read_bytes()
    store.add(root, source)
    assert (root / "app" / "index.json").read_bytes() == before


def test_nested_names_and_directories_of_others(tmp_path: Path) -> None:
    root, source = tmp_path / "store", write_layout(tmp_path / "in", {"v1": image(b"x")})
    store.add(root, source, "team/app")
    assert [item["name"] for item in store.list_applications(root)] == ["team/app"]
    for name in ("team", "team/app/inner"):
        with pytest.raises(InputError) as caught:
            store.add(root, source, name)
        assert caught.value.code == "name_taken"


@pytest.mark.parametrize(
    ("tags", "name", "tag", "code"),
    [
        ({"v1": image(b"x")}, None, None, "name_missing"),
        ({"v1": ONE, "v2": image(b"x", label="other")}, None, None, "name_missing"),
        ({"v1": ONE}, "other", None, "name_mismatch"),
        ({"v1": image(b"x")}, "../out", None, "name_invalid"),
        ({"v1": image(b"x")}, "Upper", None, "name_invalid"),
        ({"v1": ONE}, None, "absent", "reference_unknown"),
        ({}, "app", None, "no-tags"),
    ],
)
def test_what_is_not_added(tmp_path: Path, tags: dict, name: str | None, tag: str | None, code: str) -> None:  # type: ignore[type-arg]
    source = write_layout(tmp_path / "in", tags)
    with pytest.raises(IsletError) as caught:
        store.add(tmp_path / "store", source, name, tag=tag)
    assert caught.value.code == code
    assert not (tmp_path / "store").exists() or visible(tmp_path / "store") == []


def test_a_flipped_byte_is_not_let_in(tmp_path: Path) -> None:
    source = write_layout(tmp_path / "in", {"v1": ONE})
    (source / "blobs" / "sha256" / digest(b"one")[7:]).write_bytes(b"onf")
    with pytest.raises(VerificationError) as caught:
        store.add(tmp_path / "store", source)
    assert caught.value.code == "digest_mismatch" and not (tmp_path / "store" / "app").exists()


def test_a_failure_midway_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "store"
    store.add(root, write_layout(tmp_path / "first", {"v1": ONE}))
    before = (root / "app" / "index.json").read_bytes()
    blobs = sorted((root / "app").glob("blobs/*/*"))

    def broken(*_: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(store, "write_index", broken)
    with pytest.raises(RuntimeError):
        store.add(root, write_layout(tmp_path / "second", {"v1": TWO}))
    assert (root / "app" / "index.json").read_bytes() == before
    assert sorted((root / "app").glob("blobs/*/*")) == blobs
    assert set(layouts.load(root / "app").tags) == {"v1"}
    with pytest.raises(RuntimeError):
        store.add(root, write_layout(tmp_path / "third", {"v1": image(b"x", label="fresh")}))
    assert visible(root) == ["app"]


def test_leftovers_of_killed_writers_are_swept_up(tmp_path: Path) -> None:
    root = tmp_path / "store"
    for name in (".add-0011", ".removed-0022"):
        (root / name / "blobs").mkdir(parents=True)
    assert store.list_applications(root) == []
    store.add(root, write_layout(tmp_path / "in", {"v1": ONE}))
    assert visible(root) == ["app"]


def test_removing(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store.add(root, write_layout(tmp_path / "in", {"v1": ONE, "v2": TWO}))
    store.remove(root, "app", tag="v1")
    assert set(layouts.load(root / "app").tags) == {"v2"}
    for name, tag, code in (
        ("app", "v1", "reference_unknown"),
        ("none", None, "name_unknown"),
        ("..", None, "name_unknown"),
    ):
        with pytest.raises(InputError) as caught:
            store.remove(root, name, tag=tag)
        assert caught.value.code == code
    store.remove(root, "app")
    assert visible(root) == []


def test_check_and_list_name_the_broken_one(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store.add(root, write_layout(tmp_path / "in", {"v1": ONE}))
    write_layout(root / "broken", {"v1": TWO})
    (root / "broken" / "blobs" / "sha256" / digest(b"two")[7:]).unlink()
    write_layout(root / "UPPER", {"v1": ONE})
    (root / "app" / "blobs" / "sha256" / "stray").write_bytes(b"x")
    results = {name: (error.code if error else None, warnings) for name, error, warnings in store.check(root)}
    assert results == {"app": (None, ["orphan_blob: blobs/sha256/stray"]), "broken": ("blob_missing", [])}
    listed = {item["name"]: item for item in store.list_applications(root)}
    assert listed["app"]["tags"] == {"v1": digest(ONE.manifest)} and "error" not in listed["app"]
    assert listed["broken"]["error"]["code"] == "blob_missing"  # type: ignore[index]
