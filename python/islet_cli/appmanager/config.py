"""The manager's measured configuration, `/etc/app-manager/config.yml`.

Upstream's keys are read as upstream reads them: unknown ones are ignored, a missing required one is an
error. The `policy` section is islet's own and strict: an unknown or missing member is an error, since a
misspelt restriction must not silently be none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from islet_cli import strictjson
from islet_cli.errors import InputError
from islet_cli.fsutil import read_file

DEFAULT_PATH = Path("/etc/app-manager/config.yml")
FLAG_BITS = {"Key": 1, "Rim": 2, "RealmId": 4}
FLAG_RIM = 2
FLAG_SVN = 8

_CIPHERS = {"Aes": "aes", "Twofish": "twofish", "Serpent": "serpent"}
_MODES = {"Cbc": "cbc", "Xts": "xts"}
_FILE_SYSTEMS = {"Ext2": "ext2", "Ext3": "ext3", "Ext4": "ext4"}
_REMS = {"rem0": 1, "rem1": 2, "rem2": 3, "rem3": 4}
_MAX_CONFIG = 1 << 20

T = TypeVar("T")


class ConfigError(InputError):
    """The configuration is unreadable or contradictory; the message names the key."""

    default_code = "config"


@dataclass(frozen=True)
class Crypto:
    """How partitions are encrypted.

    Attributes:
        cipher: As a dm-crypt table names it, such as `aes-xts-plain64`.
        key_size: Bytes of a key: 32 or 64.
        iv_offset: Added to each sector number before the IV is made.
        options: Further dm-crypt options.
    """

    cipher: str
    key_size: int
    iv_offset: int
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Launcher:
    """Where images come from.

    Attributes:
        kind: `dummy`, `none` (plain HTTP), `tls` or `ra-tls`.
        root_ca: The registry CA's certificate, PEM.
        token_file: A ready-made token instead of the monitor's; None asks the monitor.
    """

    kind: str
    root_ca: Path | None = None
    token_file: Path | None = None


@dataclass(frozen=True)
class Sealing:
    """Where the root of the application keys comes from.

    Attributes:
        kind: `dummy`, `stub` or `rsi`.
        stub: The fixed key of `stub`.
        flags: Bits of the monitor's call (1 Key, 2 Rim, 4 RealmId, 8 SVN).
        svn: Security version number of the call, 0 without the SVN bit.
    """

    kind: str
    stub: bytes = field(default=b"", repr=False)
    flags: int = 0
    svn: int = 0

    @property
    def uses_image_hash(self) -> bool:
        """A key that is bound to the exact realm is bound to the exact image as well."""
        return self.kind == "rsi" and bool(self.flags & FLAG_RIM)


@dataclass(frozen=True)
class MetadataRule:
    """What the realm's metadata block must be before keys without the RIM flag are asked for.

    Attributes:
        public_key: P-384 point of the signer, X || Y, 96 bytes.
        realm_id: The block's identifier.
        min_svn: Lowest accepted security version number.
    """

    public_key: bytes
    realm_id: str
    min_svn: int


@dataclass(frozen=True)
class ApplicationRule:
    """One application of an ordered list: SHA-256 of its vendor's key (None: any), its lowest security version."""

    name: str
    vendor: str | None
    min_security_version: int


@dataclass(frozen=True)
class Policy:
    """The measured policy. Its default is compat mode: what upstream would do."""

    compat: bool = True
    metadata: MetadataRule | None = None
    vendors: frozenset[str] = frozenset()
    registries: frozenset[str] = frozenset()
    applications: tuple[ApplicationRule, ...] = ()
    offline: bool = True
    forward_output: bool = False
    raw_token_challenge: bool = False

    def rule_of(self, name: str) -> ApplicationRule | None:
        """The list's entry for `name`; None when there is no list."""
        return next((rule for rule in self.applications if rule.name == name), None)


@dataclass(frozen=True)
class Config:
    """The whole configuration; see the classes of its parts."""

    workdir: Path
    vsock_port: int
    control: str
    rsi: str
    crypto: Crypto
    launcher: Launcher
    ca_pub: Path
    sealing: Sealing
    autostart: bool
    extend: int | None
    same_vendor: bool
    fs_type: str
    policy: Policy

    @property
    def needs_rsi(self) -> bool:
        """Whether anything in it calls the monitor."""
        from_monitor = self.launcher.kind == "ra-tls" and self.launcher.token_file is None
        return self.sealing.kind == "rsi" or from_monitor or self.extend is not None


def load(path: Path) -> Config:
    """Read the file. Realm images of ours hold JSON, which needs no YAML reader; upstream's hold YAML.

    Raises:
        ConfigError: It is neither, or a key is missing or wrong.
    """
    data = read_file(path, limit=_MAX_CONFIG)
    try:
        return parse(strictjson.loads(data) if data.lstrip().startswith(b"{") else _yaml(data))
    except InputError as error:
        raise ConfigError(f"{path}: {error.message}") from error


