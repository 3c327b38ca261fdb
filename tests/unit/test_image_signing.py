"""Signing: crash safety, application labels, signatures made elsewhere, copies, archives, key options."""

from __future__ import annotations

import datetime
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from islet_cli import fsutil
from islet_cli.errors import InputError, IsletError, VerificationError
from islet_cli.keys import ecc, files
from islet_cli.oci import blobs, layout
from islet_cli.oci.archive import extract
from islet_cli.oci.build import build_image
from islet_cli.oci.documents import parse_config
from islet_cli.signing import artifact, image, sign
from islet_cli.signing.archive import sign_archive, sign_copy
from islet_cli.signing.credentials import KeyFiles, vendor_of
from islet_cli.signing.source import bytes_to_sign, sign_source
from islet_cli.signing.verify import (
    application_name,
    require_application,
    security_version,
    verify_config,
)

CA = ecc.private_from_scalar(11)
VENDOR = ecc.private_from_scalar(12)
CERTIFIED = sign.certify(VENDOR.public, CA, VENDOR)


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def unsigned(tmp_path: Path) -> Path:
    """A small layout with the image `latest`, labelled `hello`."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "run").write_text("#!/bin/sh\n")
    (source / "run").chmod(0o755)
    return build_image(source, tmp_path / "layout", name="hello", arch="amd64", security_version=3).layout


def without_label(directory: Path) -> None:
    """Take the labels out of the image `latest`, digests right again."""
    loaded = layout.load(directory)
    manifest = loaded.manifests[loaded.tags["latest"].digest]
    config = json.loads(loaded.read(manifest.config))
    del config["config"]["Labels"]
    data = json.dumps(config).encode()
    rewritten = {**manifest.raw, "config": sign._renamed(manifest.config.raw, sign.digest_of(data), data)}
    blobs.write_blob(directory, sign.digest_of(data), data)
    document = json.dumps(rewritten).encode()
    blobs.write_blob(directory, sign.digest_of(document), document)
    index = {
        **loaded.index.raw,
        "manifests": [sign._renamed(loaded.tags["latest"].raw, sign.digest_of(document), document)],
    }
    (directory / "index.json").write_text(json.dumps(index))


def test_sign_and_verify(unsigned: Path) -> None:
    done = sign.sign_image(unsigned, "latest", CERTIFIED)
    assert done.changed and not done.warnings and done.application == "hello"
    verified = image.verify_image(unsigned, "latest", CA.public, deep=True)
    assert (verified.application, verified.security_version) == ("hello", 3)
    assert verified.vendor.vendor_data == [VENDOR.public.spki, CERTIFIED.certificate]
    assert verified.vendor.fingerprint == VENDOR.public.fingerprint
    assert not layout.load(unsigned).warnings
    require_application(verified.config, "hello")
    with pytest.raises(VerificationError) as caught:
        require_application(verified.config, "other", compat=True)
    assert caught.value.code == "name_mismatch"


def test_missing_label(unsigned: Path) -> None:
    without_label(unsigned)
    done = sign.sign_image(unsigned, "latest", CERTIFIED)
    assert len(done.warnings) == 1
    config = image.verify_image(unsigned, "latest", CA.public).config
    assert application_name(config) is None
    require_application(config, "hello", compat=True)
    with pytest.raises(VerificationError):
        require_application(config, "hello")


def test_application_label_makes_a_new_configuration(unsigned: Path) -> None:
    before = layout.load(unsigned)
    old = parse_config(before.read(before.manifests[before.tags["latest"].digest].config))
    done = sign.sign_image(unsigned, "latest", CERTIFIED, application="renamed")
    verified = image.verify_image(unsigned, "latest", CA.public, deep=True)
    new = parse_config(verified.config)
    assert (verified.application, done.config_digest) == ("renamed", verified.config_digest)
    assert new.diff_ids == old.diff_ids
    expected = {**old.raw, "config": {**old.raw["config"], "Labels": {**old.labels, "io.islet.application": "renamed"}}}
    assert new.raw == expected
    assert not layout.load(unsigned).warnings
    assert not sign.sign_image(unsigned, "latest", CERTIFIED, application="renamed").changed
    with pytest.raises(InputError) as caught:
        sign.sign_image(unsigned, "latest", CERTIFIED, application="Not A Name")
    assert caught.value.code == "name_invalid"


def test_resigning_by_another_vendor_leaves_no_orphans(unsigned: Path) -> None:
    sign.sign_image(unsigned, "latest", CERTIFIED)
    other = ecc.private_from_scalar(77)
    sign.sign_image(unsigned, "latest", sign.certify(other.public, CA, other))
    assert not layout.load(unsigned).warnings
    assert image.verify_image(unsigned, "latest", CA.public).vendor.fingerprint == other.public.fingerprint


class Crash(BaseException):
    """Stands for a kill: nothing in the product may catch it."""


def interruptions(monkeypatch: pytest.MonkeyPatch, unsigned: Path, tmp_path: Path) -> Iterator[Path]:
    """Sign copies that die at the first, second, … change of the disk, until one gets through."""
    for step in range(20):
        work = tmp_path / f"crash-{step}"
        shutil.copytree(unsigned, work)
        left = step

        def tick(original: Any) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                if left == 0:
                    raise Crash
                left -= 1
                return original(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(blobs, "write_atomic", tick(fsutil.write_atomic))
            patch.setattr(sign, "write_atomic", tick(fsutil.write_atomic))
            patch.setattr(Path, "unlink", tick(Path.unlink))
            try:
                sign.sign_image(work, "latest", CERTIFIED, application="renamed")
                crashed = False
            except Crash:
                crashed = True
        if not crashed:
            assert step >= 4
            return
        yield work
    pytest.fail("signing never ended")


def test_a_crash_leaves_the_old_or_the_new_image(
    unsigned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = layout.load(unsigned).tags["latest"].digest
    for work in interruptions(monkeypatch, unsigned, tmp_path):
        loaded = layout.load(work)
        if loaded.tags["latest"].digest != old:
            image.verify_image(work, "latest", CA.public, deep=True)
        sign.sign_image(work, "latest", CERTIFIED, application="renamed")
        image.verify_image(work, "latest", CA.public, deep=True)


def test_nothing_changes_when_something_is_wrong(unsigned: Path) -> None:
    loaded = layout.load(unsigned)
    config = loaded.manifests[loaded.tags["latest"].digest].config
    path = loaded.blob_path(config.digest)
    path.write_bytes(path.read_bytes().replace(b"hello", b"hxllo"))
    before = tree(unsigned)
    with pytest.raises(IsletError) as caught:
        sign.sign_image(unsigned, "latest", CERTIFIED)
    assert caught.value.code == "digest_mismatch"
    assert tree(unsigned) == before


def test_signature_made_elsewhere(unsigned: Path) -> None:
    data = bytes_to_sign(unsigned, None, "elsewhere")
    public_only = sign.Vendor(VENDOR.public, CERTIFIED.certificate)
    with pytest.raises(VerificationError) as caught:
        sign.sign_image(unsigned, "latest", public_only, application="elsewhere", signature=VENDOR.sign(b"x"))
    assert caught.value.code == "config_signature_invalid"
    with pytest.raises(InputError):
        sign.sign_image(unsigned, "latest", public_only, application="elsewhere")
    sign.sign_image(unsigned, "latest", public_only, application="elsewhere", signature=VENDOR.sign(data))
    assert image.verify_image(unsigned, "latest", CA.public).application == "elsewhere"


def test_copy_leaves_the_original_alone(unsigned: Path, tmp_path: Path) -> None:
    (unsigned / "blobs/sha256" / ("0" * 64)).write_bytes(b"orphan")
    before = tree(unsigned)
    done = sign_copy(unsigned, tmp_path / "copy", None, CERTIFIED)
    assert done.layout == tmp_path / "copy"
    assert tree(unsigned) == before
    assert not layout.load(tmp_path / "copy").warnings
    image.verify_image(tmp_path / "copy", "latest", CA.public)
    with pytest.raises(InputError) as caught:
        sign_copy(unsigned, tmp_path / "copy", None, CERTIFIED)
    assert caught.value.code == "exists"


def pack(directory: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w") as out:
        for path in sorted(directory.rglob("*")):
            out.add(path, str(path.relative_to(directory)), recursive=False)
    return archive


def test_archive_with_a_full_name(unsigned: Path, tmp_path: Path) -> None:
    index = json.loads((unsigned / "index.json").read_text())
    index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": "localhost/foo:latest"}
    (unsigned / "index.json").write_text(json.dumps(index))
    archive = pack(unsigned, tmp_path / "foo.tar")
    with pytest.raises(InputError) as caught:
        sign_archive(archive, tmp_path / "signed", None, CERTIFIED)
    assert caught.value.code == "tag_invalid" and "--tag latest" in (caught.value.hint or "")
    assert not (tmp_path / "signed").exists()
    sign_archive(archive, tmp_path / "signed", "latest", CERTIFIED)
    assert list(layout.load(tmp_path / "signed").tags) == ["latest"]


def test_archive_needs_a_destination(unsigned: Path, tmp_path: Path) -> None:
    archive = pack(unsigned, tmp_path / "foo.tar")
    with pytest.raises(InputError) as caught:
        sign_source(archive, None, CERTIFIED)
    assert caught.value.code == "usage"


def test_archive_holding_a_file_twice(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as out:
        for _ in range(2):
            info = tarfile.TarInfo("index.json")
            info.size = 2
            out.addfile(info, io.BytesIO(b"{}"))
    (tmp_path / "to").mkdir()
    with pytest.raises(InputError) as caught:
        extract(tmp_path / "a.tar", tmp_path / "to")
    assert caught.value.code == "layout_invalid"


@pytest.mark.parametrize("damage", ["truncated", "trailing", "checksum"])
def test_damaged_archives(unsigned: Path, tmp_path: Path, damage: str) -> None:
    archive = pack(unsigned, tmp_path / "foo.tar")
    data = bytearray(archive.read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2 - 100]
    elif damage == "trailing":
        data += b"x" * 512
    else:
        data[0] ^= 1
    archive.write_bytes(data)
    with pytest.raises(InputError) as caught:
        sign_archive(archive, tmp_path / "signed", "latest", CERTIFIED)
    assert caught.value.code in {"tar_truncated", "tar_trailing_data", "tar_malformed"}
    assert not (tmp_path / "signed").exists()


def test_deep_verification_sees_a_wrong_diff_id(unsigned: Path) -> None:
    loaded = layout.load(unsigned)
    manifest = loaded.manifests[loaded.tags["latest"].digest]
    config = json.loads(loaded.read(manifest.config))
    config["rootfs"]["diff_ids"] = ["sha256:" + "0" * 64]
    data = json.dumps(config).encode()
    document = json.dumps(
        {**manifest.raw, "config": sign._renamed(manifest.config.raw, sign.digest_of(data), data)}
    ).encode()
    for blob in (data, document):
        blobs.write_blob(unsigned, sign.digest_of(blob), blob)
    descriptor = sign._renamed(loaded.tags["latest"].raw, sign.digest_of(document), document)
    (unsigned / "index.json").write_text(json.dumps({**loaded.index.raw, "manifests": [descriptor]}))
    sign.sign_image(unsigned, "latest", CERTIFIED)
    image.verify_image(unsigned, "latest", CA.public)
    with pytest.raises(VerificationError) as caught:
        image.verify_image(unsigned, "latest", CA.public, deep=True)
    assert caught.value.code == "diff_id_mismatch"


def test_revocation(unsigned: Path, tmp_path: Path) -> None:
    sign.sign_image(unsigned, "latest", CERTIFIED)
    deny = tmp_path / "deny"
    deny.write_text(f"# lost\nsha256:{VENDOR.public.fingerprint.upper()}  # the key\n\n")
    with pytest.raises(VerificationError) as caught:
        image.verify_image(unsigned, "latest", CA.public, deny=image.load_deny_list(deny))
    assert caught.value.code == "revoked"
    deny.write_text("nonsense\n")
    with pytest.raises(InputError, match="line 1"):
        image.load_deny_list(deny)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("7", 7),
        (str((1 << 64) - 1), (1 << 64) - 1),
        (str(1 << 64), None),
        ("-1", None),
        ("1.0", None),
        ("", None),
        ("\uff11", None),
    ],
)
def test_security_versions(text: str, expected: int | None) -> None:
    config = json.dumps(
        {"config": {"Labels": {"io.islet.security-version": text}}, "rootfs": {"diff_ids": []}}
    ).encode()
    if expected is not None:
        assert security_version(config) == expected
        return
    with pytest.raises(InputError) as caught:
        security_version(config)
    assert caught.value.code == "config_invalid"


def test_vendor_key_must_be_der() -> None:
    """A PEM key certified as such would be read by a lenient parser; upstream would not take it."""
    data = VENDOR.public.pem()
    annotations = {
        "com.samsung.islet.image.signature": VENDOR.sign(b"c").hex(),
        "com.samsung.islet.image.vendorpub": data.hex(),
        "com.samsung.islet.image.vendorpub.signature": CA.sign(data).hex(),
    }
    with pytest.raises(VerificationError) as caught:
        verify_config(b"c", annotations, CA.public)
    assert caught.value.code == "vendor_key_invalid"


@pytest.fixture
def key_files(tmp_path: Path) -> dict[str, Path]:
    names = {name: tmp_path / name for name in ("vendor", "public", "signature", "ca", "ca_public")}
    files.write_private(names["vendor"], VENDOR)
    files.write_public(names["public"], VENDOR.public)
    files.write_private(names["ca"], CA)
    files.write_public(names["ca_public"], CA.public)
    names["signature"].write_bytes(CERTIFIED.certificate)
    return names


def test_both_sets_of_keys_give_the_same(key_files: dict[str, Path]) -> None:
    realistic = KeyFiles(key_files["vendor"], key_files["signature"], key_files["ca_public"])
    simplified = KeyFiles(key_files["vendor"], ca_private=key_files["ca"])
    assert vendor_of(realistic, None) == vendor_of(simplified, None) == CERTIFIED
    elsewhere = KeyFiles(key_files["public"], ca_private=key_files["ca"])
    assert vendor_of(elsewhere, None, signed_elsewhere=True).private is None


@pytest.mark.parametrize(
    "given",
    [
        ("vendor",),
        ("vendor", "signature"),
        ("vendor", "ca_public"),
        ("vendor", "signature", "ca"),
        ("vendor", "ca_public", "ca"),
        ("vendor", "signature", "ca_public", "ca"),
        ("ca",),
    ],
)
def test_other_combinations_are_refused_before_anything_is_read(given: tuple[str, ...]) -> None:
    absent = Path("/nonexistent")
    named = KeyFiles(
        absent if "vendor" in given else None,
        absent if "signature" in given else None,
        absent if "ca_public" in given else None,
        absent if "ca" in given else None,
    )
    with pytest.raises(InputError) as caught:
        vendor_of(named, None)
    assert caught.value.code == "usage"


def test_wrong_certificate(key_files: dict[str, Path]) -> None:
    key_files["signature"].write_bytes(VENDOR.sign(VENDOR.public.spki))
    with pytest.raises(VerificationError) as caught:
        vendor_of(KeyFiles(key_files["vendor"], key_files["signature"], key_files["ca_public"]), None)
    assert caught.value.code == "vendor_signature_invalid"


EARLY = datetime.datetime(2029, 1, 1, tzinfo=datetime.timezone.utc)


def test_artifact(unsigned: Path) -> None:
    with pytest.raises(VerificationError) as caught:
        artifact.verify_artifact(unsigned, "latest", CA.public)
    assert caught.value.code == "artifact_missing"
    artifact.add_artifact(unsigned, "latest", CERTIFIED, name="hello", expires="2030-01-01T00:00:00Z")
    before = tree(unsigned)
    artifact.add_artifact(unsigned, "latest", CERTIFIED, name="hello", expires="2030-01-01T00:00:00Z")
    assert tree(unsigned) == before
    assert not layout.load(unsigned).warnings
    statement, vendor = artifact.verify_artifact(unsigned, "latest", CA.public, name="hello", now=EARLY)
    assert (statement.security_version, vendor.key) == (3, VENDOR.public)
    for options, code in (
        ({"now": datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc)}, "expired"),
        ({"now": EARLY, "name": "other"}, "name_mismatch"),
        ({"now": EARLY, "ca": VENDOR.public}, "vendor_signature_invalid"),
    ):
        with pytest.raises(VerificationError) as caught:
            artifact.verify_artifact(unsigned, "latest", **{"ca": CA.public, **options})
        assert caught.value.code == code


def test_an_artifact_is_about_one_manifest(unsigned: Path) -> None:
    """An artifact moved to another image by its subject alone is noticed."""
    made = artifact.add_artifact(unsigned, "latest", CERTIFIED, name="hello")
    signed = sign.sign_image(unsigned, "latest", CERTIFIED)
    loaded = layout.load(unsigned)
    moved = dict(loaded.manifests[made].raw)
    manifest = loaded.tags["latest"]
    moved["subject"] = {"mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size}
    data = json.dumps(moved).encode()
    blobs.write_blob(unsigned, sign.digest_of(data), data)
    entry = {"mediaType": manifest.media_type, "digest": sign.digest_of(data), "size": len(data)}
    (unsigned / "index.json").write_text(json.dumps({**loaded.index.raw, "manifests": [manifest.raw, entry]}))
    assert layout.load(unsigned).tags["latest"].digest == signed.manifest_digest
    with pytest.raises(VerificationError) as caught:
        artifact.verify_artifact(unsigned, "latest", CA.public)
    assert caught.value.code == "statement_mismatch"


@pytest.mark.parametrize(
    ("annotated", "with_artifact", "accepted"),
    [
        (True, False, {"annotation", "either"}),
        (False, True, {"artifact", "either"}),
        (True, True, {"annotation", "artifact", "either", "both"}),
        (False, False, set()),
    ],
)
def test_requirements(unsigned: Path, annotated: bool, with_artifact: bool, accepted: set[str]) -> None:
    if annotated:
        sign.sign_image(unsigned, "latest", CERTIFIED)
    if with_artifact:
        artifact.add_artifact(unsigned, "latest", CERTIFIED, name="hello")
    for requirement in ("annotation", "artifact", "either", "both"):
        arguments = (unsigned, "latest", CA.public, requirement)
        if requirement in accepted:
            assert image.verify_required(*arguments, name="hello").vendor.key == VENDOR.public
            with pytest.raises(VerificationError):
                image.verify_required(*arguments, name="other")
        else:
            with pytest.raises(VerificationError):
                image.verify_required(*arguments, name="hello")
