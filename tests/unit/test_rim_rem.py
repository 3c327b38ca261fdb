"""`islet rim rem`: given values, and what the app manager adds for signed images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from islet_cli.attestation.rem import application_measurement, predict
from islet_cli.cli.main import run
from islet_cli.keys import ecc
from islet_cli.oci.build import build_image
from islet_cli.signing import sign
from islet_cli.signing.image import verify_image

CA, VENDOR = ecc.private_from_scalar(11), ecc.private_from_scalar(12)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_values_extend_one_after_the_other(capsys: pytest.CaptureFixture[str], algorithm: str) -> None:
    size = hashlib.new(algorithm).digest_size
    expected = bytes(size)
    for value in (b"\x00\xff", b"a" * 64):
        expected = hashlib.new(algorithm, expected + value).digest()
    assert run(["rim", "rem", "--measurement-algo", algorithm, "00ff", "61" * 64]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"REM: {expected.hex()}"
    again = hashlib.new(algorithm, expected + b"x").digest()
    assert run(["rim", "rem", "--json", "--measurement-algo", algorithm, "--from", expected.hex(), "78"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["rem"] == again.hex() and shown["extensions"][0]["value"] == "78"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["xyz"], "value 1: not hexadecimal"),
        (["00" * 65], "a measurement extension takes 1 to 64 bytes, not 65"),
        ([""], "a measurement extension takes 1 to 64 bytes, not 0"),
        (["--from", "00", "00"], "--from: 1 bytes; sha256 has 32"),
        (["--measurement-algo", "md5", "00"], "'md5' is not a realm measurement algorithm"),
    ],
)
def test_values_are_checked(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert run(["rim", "rem", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_signed_images_give_what_the_app_manager_extends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "run").write_text("#!/bin/sh\n")
    (source / "run").chmod(0o755)
    layouts = []
    for name in ("one", "two"):
        layout = build_image(source, tmp_path / name, name=name, arch="amd64").layout
        sign.sign_image(layout, "latest", sign.certify(VENDOR.public, CA, VENDOR))
        layouts.append(layout)
    (tmp_path / "ca.pub").write_bytes(CA.public.spki)
    images = [verify_image(layout, "latest", CA.public) for layout in layouts]
    measurements = [
        application_measurement(image.vendor.vendor_data, hashlib.sha384(image.config).digest()) for image in images
    ]
    words = ["--app", str(layouts[0]), "--app", f"{layouts[1]}:latest", "--ca-pub", str(tmp_path / "ca.pub")]
    assert run(["rim", "rem", "--json", *words]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["rem"] == predict(measurements, "sha256")[0].hex()
    assert shown["extensions"][0]["what"].startswith("one (1/")
    blob = next(path for path in (layouts[0] / "blobs" / "sha256").iterdir() if path.stat().st_size > 1000)
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    assert run(["rim", "rem", *words]) in (1, 2)
    (tmp_path / "ca.pub").write_bytes(VENDOR.public.spki)
    assert run(["rim", "rem", "--app", str(layouts[1]), "--ca-pub", str(tmp_path / "ca.pub")]) == 1
