"""Parsers of what comes from others: whatever the bytes, they answer with a value or an IsletError."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from islet_cli.errors import InputError, IsletError, VerificationError
from islet_cli.keys import der, ecc
from islet_cli.oci import archive, elf, jsonform, layout
from islet_cli.oci.digest import digest_of
from islet_cli.oci.documents import parse_config, parse_index, parse_manifest
from islet_cli.oci.layers import gunzip, unzstd
from islet_cli.oci.names import fit_repository, is_repository
from islet_cli.oci.tarstream import TarStream

KEY = ecc.private_from_scalar(4711)
SIGNATURE = KEY.sign(b"message")
BASE = Path(__file__).resolve().parents[2] / "fixtures/vectors/images"
ARCHIVE = (BASE / "signing/archives/plain.tar").read_bytes()
PRIVATE = (BASE / "keys/root-ca.pkcs8.pem").read_bytes()

few = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# JSON values with the words that matter well represented.
words = st.sampled_from(
    [
        "schemaVersion", "mediaType", "manifests", "config", "layers", "digest", "size", "annotations", "subject",
        "platform", "data", "rootfs", "diff_ids", "Labels", "org.opencontainers.image.ref.name", "latest",
        "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
        "sha256:" + "0" * 64, "../../etc/passwd", "",
    ]
)  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1 << 65) | st.floats(allow_nan=False) | words | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words | st.text(max_size=5), inner, max_size=5),
    max_leaves=25,
)


def mutated(data: bytes) -> st.SearchStrategy[bytes]:
    """`data` with a few bytes changed, cut out or put in."""

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        out = data
        for at, cut, put in edits:
            at %= len(out) + 1
            out = out[:at] + put + out[at + cut :]
        return out

    return st.lists(st.tuples(st.integers(0, len(data)), st.integers(0, 8), st.binary(max_size=8)), max_size=4).map(
        apply
    )


@few
@given(st.binary(max_size=120) | mutated(SIGNATURE))
def test_signature_parser(data: bytes) -> None:
    try:
        r, s = ecc.decode_signature(data)
    except VerificationError as error:
        assert error.code == "signature_invalid"
        return
    # What is accepted has exactly one encoding.
    assert ecc.encode_signature(r, s) == data


@few
@given(mutated(SIGNATURE), st.binary(max_size=8))
def test_only_the_signature_itself_verifies(data: bytes, message: bytes) -> None:
    if data == SIGNATURE and message == b"message":
        return
    with pytest.raises(VerificationError):
        KEY.public.verify(data, message)


@few
@given(st.integers(1, ecc.ORDER - 1), st.integers(1, ecc.ORDER - 1))
def test_signature_round_trip(r: int, s: int) -> None:
    assert ecc.decode_signature(ecc.encode_signature(r, s)) == (r, s)


@few
@given(st.binary(max_size=300) | mutated(KEY.sec1_der()) | mutated(PRIVATE) | mutated(KEY.public.spki))
def test_key_parsers(data: bytes) -> None:
    for parse in (ecc.parse_private, ecc.parse_public):
        try:
            parse(data)
        except InputError as error:
            assert error.code == "key_invalid"
            assert error.details["reason"] in ("curve", "format")


@given(st.integers(1, ecc.ORDER - 1))
@settings(max_examples=15, deadline=None)
def test_key_round_trip(scalar: int) -> None:
    key = ecc.private_from_scalar(scalar)
    assert ecc.parse_private(key.sec1_der()) == ecc.parse_private(key.pem()) == key
    assert ecc.parse_public(key.public.spki) == key.public


@given(st.integers(0, 1 << 400))
def test_integers_round_trip(value: int) -> None:
    reader = der.Reader(der.encode_unsigned(value))
    assert reader.unsigned() == value
    reader.finish()


@few
@given(json_values | st.binary(max_size=60))
def test_documents(value: Any) -> None:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    for parse in (
        lambda: parse_index(data, what="x"),
        lambda: parse_manifest(data, what="x", media_type="m"),
        lambda: parse_config(data),
    ):
        try:
            parsed = parse()
        except IsletError:
            continue
        if "manifests" in parsed.raw or ("config" in parsed.raw and "layers" in parsed.raw):
            written = jsonform.dumps(parsed.raw)
            assert jsonform.dumps(json.loads(written)) == written


@few
@given(json_values, json_values, st.binary(max_size=40) | json_values)
def test_layout_loader(marker: Any, index: Any, nested: Any) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        blob = nested if isinstance(nested, bytes) else json.dumps(nested).encode()
        digest = digest_of(blob)
        (root / "blobs/sha256").mkdir(parents=True)
        (root / "blobs/sha256" / digest.hex).write_bytes(blob)
        for name, value in (("oci-layout", marker), ("index.json", index)):
            (root / name).write_text(json.dumps(value))
        with_blob = {
            "schemaVersion": 2,
            "manifests": [
                {"mediaType": media_type, "digest": digest, "size": len(blob)}
                for media_type in (
                    "application/vnd.oci.image.index.v1+json",
                    "application/vnd.oci.image.manifest.v1+json",
                )
            ],
        }
        for _ in range(2):
            try:
                layout.load(root)
            except IsletError as error:
                assert error.exit_code in (1, 2)
            (root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
            (root / "index.json").write_text(json.dumps(with_blob))


@few
@given(st.binary(max_size=1500) | mutated(ARCHIVE) | mutated((BASE / "signing/archives/plain.tar.gz").read_bytes()))
def test_archive_reader(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file, target = Path(directory) / "a.tar", Path(directory) / "to"
        file.write_bytes(data)
        target.mkdir()
        try:
            archive.extract(file, target)
            layout.load(target)
        except IsletError as error:
            assert error.exit_code in (1, 2)
        assert {path.name for path in Path(directory).iterdir()} == {"a.tar", "to"}
        for path in target.rglob("*"):
            assert not path.is_symlink()


names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300)


@few
@given(st.lists(st.tuples(names, st.binary(max_size=2000)), max_size=5), st.integers(1, 700))
def test_tar_stream_reads_what_tarfile_writes(files: list[tuple[str, bytes]], step: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as out:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    packed = buffer.getvalue()
    stream = TarStream(packed[at : at + step] for at in range(0, len(packed), step))
    found = [(member.name, b"".join(iter(stream.read, b""))) for member in stream]
    assert found == [(name.encode(), data) for name, data in files]


@few
@given(st.binary(max_size=600), st.booleans())
def test_decompressors(data: bytes, head: bool) -> None:
    for decompress, magic in ((gunzip, b"\x1f\x8b\x08\0"), (unzstd, b"\x28\xb5\x2f\xfd")):
        with_magic = magic + data if head else data
        try:
            for _ in decompress(iter([with_magic]), what="x"):
                pass
        except InputError as error:
            assert error.code == "decompress_error"


@few
@given(st.binary(max_size=400), st.booleans())
def test_elf_reader(data: bytes, head: bool) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x3e\x00" + data if head else data)
        file.flush()
        try:
            elf.read(Path(file.name))
        except InputError as error:
            assert error.code == "elf_invalid"


@given(st.text(max_size=300))
def test_fitted_names_are_names(text: str) -> None:
    try:
        assert is_repository(fit_repository(text))
    except InputError as error:
        assert error.code == "name_invalid"
