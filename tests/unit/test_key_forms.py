"""Key forms, key files and strict signatures."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from islet_cli.errors import InputError, VerificationError
from islet_cli.keys import der, ecc, files, pem

KEY = ecc.private_from_scalar(0x1234567890)
OTHER = ecc.private_from_scalar(99)
PARAMETERS = pem.encode("EC PARAMETERS", bytes.fromhex("06052b81040022"))


def foreign() -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(KEY.scalar, ec.SECP384R1())


def pkcs8(form: serialization.Encoding, password: bytes | None = None) -> bytes:
    protection = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return foreign().private_bytes(form, serialization.PrivateFormat.PKCS8, protection)


@pytest.mark.parametrize(
    "data",
    [
        KEY.sec1_der(),
        KEY.pem(),
        pkcs8(serialization.Encoding.PEM),
        pkcs8(serialization.Encoding.DER),
        PARAMETERS + KEY.pem(),
        KEY.pem().replace(b"\n", b"\r\n"),
    ],
    ids=["sec1-der", "sec1-pem", "pkcs8-pem", "pkcs8-der", "parameters", "crlf"],
)
def test_private_forms(data: bytes) -> None:
    assert ecc.parse_private(data) == KEY


def test_our_forms_are_those_of_cryptography() -> None:
    expected = foreign().private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    assert KEY.sec1_der() == expected
    spki = (
        foreign().public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    assert KEY.public.spki == spki
    assert ecc.parse_public(KEY.public.pem()) == KEY.public


def other_key(kind: str) -> bytes:
    key = {
        "p256": lambda: ec.derive_private_key(5, ec.SECP256R1()),
        "p521": lambda: ec.derive_private_key(5, ec.SECP521R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
    }[kind.removesuffix("-traditional")]()
    traditional = kind.endswith("-traditional")
    form = serialization.PrivateFormat.TraditionalOpenSSL if traditional else serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


@pytest.mark.parametrize("kind", ["p256", "p256-traditional", "p521", "ed25519", "rsa", "rsa-traditional"])
def test_other_curves_and_key_types_are_told_apart(kind: str) -> None:
    data = other_key(kind)
    der_form = pem.decode_single(data)[1]
    for form in (data, der_form):
        with pytest.raises(InputError) as caught:
            ecc.parse_private(form)
        assert caught.value.code == "key_invalid"
        assert caught.value.details["reason"] == "curve"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        pkcs8(serialization.Encoding.PEM, b"secret"),
        KEY.public.pem(),
        KEY.public.spki,
        KEY.pem() + KEY.pem(),
        KEY.pem() + b"trailing",
        b"leading\n" + KEY.pem(),
        KEY.sec1_der() + b"\0",
        KEY.sec1_der()[:-1],
        KEY.pem().replace(b"BEGIN EC PRIVATE KEY", b"BEGIN PRIVATE KEY"),
        b"-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n"
        b"-----END EC PRIVATE KEY-----\n",
    ],
)
def test_malformed_private_keys(data: bytes) -> None:
    with pytest.raises(InputError) as caught:
        ecc.parse_private(data, what="k.pem")
    assert caught.value.code == "key_invalid"
    assert caught.value.details["reason"] == "format"
    assert caught.value.message.startswith("k.pem: ")


@pytest.mark.parametrize("scalar", [0, ecc.ORDER, ecc.ORDER + 1])
def test_scalar_out_of_range(scalar: int) -> None:
    with pytest.raises(InputError, match="out of range"):
        ecc.private_from_scalar(scalar)


def test_largest_scalar_signs() -> None:
    key = ecc.private_from_scalar(ecc.ORDER - 1)
    key.public.verify(key.sign(b"m"), b"m")


def test_secrets_stay_out_of_representations() -> None:
    assert str(KEY.scalar) not in repr(KEY)
    assert f"{KEY.scalar:x}" not in repr(KEY)


def test_signatures() -> None:
    signature = KEY.sign(b"message")
    assert signature == KEY.sign(b"message")
    KEY.public.verify(signature, b"message")
    raw = KEY.sign_raw(b"message")
    assert len(raw) == 96
    KEY.public.verify_raw(raw, b"message")
    r, s = ecc.decode_signature(signature)
    KEY.public.verify(ecc.encode_signature(r, ecc.ORDER - s), b"message")
    for key, data, message in ((OTHER, signature, b"message"), (KEY, signature, b"other")):
        with pytest.raises(VerificationError) as caught:
            key.public.verify(data, message)
        assert caught.value.code == "signature_invalid"
    with pytest.raises(VerificationError):
        KEY.public.verify_raw(raw[:-1], b"message")


def malleable(signature: bytes) -> list[bytes]:
    r, s = ecc.decode_signature(signature)
    one, other = der.encode_unsigned(r), der.encode_unsigned(s)
    padded = der.encode(der.INTEGER, b"\0\0" + r.to_bytes(48, "big"))
    return [
        b"",
        signature + b"\0",
        signature[:-1],
        der.encode(der.SEQUENCE, one + other + b"\x05\x00"),
        der.encode(der.SEQUENCE, padded + other),
        b"\x30\x81" + signature[1:],
        b"\x30\x80" + signature[2:] + b"\0\0",
        ecc.encode_signature(0, s),
        ecc.encode_signature(r, 0),
        ecc.encode_signature(r + ecc.ORDER, s),
        ecc.encode_signature(r, s + ecc.ORDER),
        der.encode(der.SEQUENCE, der.encode(der.INTEGER, b"\x80") + other),
        der.encode(der.SEQUENCE, der.encode(der.INTEGER, b"") + other),
    ]


@pytest.mark.parametrize("number", range(13))
def test_signatures_that_are_not_strict_der(number: int) -> None:
    with pytest.raises(VerificationError) as caught:
        KEY.public.verify(malleable(KEY.sign(b"message"))[number], b"message")
    assert caught.value.code == "signature_invalid"


def test_private_key_files(tmp_path: Path) -> None:
    file = tmp_path / "k"
    files.write_private(file, KEY)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(InputError) as caught:
        files.write_private(file, OTHER)
    assert caught.value.code == "exists"
    assert ecc.load_private(file) == KEY
    files.write_private(file, OTHER, "pem", force=True)
    assert ecc.load_private(file) == OTHER
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["k"]


def test_describe_tells_kinds_apart(tmp_path: Path) -> None:
    files.write_private(tmp_path / "prv", KEY)
    files.write_public(tmp_path / "pub", KEY.public, "pem")
    described = [files.describe(tmp_path / name) for name in ("prv", "pub")]
    assert [facts["type"] for facts in described] == ["private", "public"]
    assert {facts["fingerprint"] for facts in described} == {KEY.public.fingerprint}
    (tmp_path / "p256").write_bytes(other_key("p256"))
    with pytest.raises(InputError) as caught:
        files.describe(tmp_path / "p256")
    assert caught.value.details["reason"] == "curve"
    with pytest.raises(InputError) as caught:
        files.describe(tmp_path / "absent")
    assert caught.value.code == "no-such-file"
