"""Host capabilities: what a host offers a realm, as the second dialect describes it.

A capability file is TOML with any of the keys of `Capabilities`. A later file can only lower what
earlier ones say; explicit options replace values; the VMM's own arguments lower them again.
Four descriptions are built in, see `BUILT_IN`.

Source: veraison/cca-realm-measurements, README.md and configs/; RMM specification 1.0-rel0, B4.4.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from islet_cli.config import decode_toml
from islet_cli.errors import InputError
from islet_cli.fsutil import read_file

_FILE_LIMIT = 1 << 16


class Capabilities(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What is known of a host; None is unknown. `sve_vl` is in bits, 0 for none."""

    ipa_bits: Annotated[int, Meta(ge=20, le=52)] | None = None
    num_bps: Annotated[int, Meta(ge=2, le=64)] | None = None
    num_wps: Annotated[int, Meta(ge=2, le=64)] | None = None
    pmu_num_ctrs: Annotated[int, Meta(ge=0, le=31)] | None = None
    sve_vl: Annotated[int, Meta(ge=0, le=2048, multiple_of=128)] | None = None
    pmu: bool | None = None
    lpa2: bool | None = None
    hash_algo: Literal["sha256", "sha512"] | None = None

    def lowered(self, other: Capabilities) -> Capabilities:
        """Both limits at once: the smaller of two values, the other where one is unknown."""
        values = {}
        for name in NUMBERS:
            known = [value for value in (getattr(self, name), getattr(other, name)) if value is not None]
            values[name] = min(known) if known else None
        # An algorithm is a choice and no amount: the later one stands.
        return Capabilities(**values, hash_algo=other.hash_algo or self.hash_algo)

    def replaced(self, other: Capabilities) -> Capabilities:
        """The values of `other` where it has any."""
        given = {name: value for name, value in msgspec.structs.asdict(other).items() if value is not None}
        return msgspec.structs.replace(self, **given)


NUMBERS = ("ipa_bits", "num_bps", "num_wps", "pmu_num_ctrs", "sve_vl", "pmu", "lpa2")

BUILT_IN: dict[str, Capabilities] = {
    "fvp": Capabilities(ipa_bits=52, num_bps=16, num_wps=16, pmu_num_ctrs=8, sve_vl=512, pmu=True, lpa2=True),
    "qemu-max-8.2": Capabilities(ipa_bits=52, num_bps=6, num_wps=4, pmu_num_ctrs=6, sve_vl=2048, pmu=True, lpa2=True),
    "kvm": Capabilities(lpa2=False),
    "rmm-1.0-eac5": Capabilities(num_bps=2, num_wps=2, lpa2=False),
}


def load(name: str) -> Capabilities:
    """A built-in description by its name, else a file.

    Raises:
        InputError: Neither; malformed TOML, an unknown key or a value out of range (`bad-config`).
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    path = Path(name)
    if not path.exists():
        raise InputError(
            f"host capabilities {name}: no such file, and not built in",
            code="no-such-file",
            hint=f"built in are {', '.join(BUILT_IN)}",
        )
    return decode_toml(read_file(path, limit=_FILE_LIMIT), Capabilities, what=str(path))


def combine(names: Iterable[str], options: Capabilities) -> Capabilities:
    """What the named descriptions leave together, with `options` in place of their values."""
    out = Capabilities()
    for name in names:
        out = out.lowered(load(name))
    return out.replaced(options)


def options_of(values: Iterable[str]) -> Capabilities:
    """Read `KEY=VALUE` options.

    Raises:
        InputError: No `=`, an unknown key or a value out of range (`usage`).
    """
    given: dict[str, object] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: not KEY=VALUE", code="usage", hint="write for example --set num_bps=4")
        given[name] = {"true": True, "false": False}.get(value, int(value) if value.isdecimal() else value)
    try:
        return msgspec.convert(given, Capabilities)
    except msgspec.ValidationError as error:
        keys = ", ".join(Capabilities.__struct_fields__)
        raise InputError(f"--set: {error}", code="usage", hint=f"the keys are {keys}") from error
