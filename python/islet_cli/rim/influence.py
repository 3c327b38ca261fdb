"""Which argument influenced what: asked by leaving each one out.

An argument is left out (or, where there is no launch without it, given another value), the command
line is understood again, and what is different then is what the argument decides. That needs no
table of effects that could be wrong; only the files without which there is no launch are looked up.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from islet_cli.errors import IsletError
from islet_cli.rim.explanation import Influence
from islet_cli.rim.machine import Machine
from islet_cli.rim.options import LATER, MEASURER, parse
from islet_cli.rim.request import MEASURER as MEASURER_DIALECT
from islet_cli.rim.request import Request, understand
from islet_cli.rim.sequence import Sequence

# What a field of `Machine` decides.
_EFFECTS = {
    "hash_algo": "the hash of every step",
    "profile": "realm parameters num_bps, num_wps",
    "sve_vl_bits": "realm parameters flags, sve_vl",
    "pmu_counters": "realm parameters flags, pmu_num_ctrs",
    "kernel": "content and place of the kernel",
    "initrd": "content and place of the initrd, /chosen linux,initrd-start and -end",
    "firmware": "content and place of the firmware",
    "firmware_address": "place of the firmware",
    "ram_base": "every address, /memory reg",
    "ram_size": "/memory reg, the layout below 256 MiB",
    "cpus": "/cpus, number of RECs, size of the interrupt controller",
    "mpidrs": "/cpus reg and node names",
    "irqchip": "/intc, and what refers to it in /timer and /pci",
    "pmu": "/pmu",
    "flash_size": "/flash",
    "virtio": "number and transport of virtio devices in the device tree",
    "kaslr_seed": "/chosen kaslr-seed",
    "bootargs": "/chosen bootargs",
    "clock_frequency": "/timer clock-frequency",
    # Of the second dialect.
    "ipa_bits": "realm parameter s2sz, the sizes of RIPAS blocks",
    "lpa2": "realm parameter flags",
    "num_bps": "realm parameter num_bps",
    "num_wps": "realm parameter num_wps",
    "ram": "RIPAS of all memory",
    "dtb": "content and place of the device tree",
    "start": "the REC's program counter and X0",
    "log": "the event log's granules",
}
_SEQUENCE_FIELDS = (
    "hash_algo",
    "ipa_bits",
    "lpa2",
    "sve_vl_bits",
    "num_bps",
    "num_wps",
    "pmu_counters",
    "ram",
    "start",
    "log",
)
# Where leaving the option out leaves no launch: other values to try, or the fields that it gives.
_SUBSTITUTES = {"cpus": (("-c", "1"), ("-c", "2")), "mem": (("-m", "64"), ("-m", "512"))}
_REQUIRED = {
    "kernel": ("kernel",),
    "firmware": ("firmware",),
    "bios": ("firmware",),
    "initrd": ("initrd",),
    "realm": (),
}
_REMARKS = {
    "realm": "required; a realm is measured, the option is not",
    "realm-pv": "the personalization value stands in the token, not in the RIM",
    "metadata": "checked by the monitor, not measured",
    "restricted_mem": "how the host backs the memory",
    "dump-dtb": "where the device tree is written to",
    "disable-mte": "not among the measured parameters",
    "no-pvtime": "not in the device tree",
    "no-dhcp": "not in the device tree",
    "vcpu-affinity": "the host's business",
    "name": "the host's business",
    "tty": "the host's business",
    "dev": "the host's business",
    "loglevel": "kvmtool's own messages",
}


_GIVEN = "nothing besides the device tree, which is given"


@dataclass(frozen=True)
class _Word:
    """One option: its name and the arguments it consists of."""

    name: str
    words: tuple[str, ...]


def arguments_of(request: Request) -> list[Influence]:
    """What each argument of a launch that is possible decides, in their order."""
    options = _options(request)
    subject = understand(request)
    given = isinstance(subject, Sequence) and subject.dtb_given is not None
    whole = _decided(subject)
    out = []
    for number, option in enumerate(options):
        rest = tuple(word for other in (*options[:number], *options[number + 1 :]) for word in other.words)
        fields = _differing(whole, replace(request, arguments=rest))
        for substitute in _SUBSTITUTES.get(option.name, ()) if fields is None else ():
            found = _differing(whole, replace(request, arguments=(*rest, *substitute)))
            # One of the values is the option's own and tells nothing.
            fields = fields if found is None else found or fields or []
        out.append(_influence(option, fields, given=given))
    return out


def _options(request: Request) -> list[_Word]:
    if request.vmm == "kvmtool":
        grammar = MEASURER if request.dialect == MEASURER_DIALECT else LATER
        found = parse(request.arguments, grammar)
        return [_Word("kernel" if item.option is None else item.option.name, item.words) for item in found]
    if request.vmm == "qemu":
        from islet_cli.rim.vmm_qemu import occurrences
    else:
        from islet_cli.rim.vmm_cloud_hypervisor import occurrences
    return [_Word(name, words) for name, _, words in occurrences(request.arguments)]


def _decided(subject: Machine | Sequence) -> dict[str, object]:
    """What enters the measurement, by the names of `_EFFECTS`."""
    if isinstance(subject, Machine):
        return {name: getattr(subject, name) for name in _EFFECTS if hasattr(subject, name)}
    parts = {part.kind: (part.start, part.path, part.content) for part in subject.parts}
    values: dict[str, object] = {name: getattr(subject, name) for name in _SEQUENCE_FIELDS}
    # The unpacked copy of a kernel has another name every time.
    names = dict(subject.files)
    values |= {kind: (start, names.get(kind), content) for kind, (start, _, content) in parts.items()}
    return values


def _differing(whole: dict[str, object], without: Request) -> list[str] | None:
    """What the left-out argument decides; None when nothing can be launched without it."""
    try:
        rest = _decided(understand(without))
    except IsletError:
        return None
    return [name for name in _EFFECTS if rest.get(name) != whole.get(name)]


def _influence(option: _Word, fields: list[str] | None, *, given: bool) -> Influence:
    """Put an option's effect into words; with a `given` device tree, what stands in it is not known."""
    if fields is None:
        fields = list(_REQUIRED.get(option.name, ()))
        remark = "" if fields else _REMARKS.get(option.name, "required")
    elif fields:
        remark = ""
    else:
        remark = _REMARKS.get(option.name) or (_GIVEN if given else _idle(option.name))
    return Influence(argument=shlex.join(option.words), influences=[_EFFECTS[field] for field in fields], remark=remark)


def _idle(name: str) -> str:
    """Why an option that can matter does not."""
    if name.startswith("debug"):
        return "kvmtool's own messages"
    known = {"console", "irqchip", "virtio-transport", "measurement-algo", "kaslr-seed", "disable-sve", "mem"}
    return "the default, or overridden by another option" if name in known else "changes nothing that is measured"
