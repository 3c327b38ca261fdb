"""The search for what gives a known RIM: the usual suspects, one change first, then two, then three.

The files and the hash algorithm are fixed; the contents are hashed once, and each guess repeats only
the part of the chain that it changes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from islet_cli import _native
from islet_cli.errors import InputError
from islet_cli.rim.command_line import IRQCHIPS, PROFILES, BootText, boot_text, machine_from, settings_of
from islet_cli.rim.machine import Machine
from islet_cli.rim.measure import hinted
from islet_cli.rim.request import MEASURER, Request

MAX_CHANGES = 3
_EXHAUSTIVE = 2
_MEMORY_MIB = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384)
_CPUS = (*range(1, 17), 24, 32)
_MAX_DEVICES = 12
_SVE_BITS = (0, 128, 256, 512, 1024, 2048)
_COUNTERS = (0, 1, 2, 4, 6, 8, 10, 16, 31)
_CONSOLES = {
    b" console=ttyS0": "serial",
    b" console=hvc0": "hv",
    b" console=tty0": "--vnc, --gtk or --sdl",
    b"": "unknown",
}
_MIB = 1 << 20


@dataclass(frozen=True)
class _Guess:
    """A launch on trial: the machine, and the parts of its kernel command line."""

    machine: Machine
    text: BootText

    def finished(self) -> Machine:
        return dataclasses.replace(self.machine, bootargs=self.text.bootargs())


@dataclass(frozen=True)
class Suspect:
    """One possible deviation: how to name it, and what it does. Of one dimension, only one can hold."""

    dimension: str
    label: str
    apply: Callable[[_Guess], _Guess]


@dataclass(frozen=True)
class Result:
    """What the search found: the smallest sets of changes that give the RIM; an empty set when none is needed."""

    rim: str
    found: tuple[tuple[str, ...], ...]
    tried: int

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {"rim": self.rim, "found": [list(labels) for labels in self.found], "tried": self.tried}


def search(request: Request, rim: str, *, changes: int = MAX_CHANGES) -> Result:
    """Look for deviations from `request` that give `rim`.

    Args:
        request: The launch as it is believed to be, in the measurer's dialect.
        rim: 64 or 128 hex digits; their number tells the hash algorithm.
        changes: The most changes at once.

    Raises:
        InputError: Another dialect (`usage`), or the launch itself would be refused.
    """
    if request.dialect != MEASURER:
        raise InputError("--search: knows the measurer's dialect only", code="usage", hint=f"use --dialect {MEASURER}")
    settings = settings_of(request.arguments, cwd=request.cwd)
    base = _Guess(machine_from(settings, profile=request.profile), boot_text(settings))
    algorithm = "sha256" if len(rim) == 64 else "sha512"
    fixed: tuple[str, ...] = ()
    if base.machine.hash_algo != algorithm:
        base = dataclasses.replace(base, machine=dataclasses.replace(base.machine, hash_algo=algorithm))
        fixed = (f"--measurement-algo={algorithm}",)
    with hinted():
        probe = _native.rim.Probe(base.finished())
    wanted, tried = bytes.fromhex(rim), 0
    found: list[tuple[str, ...]] = []
    for count in range(changes + 1):
        for labels, guess in _guesses(base, list(suspects(base)), count):
            tried += 1
            if probe.rim(guess.finished()) == wanted:
                found.append((*fixed, *labels))
                # With many changes the first find is as good as any, and the rest would take long.
                if count > _EXHAUSTIVE:
                    break
        if found:
            break
    return Result(rim, tuple(found), tried)


def _guesses(base: _Guess, suspects: list[Suspect], count: int) -> Iterator[tuple[tuple[str, ...], _Guess]]:
    """Every way to make `count` changes in different dimensions."""
    by_dimension: dict[str, list[Suspect]] = {}
    for suspect in suspects:
        by_dimension.setdefault(suspect.dimension, []).append(suspect)
    for dimensions in itertools.combinations(by_dimension.values(), count):
        for chosen in itertools.product(*dimensions):
            guess = base
            for suspect in chosen:
                guess = suspect.apply(guess)
            yield tuple(suspect.label for suspect in chosen), guess


def suspects(base: _Guess) -> Iterator[Suspect]:
    """The usual suspects: what people and tools set differently without noticing."""
    machine = base.machine
    yield from _field("profile", [(name, f"profile {name}") for name in PROFILES], machine)
    yield from _field("cpus", [(number, f"-c {number}") for number in _CPUS], machine)
    sizes = [(mib * _MIB, f"-m {mib}") for mib in _MEMORY_MIB]
    yield from _field("ram_size", [*sizes, ((machine.cpus + 3) * 64 * _MIB, "no -m")], machine)
    yield from _devices(machine)
    yield from _field("irqchip", [(name, f"--irqchip={name}") for name in IRQCHIPS], machine)
    yield from _field(
        "sve_vl_bits", [(bits, f"--sve-vl {bits}" if bits else "no --sve-vl") for bits in _SVE_BITS], machine
    )
    yield from _field("pmu", [(True, "--pmu"), (False, "no --pmu")], machine)
    counters = [(number, f"--pmu-counters {number}" if number else "no --pmu-counters") for number in _COUNTERS]
    yield from _field("pmu_counters", counters, machine)
    seeds = [(0, "no --kaslr-seed"), (1, "--kaslr-seed 1"), ((1 << 64) - 1, "--kaslr-seed -1")]
    yield from _field("kaslr_seed", seeds, machine)
    yield from _consoles(base.text)
    yield from _texts(base.text)


def _field(name: str, values: Sequence[tuple[object, str]], machine: Machine) -> Iterator[Suspect]:
    """The values that a field of the machine does not have."""

    def setter(value: object) -> Callable[[_Guess], _Guess]:
        change: dict[str, object] = {name: value}
        return lambda guess: dataclasses.replace(
            guess,
            machine=dataclasses.replace(guess.machine, **change),  # type: ignore[arg-type]
        )

    for value, label in values:
        if value != getattr(machine, name):
            yield Suspect(name, label, setter(value))


def _devices(machine: Machine) -> Iterator[Suspect]:
    """Disks, NICs, vsock, … all look alike: only their number and transport count."""
    now = len(machine.virtio)
    for transport, counts in (("pci", range(_MAX_DEVICES + 1)), ("mmio", range(max(0, now - 1), now + 2))):
        values = []
        for count in counts:
            more = f"{abs(count - now)} {'more' if count > now else 'fewer'} disks, NICs or other virtio devices"
            note = "" if transport in machine.virtio or not machine.virtio else f", all by {transport}"
            values.append(([transport] * count, (more if count != now else "the same virtio devices") + note))
        yield from _field("virtio", values, machine)


def _consoles(text: BootText) -> Iterator[Suspect]:
    """Another console: its words, and with virtio a device."""

    def word(console: bytes, device: bool) -> Callable[[_Guess], _Guess]:
        def apply(guess: _Guess) -> _Guess:
            machine = guess.machine
            if device:
                transport = machine.virtio[-1] if machine.virtio else "pci"
                machine = dataclasses.replace(machine, virtio=[*machine.virtio, transport])
            return _Guess(machine, dataclasses.replace(guess.text, console=console))

        return apply

    if text.plain:
        return
    for console, name in _CONSOLES.items():
        if console != text.console:
            label = name if name.startswith("--") else f"--console {name}"
            yield Suspect("console", label, word(console, False))
    if text.console != b" console=hvc0":
        yield Suspect("console", "--console virtio", word(b" console=hvc0", True))


def _texts(text: BootText) -> Iterator[Suspect]:
    """Quirks of the kernel command line."""

    def replaced(**change: object) -> Callable[[_Guess], _Guess]:
        return lambda guess: dataclasses.replace(
            guess,
            text=dataclasses.replace(guess.text, **change),  # type: ignore[arg-type]
        )

    params = text.params
    if params is not None:
        yield Suspect("params", "no -p", replaced(params=None))
        variants = {
            b'"' + params + b'"': "-p in literal double quotes",
            params.strip(b'"'): "-p without its double quotes",
            params.strip(): "-p without outer blanks",
            params + b" ": "-p with a blank at its end",
            params + b"\n": "-p with a newline at its end",
            b"": "an empty -p",
        }
        for value, label in variants.items():
            if value != params:
                yield Suspect("params", label, replaced(params=value))
    else:
        yield Suspect("params", "an empty -p", replaced(params=b""))
    root = b"" if text.root else b" root=/dev/vda rw "
    yield Suspect("root", "no root= of kvmtool's" if text.root else "kvmtool's root=/dev/vda rw", replaced(root=root))
    yield Suspect("plain", "no --nodefaults" if text.plain else "--nodefaults", replaced(plain=not text.plain))
