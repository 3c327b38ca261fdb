"""Every case of the `signing` family: detached signatures, signing, verification, rollback, archives, artifact."""

from __future__ import annotations

import datetime
import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import vectors

from islet_cli.appmanager import upgrade
from islet_cli.errors import IsletError
from islet_cli.keys import ecc
from islet_cli.keys.ecc import PublicKey
from islet_cli.oci import archive as archives
from islet_cli.oci import jsonform
from islet_cli.oci.digest import digest_of
from islet_cli.oci.layout import read_index
from islet_cli.oci.reference import default_reference, find
from islet_cli.signing import artifact, image
from islet_cli.signing.archive import sign_archive
from islet_cli.signing.sign import Vendor, certified_vendor, certify, sign_image

IMAGES = vectors.path("ISLET_VECTORS_IMAGES")
FOLDER = IMAGES / "signing"
KEYS = IMAGES / "keys"
CASES: dict[str, Any] = vectors.images("signing", "expected.json") or {}
ARCHIVES: dict[str, Any] = vectors.images("signing", "archives", "expected.json") or {}


def files(directory: Path) -> dict[str, bytes]:
    """Every file below a directory by relative name."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def public(name: str) -> PublicKey:
    return ecc.load_public(KEYS / name)


def vendor(*, realistic: bool = False) -> Vendor:
    private = ecc.load_private(KEYS / "vendor.prv")
    if realistic:
        certificate = (KEYS / "vendor.pub.sig").read_bytes()
        return certified_vendor(private.public, certificate, public("root-ca.pub"), private)
    return certify(private.public, ecc.load_private(KEYS / "root-ca.prv"), private)


@pytest.mark.parametrize("case", CASES.get("detached", []), ids=lambda case: case["message"])
def test_detached(case: dict[str, Any]) -> None:
    if case["message_hex"] is not None:
        message = bytes.fromhex(case["message_hex"])
    else:
        assert case["message_rule"] == "byte i is (i*7) mod 251, 5120 bytes"
        message = bytes(i * 7 % 251 for i in range(5120))
    key = ecc.load_private(KEYS / case["key"])
    assert key.sign(message).hex() == case["signature_hex"]
    key.public.verify(bytes.fromhex(case["signature_hex"]), message)


@pytest.mark.parametrize("realistic", [False, True], ids=["simplified", "realistic"])
@pytest.mark.parametrize("case", CASES.get("sign_image", []), ids=lambda case: case["name"])
def test_sign_image(case: dict[str, Any], realistic: bool, tmp_path: Path) -> None:
    work = tmp_path / "layout"
    shutil.copytree(FOLDER / case["name"] / "before", work)
    done = sign_image(work, case["reference"], vendor(realistic=realistic))
    assert files(work) == files(FOLDER / case["name"] / "after")
    assert done.manifest_digest == case["new_manifest"]
    assert done.config_digest == case["config_digest"]
    index, data = read_index(work)
    assert digest_of(data).hex == case["new_index_json_sha256"]
    assert find(work, index, done.manifest_digest).size == case["new_size"]

    again = sign_image(work, str(done.manifest_digest), vendor())
    assert not again.changed
    assert files(work) == files(FOLDER / case["name"] / "after")


@pytest.mark.parametrize("deep", [False, True], ids=["plain", "deep"])
@pytest.mark.parametrize("case", CASES.get("verify_image", []), ids=lambda case: case["name"])
def test_verify_image(case: dict[str, Any], deep: bool) -> None:
    arguments = (FOLDER / case["layout"], case["reference"], public(case["ca"]))
    if case["expect"] == "ok":
        image.verify_image(*arguments, deep=deep)
        return
    with pytest.raises(IsletError) as caught:
        image.verify_image(*arguments, deep=deep)
    assert caught.value.code == case["expect"]


@pytest.mark.parametrize(
    "step",
    (CASES.get("rollback") or {}).get("steps", []),
    ids=lambda step: f"{step['installed']}-to-{step['offered']}{'-allowed' if step.get('allow_rollback') else ''}",
)
def test_rollback(step: dict[str, Any]) -> None:
    policy = upgrade.UpgradePolicy(allow_rollback=step.get("allow_rollback", False))
    offered = rollback_image(step["offered"])
    fetched = upgrade.Fetched(
        sha384(offered.config), tuple(offered.vendor.vendor_data), upgrade.version_of(offered.config)
    )
    installed = None
    if step["installed"] is not None:
        old = rollback_image(step["installed"])
        installed = upgrade.Installed(sha384(old.config), tuple(old.vendor.vendor_data), upgrade.version_of(old.config))
    if step["expect"] == "rollback_refused":
        with pytest.raises(IsletError) as caught:
            upgrade.decide(fetched, installed, policy)
        assert caught.value.code == "rollback_refused"
        return
    assert upgrade.decide(fetched, installed, policy).value == step["expect"]


def rollback_image(name: str) -> image.VerifiedImage:
    directory = FOLDER / "rollback" / name
    index, _ = read_index(directory)
    return image.verify_image(directory, default_reference(directory, index), public("root-ca.pub"))


def sha384(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


@pytest.mark.parametrize("name", ARCHIVES.get("cases", {}))
def test_archive(name: str, tmp_path: Path) -> None:
    case = ARCHIVES["cases"][name]
    target = tmp_path / "application"
    outside = files(FOLDER / "archives")
    if case["expect"] == "ok":
        sign_archive(FOLDER / "archives" / name, target, ARCHIVES["reference"], vendor())
        assert files(target) == files((FOLDER / "archives" / case["same_as"]).resolve())
    else:
        with pytest.raises(IsletError) as caught:
            sign_archive(FOLDER / "archives" / name, target, ARCHIVES["reference"], vendor())
        assert caught.value.code == case["expect"]
    assert [path.name for path in tmp_path.iterdir()] == (["application"] if case["expect"] == "ok" else [])
    assert files(FOLDER / "archives") == outside


@pytest.mark.parametrize(("name", "expected"), ARCHIVES.get("default_name", {}).items())
def test_archive_default_name(name: str, expected: str) -> None:
    assert archives.default_name(Path(name)) == expected


ARTIFACT: dict[str, Any] = CASES.get("signature_artifact", {})


@pytest.mark.skipif(not ARTIFACT, reason="no such case")
def test_signature_artifact_verifies() -> None:
    directory = FOLDER / ARTIFACT["layout"]
    before_its_end = datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc)
    statement, vendor = artifact.verify_artifact(
        directory, ARTIFACT["reference"], public("root-ca.pub"), now=before_its_end
    )
    assert statement.manifest.digest == ARTIFACT["subject"]
    assert vendor.key == public("vendor.pub")
    assert digest_of(statement.to_bytes()).hex == ARTIFACT["payload_sha256"]


@pytest.mark.skipif(not ARTIFACT, reason="no such case")
def test_signature_artifact_is_made_byte_for_byte(tmp_path: Path) -> None:
    original, work = FOLDER / ARTIFACT["layout"], tmp_path / "layout"
    shutil.copytree(original, work)
    index, _ = read_index(work)
    without = {**index.raw, "manifests": [item.raw for item in index.manifests if "artifactType" not in item.raw]}
    (work / "index.json").write_bytes(jsonform.dumps(without))
    made = artifact.add_artifact(work, ARTIFACT["reference"], vendor(), name="example", expires="2034-07-19T13:44:56Z")
    assert made == ARTIFACT["artifact"]
    assert files(work) == files(original)
