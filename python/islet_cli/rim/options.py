"""The grammar of kvmtool's command line: which options there are and how they are written.

This module turns an argument list into a list of `Occurrence`; what they mean is in `command_line`.

Source: kvmtool `util/parse-options.c` and `builtin-run.c`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from islet_cli.errors import InputError


class Kind(Enum):
    """How an option takes its value."""

    BOOLEAN = "boolean"  # no value; `--no-` negates
    FLAG = "flag"  # no value; `--no-` changes nothing
    STRING = "string"  # `--no-` unsets
    INT32 = "int32"  # `--no-` unsets
    INT64 = "int64"  # `--no-` unsets
    CUSTOM = "custom"  # a syntax of its own; cannot be negated


@dataclass(frozen=True)
class Option:
    """One option; `optional_value` is the default of `-n` when no value follows."""

    name: str
    kind: Kind
    short: str | None = None
    optional_value: str | None = None

    @property
    def takes_value(self) -> bool:
        return self.kind not in (Kind.BOOLEAN, Kind.FLAG)


@dataclass(frozen=True)
class Occurrence:
    """An option as it was given; `unset` for `--no-NAME`. A positional argument has option None.

    `words` are the arguments that it consists of.
    """

    option: Option | None
    value: str | None = None
    unset: bool = False
    words: tuple[str, ...] = ()


def _options(kind: Kind, names: str) -> list[Option]:
    """Options written as `name` or `name/s`, `s` being the short form."""
    out = []
    for word in names.split():
        name, _, short = word.partition("/")
        out.append(Option(name, kind, short or None, "" if name == "network" else None))
    return out


OPTIONS: tuple[Option, ...] = (
    *_options(
        Kind.BOOLEAN,
        "balloon vnc gtk sdl rng nodefaults no-dhcp debug-single-step debug-ioport debug-mmio aarch32 pmu "
        # restricted_mem is of later revisions; it changes neither the device tree nor the RIM.
        "disable-mte no-pvtime disable-sve realm islet restricted_mem",
    ),
    *_options(Kind.FLAG, "virtio-legacy debug force-pci"),
    *_options(
        Kind.STRING,
        "name console dev sandbox hugetlbfs kernel/k initrd/i params/p firmware/f flash/F mpidrs "
        "measurement-algo realm-pv dump-dtb metadata",
    ),
    *_options(Kind.INT32, "cpus/c debug-iodelay pmu-counters override-bad-firmware-cntfrq"),
    *_options(Kind.INT64, "vsock kaslr-seed sve-vl firmware-address"),
    *_options(
        Kind.CUSTOM,
        "mem/m disk/d 9p tty virtio-transport loglevel network/n vfio-pci irqchip vcpu-affinity",
    ),
)
# Options of the kvmtool that the Realm Virtual Machine specification describes; the measurer knows none of them.
LATER_OPTIONS: tuple[Option, ...] = (
    *_options(Kind.BOOLEAN, "measurement-log"),
    *_options(Kind.STRING, "dtb"),
    *_options(Kind.INT64, "sve-max-vl"),
)
_NEGATION = "no-"


@dataclass(frozen=True)
class Grammar:
    """A set of options, by their names."""

    options: tuple[Option, ...]
    by_name: dict[str, Option] = field(init=False)
    by_short: dict[str, Option] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {option.name: option for option in self.options})
        object.__setattr__(self, "by_short", {option.short: option for option in self.options if option.short})


MEASURER = Grammar(OPTIONS)
LATER = Grammar(OPTIONS + LATER_OPTIONS)


def parse(arguments: Sequence[str], grammar: Grammar = MEASURER) -> Iterator[Occurrence]:
    """Split an argument list into options and positional arguments.

    Raises:
        InputError: An unknown, ambiguous or incomplete option (`rim-option`).
    """
    rest = list(arguments)
    while rest:
        position = len(arguments) - len(rest)
        argument = rest.pop(0)
        if argument == "--":
            raise error("--", "kvmtool does not accept it here")
        if argument == "-" or not argument.startswith("-"):
            found = Occurrence(None, argument)
        elif argument.startswith("--"):
            found = _long(argument[2:], rest, grammar)
        else:
            found = _short(argument[1:], rest, grammar)
        yield replace(found, words=tuple(arguments[position : len(arguments) - len(rest)]))


def error(option: str, problem: str, hint: str | None = None) -> InputError:
    """The error about one option of the command line."""
    return InputError(f"{shown(option[:64])}: {problem}", code="rim-option", hint=hint)


def shown(text: str) -> str:
    """`text` on one line, whatever is in it."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _short(text: str, rest: list[str], grammar: Grammar) -> Occurrence:
    option = grammar.by_short.get(text[0])
    if option is None:
        raise error(f"-{text[0]}", "unknown option", "long options start with two dashes")
    # Every short option takes a value: the rest of the word, or the next argument.
    return _with_value(option, f"-{text[0]}", text[1:] or None, rest)


def _long(text: str, rest: list[str], grammar: Grammar) -> Occurrence:
    name, separator, inline = text.partition("=")
    option, unset = _find(name, grammar)
    written = f"--{name}"
    value = inline if separator else None
    if unset:
        if value is not None:
            raise error(written, "takes no value")
        if option.kind is Kind.CUSTOM:
            raise error(written, f"--{option.name} cannot be negated")
        return Occurrence(option, unset=True)
    if not option.takes_value:
        if value is not None:
            raise error(written, "takes no value", f"write --{option.name}")
        return Occurrence(option)
    return _with_value(option, written, value, rest)


def _with_value(option: Option, written: str, inline: str | None, rest: list[str]) -> Occurrence:
    if inline is not None:
        return Occurrence(option, inline)
    if option.optional_value is not None and (not rest or rest[0].startswith("-")):
        return Occurrence(option, option.optional_value)
    if not rest:
        raise error(written, "a value is missing")
    return Occurrence(option, rest.pop(0))


def _find(name: str, grammar: Grammar) -> tuple[Option, bool]:
    """Find the option that `name` (without dashes) means, and whether it negates it.

    An exact name wins; else an unambiguous beginning of a name, or of `no-` and a name.
    """
    if name in grammar.by_name:
        return grammar.by_name[name], False
    negated = name[len(_NEGATION) :] if name.startswith(_NEGATION) else None
    if negated in grammar.by_name:
        return grammar.by_name[negated], True
    matches: list[tuple[Option, bool]] = []
    for option in grammar.options:
        if option.name.startswith(name):
            matches.append((option, False))
        elif _NEGATION.startswith(name) or (negated is not None and option.name.startswith(negated)):
            matches.append((option, True))
    if not matches:
        raise error(f"--{name}", "unknown option")
    if len(matches) > 1:
        some = ", ".join(("--no-" if unset else "--") + option.name for option, unset in matches[:3])
        raise error(f"--{name}", f"ambiguous: {some}{', …' if len(matches) > 3 else ''}", "write the option in full")
    return matches[0]
