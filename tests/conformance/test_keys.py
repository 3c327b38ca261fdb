"""Every case of the `keys` family: strict reading, public halves, deterministic signatures."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import vectors

from islet_cli.errors import InputError
from islet_cli.keys import ecc

FOLDER = vectors.path("ISLET_VECTORS_IMAGES") / "keys"
CASES: dict[str, Any] = vectors.images("keys", "expected.json") or {}
HAS_OPENSSL = shutil.which("openssl") is not None


@pytest.mark.parametrize("name", CASES.get("private", {}))
def test_private_key(name: str) -> None:
    expected = CASES["private"][name]
    if expected["expect"] == "ok":
        key = ecc.load_private(FOLDER / name)
        assert len(key.sec1_der()) == CASES["sizes"]["SEC1 DER private key"]
        assert len(key.public.spki) == CASES["sizes"]["SPKI DER public key"]
        return
    with pytest.raises(InputError) as caught:
        ecc.load_private(FOLDER / name)
    assert caught.value.code == expected["error"]
    assert name in caught.value.message


@pytest.mark.parametrize("name", CASES.get("public", {}))
def test_public_key(name: str) -> None:
    expected = CASES["public"][name]
    if expected["expect"] == "ok":
        assert len(ecc.load_public(FOLDER / name).spki) == CASES["sizes"]["SPKI DER public key"]
        return
    with pytest.raises(InputError) as caught:
        ecc.load_public(FOLDER / name)
    assert caught.value.code == expected["error"]


@pytest.mark.parametrize(("private", "public"), CASES.get("extract_public", {}).items())
def test_extract_public(private: str, public: str) -> None:
    assert ecc.load_private(FOLDER / private).public.spki == (FOLDER / public).read_bytes()


@pytest.mark.parametrize("case", CASES.get("sign_file", []), ids=lambda case: case["signature"])
def test_sign_file(case: dict[str, str]) -> None:
    key, message = ecc.load_private(FOLDER / case["key"]), (FOLDER / case["file"]).read_bytes()
    signature = key.sign(message)
    assert signature == (FOLDER / case["signature"]).read_bytes()
    key.public.verify(signature, message)


@pytest.mark.skipif(not HAS_OPENSSL, reason="the openssl program is not installed")
def test_openssl_reads_our_keys_and_signatures(tmp_path: Path) -> None:
    key = ecc.generate()
    (tmp_path / "key.der").write_bytes(key.sec1_der())
    (tmp_path / "pub.der").write_bytes(key.public.spki)
    (tmp_path / "message").write_bytes(b"message")
    (tmp_path / "signature").write_bytes(key.sign(b"message"))
    public = _openssl("ec", "-inform", "DER", "-in", str(tmp_path / "key.der"), "-pubout", "-outform", "DER")
    assert public == key.public.spki
    arguments = ["-verify", str(tmp_path / "pub.der"), "-keyform", "DER", "-signature", str(tmp_path / "signature")]
    assert b"Verified OK" in _openssl("dgst", "-sha384", *arguments, str(tmp_path / "message"))


@pytest.mark.skipif(not HAS_OPENSSL, reason="the openssl program is not installed")
def test_we_read_openssl_keys_and_signatures(tmp_path: Path) -> None:
    file = tmp_path / "key.der"
    file.write_bytes(_openssl("ecparam", "-name", "secp384r1", "-genkey", "-noout", "-outform", "DER"))
    key = ecc.load_private(file)
    assert key.sec1_der() == file.read_bytes()
    (tmp_path / "message").write_bytes(b"message")
    signature = _openssl("dgst", "-sha384", "-sign", str(file), "-keyform", "DER", str(tmp_path / "message"))
    key.public.verify(signature, b"message")


def _openssl(*arguments: str) -> bytes:
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True).stdout