def _yaml(data: bytes) -> Any:
    """Parse YAML, with the tag `!Essiv` as upstream writes it."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def essiv(loader: Any, node: Any) -> dict[str, Any]:
        return {"Essiv": loader.construct_scalar(node)}

    Loader.add_constructor("!Essiv", essiv)
    try:
        return yaml.load(data, Loader=Loader)  # noqa: S506  (derives from the safe loader)
    except yaml.YAMLError as error:
        raise ConfigError("not YAML: " + " ".join(str(error).split())) from error


def parse(document: object) -> Config:
    """Read the parsed YAML document; see `load`."""
    top = _mapping(document, "the configuration")
    rsi = _choice(top, "rsi", {"device": "device", "virtio-serial": "virtio-serial"}, default="device")
    crypto = _crypto(_mapping(_required(top, "crypto"), "crypto"))
    policy = _policy(top.get("policy"), emulated=rsi == "virtio-serial")
    if not policy.compat and crypto.key_size != 64:
        raise ConfigError("crypto.key_bytes: must be 64 unless the policy says compat")
    return Config(
        workdir=_path(top, "workdir"),
        vsock_port=_integer(top, "vsock_port", high=0xFFFFFFFF),
        control=_choice(top, "control", {"vsock": "vsock", "virtio-serial": "virtio-serial"}, default="vsock"),
        rsi=rsi,
        crypto=crypto,
        launcher=_launcher(_required(top, "launcher")),
        ca_pub=_path(top, "ca_pub"),
        sealing=_sealing(_required(top, "keysealing")),
        autostart=_boolean(top, "autostartall"),
        extend=_choice(top, "extend", _REMS, default=None),
        same_vendor=_boolean(top, "ensure_same_app_vendor", default=False),
        fs_type=_choice(top, "fs_type", _FILE_SYSTEMS, default="ext2"),
        policy=policy,
    )


def _crypto(section: dict[str, Any]) -> Crypto:
    cipher, mode = _choice(section, "cipher", _CIPHERS), _choice(section, "block_mode", _MODES)
    iv_mode = _required(section, "iv_mode")
    if isinstance(iv_mode, dict) and list(iv_mode) == ["Essiv"] and iv_mode["Essiv"] in ("Sha256", "sha256"):
        iv = "essiv:sha256"
    elif iv_mode in ("Plain", "Plain64"):
        iv = iv_mode.lower()
    else:
        raise ConfigError(f"crypto.iv_mode: {iv_mode!r} is none of Plain, Plain64, Essiv: Sha256")
    options = section.get("additional_options") or []
    if not isinstance(options, list) or not all(isinstance(one, str) and one and " " not in one for one in options):
        raise ConfigError("crypto.additional_options: not a list of options")
    key_size = _integer(section, "key_bytes", default=32)
    if key_size not in (32, 64) or (mode == "cbc" and key_size == 64):
        raise ConfigError(f"crypto.key_bytes: {key_size} does not go with {mode}")
    return Crypto(f"{cipher}-{mode}-{iv}", key_size, _integer(section, "iv_offset"), tuple(options))


def _launcher(value: object) -> Launcher:
    if value == "Dummy":
        return Launcher("dummy")
    name, inner = _variant(value, "launcher")
    if name != "Oci":
        raise ConfigError(f"launcher: {name!r} is neither Dummy nor Oci")
    if inner == "NoTLS":
        return Launcher("none")
    mode, section = _variant(inner, "launcher.Oci")
    if mode == "NoTLS":
        return Launcher("none")
    if mode not in ("RusTLS", "RaTLS"):
        raise ConfigError(f"launcher.Oci: {mode!r} is none of NoTLS, RusTLS, RaTLS")
    options = _mapping(section, f"launcher.Oci.{mode}")
    root_ca = _path(options, "root_ca")
    if mode == "RusTLS":
        return Launcher("tls", root_ca)
    resolver = _required(options, "token_resolver")
    if resolver in ("rsi", "Rsi"):
        return Launcher("ra-tls", root_ca)
    kind, file = _variant(resolver, "token_resolver")
    if kind not in ("file", "File") or not isinstance(file, str):
        raise ConfigError("token_resolver: neither rsi nor file")
    return Launcher("ra-tls", root_ca, Path(file))


def _sealing(value: object) -> Sealing:
    if value == "Dummy":
        return Sealing("dummy")
    name, inner = _variant(value, "keysealing")
    if name != "HkdfSha256":
        raise ConfigError(f"keysealing: {name!r} is neither Dummy nor HkdfSha256")
    kind, source = _variant(inner, "keysealing.HkdfSha256")
    if kind == "StubbedHex":
        if not isinstance(source, str) or re.fullmatch(r"(?:[0-9a-fA-F]{2})+", source) is None:
            raise ConfigError("keysealing.HkdfSha256.StubbedHex: not hexadecimal")
        return Sealing("stub", stub=bytes.fromhex(source))
    if kind != "RsiSealingKey":
        raise ConfigError(f"keysealing.HkdfSha256: {kind!r} is neither StubbedHex nor RsiSealingKey")
    options = _mapping(source or {}, "RsiSealingKey")
    names = options.get("flags") or []
    if not isinstance(names, list) or not all(isinstance(one, str) and one in FLAG_BITS for one in names):
        raise ConfigError("RsiSealingKey.flags: not a list of Key, Rim, RealmId")
    flags = sum({FLAG_BITS[one] for one in names})
    if options.get("svn") is None:
        return Sealing("rsi", flags=flags)
    return Sealing("rsi", flags=flags | FLAG_SVN, svn=_integer(options, "svn", high=(1 << 64) - 1))


def _policy(value: object, *, emulated: bool) -> Policy:
    if value is None:
        return Policy()
    section = _strict(
        value,
        "policy",
        required=(),
        optional=(
            "compat",
            "metadata",
            "vendors",
            "registries",
            "applications",
            "offline",
            "forward_output",
            "token_challenge",
        ),
    )
    return Policy(
        compat=_boolean(section, "compat", default=False),
        metadata=_metadata_rule(section.get("metadata")),
        vendors=frozenset(_fingerprint(one, "policy.vendors") for one in _texts(section, "vendors")),
        registries=frozenset(one.lower() for one in _texts(section, "registries")),
        applications=_applications(section.get("applications") or []),
        offline=_boolean(section, "offline", default=True),
        forward_output=_boolean(section, "forward_output", default=emulated),
        raw_token_challenge=_choice(section, "token_challenge", {"hashed": False, "raw": True}, default=False),
    )


def _metadata_rule(value: object) -> MetadataRule | None:
    if value is None:
        return None
    section = _strict(value, "policy.metadata", required=("public_key", "realm_id", "min_svn"))
    key, realm_id = section["public_key"], section["realm_id"]
    if not isinstance(key, str) or re.fullmatch(r"[0-9a-fA-F]{192}", key) is None:
        raise ConfigError("policy.metadata.public_key: not 192 hexadecimal digits")
    if not isinstance(realm_id, str) or not realm_id:
        raise ConfigError("policy.metadata.realm_id: not a text")
    return MetadataRule(bytes.fromhex(key), realm_id, _integer(section, "min_svn", high=(1 << 64) - 1))


def _applications(value: object) -> tuple[ApplicationRule, ...]:
    if not isinstance(value, list):
        raise ConfigError("policy.applications: not a list")
    rules = []
    for entry in value:
        section = _strict(entry, "policy.applications", required=("name",), optional=("vendor", "min_security_version"))
        if not isinstance(section["name"], str):
            raise ConfigError("policy.applications: a name is not a text")
        lowest = _integer(section, "min_security_version", default=0, high=(1 << 64) - 1)
        named = section.get("vendor")
        vendor = None if named is None else _fingerprint(named, "policy.applications")
        rules.append(ApplicationRule(section["name"], vendor, lowest))
    if len({rule.name for rule in rules}) != len(rules):
        raise ConfigError("policy.applications: a name is repeated")
    return tuple(rules)


def _fingerprint(value: object, what: str) -> str:
    if not isinstance(value, str) or re.fullmatch(r"[0-9a-fA-F]{64}", value) is None:
        raise ConfigError(f"{what}: {value!r} is not the SHA-256 of a public key")
    return value.lower()


def _texts(section: dict[str, Any], key: str) -> list[str]:
    value = section.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ConfigError(f"policy.{key}: not a list of texts")
    return value


def _mapping(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{what}: not a mapping")
    return value


def _strict(value: object, what: str, *, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    section = _mapping(value, what)
    for key in section:
        if key not in required and key not in optional:
            raise ConfigError(f"{what}: unknown key {key!r}")
    for key in required:
        if key not in section:
            raise ConfigError(f"{what}: key {key!r} is missing")
    return section


def _variant(value: object, what: str) -> tuple[str, object]:
    """The one member of an externally tagged value."""
    if isinstance(value, str):
        return value, None
    if not isinstance(value, dict) or len(value) != 1:
        raise ConfigError(f"{what}: not a name or a mapping with one member")
    ((name, inner),) = value.items()
    return str(name), inner


_MISSING: Any = object()


def _required(section: dict[str, Any], key: str) -> Any:
    if section.get(key) is None:
        raise ConfigError(f"key {key!r} is missing")
    return section[key]


def _choice(section: dict[str, Any], key: str, choices: dict[str, T], default: Any = _MISSING) -> T:
    value = section.get(key)
    if value is None and default is not _MISSING:
        return default  # type: ignore[no-any-return]
    value = _required(section, key)
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{key}: {value!r} is none of {', '.join(choices)}")
    return choices[value]


def _path(section: dict[str, Any], key: str) -> Path:
    value = _required(section, key)
    if not isinstance(value, str) or not value.startswith("/"):
        raise ConfigError(f"{key}: not an absolute path")
    return Path(value)


def _integer(section: dict[str, Any], key: str, *, default: int | None = None, high: int = (1 << 63) - 1) -> int:
    value = section.get(key, default)
    if type(value) is not int or not 0 <= value <= high:
        raise ConfigError(f"{key}: {value!r} is not an integer from 0 to {high}")
    return value


def _boolean(section: dict[str, Any], key: str, *, default: bool | None = None) -> bool:
    value = section.get(key, default)
    if type(value) is not bool:
        raise ConfigError(f"{key}: {value!r} is neither true nor false")
    return value
