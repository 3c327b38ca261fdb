"""Metadata blocks: pins, signatures made elsewhere, and the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from islet_cli.cli.main import run
from islet_cli.errors import InputError, VerificationError
from islet_cli.keys import ecc
from islet_cli.metadata import block, create, dump
from islet_cli.metadata.verify import verify_block

KEY = ecc.private_from_scalar(42)
VALUES = create.BlockManifest("com.example.realm", "1.2.3", 5, "ab" * 32, "SHA256")
YAML = f"realm_id: com.example.realm\nversion: 1.2.3\nsvn: 5\nrim: {'ab' * 32}\nhash_algo: SHA256\n"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "manifest.yaml").write_text(YAML)
    (tmp_path / "key.pem").write_bytes(KEY.pem())
    (tmp_path / "key.pub").write_bytes(KEY.public.spki)
    (tmp_path / "other.pub").write_bytes(ecc.private_from_scalar(43).public.spki)
    return tmp_path


def islet(directory: Path, *arguments: str) -> int:
    """Run a command; arguments that name files of `directory` are made absolute."""
    return run(
        [str(directory / one) if (directory / one).exists() or one.startswith("@") else one for one in arguments]
    )


def test_values_and_manifest_give_the_same_block() -> None:
    data = create.create(VALUES, KEY)
    assert data == create.create(create.parse_manifest(YAML), KEY) and len(data) == 432
    parsed = block.verify(data)
    assert (parsed.realm_id, parsed.svn, parsed.version, parsed.hash_name) == (
        "com.example.realm",
        5,
        (1, 2, 3),
        "SHA256",
    )
    assert parsed.public_key == KEY.public.sec1[1:] and parsed.to_bytes() == data
    assert block.parse(data.ljust(4096, b"\xff")) == parsed


@pytest.mark.parametrize("size", [0, 431, 433, 4095, 4097])
def test_other_sizes_are_no_blocks(size: int) -> None:
    for read in (block.parse, block.verify):
        with pytest.raises(InputError) as caught:
            read(bytes(size))
        assert caught.value.code == "length"


def test_pins_of_signer_and_version() -> None:
    data = create.create(VALUES, KEY)
    assert verify_block(data, public_key=KEY.public.sec1[1:], min_svn=5).monitor_result == "RMI_SUCCESS"
    for pins, code in (({"public_key": bytes(96)}, "public-key"), ({"min_svn": 6}, "svn")):
        with pytest.raises(VerificationError) as caught:
            verify_block(data, **pins)
        assert caught.value.code == code


def test_a_signature_made_elsewhere_must_fit() -> None:
    region = create.signed_region(VALUES, KEY.public.sec1[1:])
    whole = create.create(VALUES, KEY)
    assert create.assemble(region, KEY.sign(region)) == whole
    assert create.assemble(region, KEY.sign_raw(region)) == whole
    for signature in (
        KEY.sign(b"else"),
        KEY.sign_raw(b"else"),
        ecc.private_from_scalar(2).sign(region),
        b"",
        bytes(96),
    ):
        with pytest.raises(VerificationError):
            create.assemble(region, signature)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"realm_id": "tab\there"}, "realm-id"),
        ({"realm_id": "del\x7f"}, "realm-id"),
        ({"version": "1.2.3 "}, "version"),
        ({"version": "१.२.३"}, "version"),
        ({"version": "1." * 2000}, "version"),
        ({"svn": 2**64}, "svn"),
        ({"rim": " " + "ab" * 31 + "a"}, "rim"),
        ({"rim": "１" * 64}, "rim"),
        ({"hash_algo": "SHA384"}, "hash-algo"),
    ],
)
def test_values_are_checked(changes: dict[str, Any], code: str) -> None:
    values = {name: getattr(VALUES, name) for name in VALUES.__dataclass_fields__} | changes
    with pytest.raises(InputError) as caught:
        create.create(create.BlockManifest(**values), KEY)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a\n",
        "realm_id: [a]\n" + YAML.split("\n", 1)[1],
        YAML + "svn: 6\n",
        YAML + "---\n" + YAML,
        YAML.replace("svn: 5", "svn: 1.0"),
        YAML.replace("svn: 5", "svn: 007"),
        YAML.replace("svn: 5", "svn: 5_0"),
        YAML + "? [a]\n: b\n",
        "a: " + "[" * 3000,
        'a: "\\UFFFFFFFF"\n',
        "#" * 70000,
    ],
)
def test_malformed_manifests(text: str) -> None:
    with pytest.raises(InputError) as caught:
        create.parse_manifest(text)
    assert caught.value.code == "yaml" and "\n" not in caught.value.message


def test_hexadecimal_svn_is_read() -> None:
    assert create.parse_manifest(YAML.replace("svn: 5", "svn: 0x1F")).svn == 31


def test_an_identifier_without_terminator_is_warned_about() -> None:
    assert create.warnings(VALUES) == []
    assert "terminator" in create.warnings(create.BlockManifest("a" * 128, "1.0.0", 1, "", "SHA256"))[0]


def test_create_verify_dump(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        islet(files, "metadata", "create", "-m", "manifest.yaml", "-k", "key.pem", "-o", f"{files}/metadata.bin") == 0
    )
    assert (files / "metadata.bin").read_bytes() == create.create(VALUES, KEY)
    assert islet(files, "metadata", "verify", "-i", "metadata.bin", "--public-key", "key.pub", "--min-svn", "5") == 0
    assert "RMI_SUCCESS" in capsys.readouterr().out
    assert islet(files, "metadata", "dump", "-i", "metadata.bin") == 0
    assert capsys.readouterr().out == dump.dump_text(block.parse(create.create(VALUES, KEY)))
    assert islet(files, "metadata", "dump", "-i", "metadata.bin", "--hexdump") == 0
    assert "-- hexdump --\n00000000  01 00" in capsys.readouterr().out
    assert islet(files, "metadata", "dump", "-i", "metadata.bin", "--json") == 0
    assert json.loads(capsys.readouterr().out)["realm_id"] == "com.example.realm"
    assert islet(files, "metadata", "verify", "-i", "metadata.bin", "--public-key", "other.pub") == 1
    assert "not by the expected key" in capsys.readouterr().err
    assert islet(files, "metadata", "verify", "-i", "metadata.bin", "--min-svn", "6") == 1
    changed = bytearray((files / "metadata.bin").read_bytes())
    changed[0xD0] ^= 1
    (files / "metadata.bin").write_bytes(changed)
    assert islet(files, "metadata", "verify", "-i", "metadata.bin") == 1


def test_signing_elsewhere(files: Path) -> None:
    base = ("metadata", "create", "-m", "manifest.yaml", "--public-key", "key.pub")
    assert islet(files, *base, "--tbs-out", f"{files}/tbs") == 0
    (files / "sig").write_bytes(KEY.sign((files / "tbs").read_bytes()))
    assert islet(files, *base, "--signature", "sig", "-o", f"{files}/metadata.bin") == 0
    assert (files / "metadata.bin").read_bytes() == create.create(VALUES, KEY)
    (files / "sig").write_bytes(KEY.sign(b"something else"))
    assert islet(files, *base, "--signature", "sig", "-o", f"{files}/bad.bin") == 1
    assert not (files / "bad.bin").exists()


def test_failed_creation_leaves_no_file_and_a_code(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "manifest.yaml").write_text(YAML.replace("1.2.3", "1.2"))
    assert islet(files, "metadata", "create", "-m", "manifest.yaml", "-k", "key.pem", "-o", f"{files}/out") == 2
    assert capsys.readouterr().err == "error: version '1.2' is not MAJOR.MINOR.PATCH of 64-bit numbers\n"
    assert islet(files, "metadata", "create", "-m", "nowhere.yaml", "-k", "key.pem", "-o", f"{files}/out") == 2
    (files / "manifest.yaml").write_text(YAML)
    assert islet(files, "metadata", "create", "-m", "manifest.yaml", "-k", "key.pub", "-o", f"{files}/out") == 2
    assert islet(files, "metadata", "create", "-m", "manifest.yaml", "-o", f"{files}/out") == 2
    assert islet(files, "metadata", "create", "-m", "manifest.yaml", "-k", "key.pem") == 2
    assert not (files / "out").exists()


def test_identifiers_that_the_monitor_refuses_need_no_strict(files: Path) -> None:
    (files / "manifest.yaml").write_text(YAML.replace("com.example.realm", '"tab\\there"'))
    arguments = ("metadata", "create", "-m", "manifest.yaml", "-k", "key.pem", "-o", f"{files}/out")
    assert islet(files, *arguments) == 2
    assert islet(files, *arguments, "--no-strict") == 0


def test_a_hostile_block_cannot_drive_the_terminal(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "block").write_bytes(
        create.create(create.BlockManifest("\x1b[2J", "1.0.0", 1, "00" * 32, "SHA256"), KEY, strict=False)
    )
    assert islet(files, "metadata", "dump", "-i", "block") == 0
    assert islet(files, "metadata", "verify", "-i", "block") == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\\x1b[2J" in shown and "RMI_ERROR_INPUT:realm-id" in shown
