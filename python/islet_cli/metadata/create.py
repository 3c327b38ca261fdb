"""Make metadata blocks from the YAML manifest of the upstream tool, or from values.

The signature is deterministic (RFC 6979 with SHA-384), so a block is reproducible byte for byte.

Source: realm-metadata-tool of the Islet project (manifest members, layout, order of the checks).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from islet_cli.errors import InputError
from islet_cli.keys.ecc import PrivateKey
from islet_cli.metadata.block import (
    BLOCK_SIZE,
    FORMAT_VERSION,
    HASH_NUMBERS,
    HASH_SIZES,
    LAYOUT,
    REALM_ID_SIZE,
    SIGNED_SIZE,
    verify,
)

MAX_MANIFEST = 64 << 10
_U64_MAX = 2**64 - 1
_TEXT_MEMBERS = ("realm_id", "version", "rim", "hash_algo")
_VERSION = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)", re.ASCII)
_UNSIGNED = re.compile(r"0|[1-9][0-9]{0,19}|0x[0-9a-fA-F]{1,16}|0o[0-7]{1,22}", re.ASCII)
_HEX = re.compile(r"[0-9a-fA-F]*", re.ASCII)


@dataclass(frozen=True)
class BlockManifest:
    """What a metadata block says, before it is checked by `signed_region`.

    Attributes:
        realm_id: Identifier, ASCII, at most 128 characters; reverse domain style is usual.
        version: `MAJOR.MINOR.PATCH`.
        svn: Security version number, at least 1.
        rim: Realm initial measurement in hex.
        hash_algo: `SHA256` or `SHA512`.
    """

    realm_id: str
    version: str
    svn: int
    rim: str
    hash_algo: str


def parse_manifest(text: bytes | str, *, what: str = "manifest") -> BlockManifest:
    """Read the YAML manifest. Unknown members are ignored; values are checked later, by `signed_region`.

    Raises:
        InputError: `yaml`: malformed, several documents, a member that is missing, repeated or ill-typed.
    """
    scalars = _scalars(text, what)
    missing = [name for name in (*_TEXT_MEMBERS, "svn") if name not in scalars]
    if missing:
        _yaml_error(what, f"member {missing[0]!r} is missing")
    svn, plain = scalars["svn"]
    if not plain or not _UNSIGNED.fullmatch(svn) or int(svn, 0) > _U64_MAX:
        _yaml_error(what, f"svn is {svn!r}, not an unsigned 64-bit integer")
    algorithm = scalars["hash_algo"][0]
    if algorithm not in ("SHA256", "SHA512"):
        _yaml_error(what, f"hash_algo is {algorithm!r}, not SHA256 or SHA512")
    return BlockManifest(scalars["realm_id"][0], scalars["version"][0], int(svn, 0), scalars["rim"][0], algorithm)


def _yaml_error(what: str, problem: str) -> NoReturn:
    raise InputError(f"{what}: {problem}", code="yaml")


def _scalars(text: bytes | str, what: str) -> dict[str, tuple[str, bool]]:
    """The known members as (text, was it unquoted).

    The node graph is read, not constructed values: `version: 1.0` must reach the version rule as text, and
    nothing of a hostile document is expanded or built.
    """
    import yaml

    if len(text) > MAX_MANIFEST:
        _yaml_error(what, f"longer than {MAX_MANIFEST} bytes")
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        root = yaml.compose(decoded, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{what}: not one YAML document: {problem}", code="yaml") from error
    if not isinstance(root, yaml.MappingNode):
        _yaml_error(what, "not a mapping")
    found: dict[str, tuple[str, bool]] = {}
    for key, value in root.value:
        if not isinstance(key, yaml.ScalarNode):
            _yaml_error(what, "a member's name is not a scalar")
        if key.value not in (*_TEXT_MEMBERS, "svn"):
            continue
        if key.value in found:
            _yaml_error(what, f"member {key.value!r} is repeated")
        if not isinstance(value, yaml.ScalarNode):
            _yaml_error(what, f"member {key.value!r} is not a scalar")
        found[key.value] = (value.value, value.style is None)
    return found


def _realm_id_field(realm_id: str, *, strict: bool) -> bytes:
    problem = None
    if not realm_id:
        problem = "is empty"
    elif not realm_id.isascii():
        problem = "has characters beyond ASCII"
    elif len(realm_id) > REALM_ID_SIZE:
        problem = f"is {len(realm_id)} characters long, at most {REALM_ID_SIZE} fit"
    elif strict and not all(" " <= character <= "~" for character in realm_id):
        problem = "has a control character, which the monitor refuses"
    if problem:
        raise InputError(f"realm_id {realm_id[:140]!r} {problem}", code="realm-id")
    return realm_id.encode("ascii")


def _version_numbers(version: str) -> tuple[int, ...]:
    match = _VERSION.fullmatch(version) if len(version) <= 64 else None
    numbers = tuple(int(part) for part in match.groups()) if match else ()
    if not numbers or max(numbers) > _U64_MAX:
        raise InputError(f"version {version[:80]!r} is not MAJOR.MINOR.PATCH of 64-bit numbers", code="version")
    return numbers


def _rim_bytes(rim: str, algorithm: int) -> bytes:
    digits = 2 * HASH_SIZES[algorithm]
    if len(rim) != digits or not _HEX.fullmatch(rim):
        raise InputError(f"rim {rim[:140]!r} is not {digits} hexadecimal digits", code="rim")
    return bytes.fromhex(rim)


def signed_region(manifest: BlockManifest, public_key: bytes, *, strict: bool = True) -> bytes:
    """The 336 bytes to be signed (ECDSA P-384 with SHA-384).

    Args:
        manifest: Checked here in the order realm_id, version, svn, rim; the first failure is reported.
        public_key: The signer's point, X || Y, 96 bytes.
        strict: Refuse control characters in realm_id. The upstream tool takes them; the monitor does not.

    Raises:
        InputError: `realm-id`, `version`, `svn`, `rim` or `hash-algo`.
    """
    realm_id = _realm_id_field(manifest.realm_id, strict=strict)
    numbers = _version_numbers(manifest.version)
    if not 1 <= manifest.svn <= _U64_MAX:
        raise InputError(f"svn is {manifest.svn}; it starts at 1 and has 64 bits", code="svn")
    algorithm = HASH_NUMBERS.get(manifest.hash_algo)
    if algorithm is None:
        raise InputError(f"hash_algo {manifest.hash_algo!r} is not SHA256 or SHA512", code="hash-algo")
    rim = _rim_bytes(manifest.rim, algorithm)
    unsigned = LAYOUT.pack(FORMAT_VERSION, realm_id, rim, algorithm, manifest.svn, *numbers, public_key, b"")
    return unsigned[:SIGNED_SIZE]


def create(manifest: BlockManifest, private_key: PrivateKey, *, strict: bool = True) -> bytes:
    """Make and sign a block of 432 bytes. See `signed_region` for the checks."""
    region = signed_region(manifest, private_key.public.sec1[1:], strict=strict)
    return region + private_key.sign_raw(region)


def assemble(region: bytes, signature: bytes) -> bytes:
    """Join the signed region with a signature that was made elsewhere (HSM, CI), and verify the result.

    Args:
        region: What `signed_region` returned.
        signature: DER `ECDSA-Sig-Value`, or r || s of 96 bytes.

    Raises:
        InputError: `length`.
        VerificationError: `signature`: it does not fit the region and its key.
    """
    from islet_cli.keys.ecc import RAW_SIGNATURE_SIZE, SCALAR_SIZE, decode_signature

    if len(signature) != RAW_SIGNATURE_SIZE:
        r, s = decode_signature(signature)
        signature = r.to_bytes(SCALAR_SIZE, "big") + s.to_bytes(SCALAR_SIZE, "big")
    block = region + signature
    assert len(block) == BLOCK_SIZE
    verify(block)
    return block


def warnings(manifest: BlockManifest) -> list[str]:
    """What is allowed and still unwise."""
    if len(manifest.realm_id) == REALM_ID_SIZE:
        return [f"realm_id fills all {REALM_ID_SIZE} bytes: it has no terminator, which some monitors may demand"]
    return []
