"""Why two RIMs differ: the first step that does, and every cause.

The steps of a measurement form a chain, so that everything behind the first difference differs as
well. Causes are therefore looked for in what the steps were made of: realm parameters, addresses,
the properties of the device tree, the contents of files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from islet_cli.rim import devicetree
from islet_cli.rim.content import Contents, contents_of
from islet_cli.rim.explanation import Explanation, Group, Place, condensed_entries

_FILES = ("kernel", "firmware", "initrd")
_FILE_OPTIONS = ("kernel", "-k", "--kernel", "-i", "--initrd", "-f", "--firmware", "-kernel", "-initrd", "-bios")
_PARAMETER_NAMES = {"s2sz": "s2sz (address bits)", "sve_vl": "sve_vl (quadwords - 1)"}


@dataclass(frozen=True)
class Side:
    """One of the two: `live` when its files are those on disk now, and not those of a saved explanation."""

    explanation: Explanation
    live: bool = True


@dataclass(frozen=True)
class Cause:
    """One difference that the RIM shows.

    Attributes:
        kind: `dialect`, `algorithm`, `parameter`, `layout`, `device-tree`, `content`, `vcpu` or `argument`.
        where: The parameter, property (`/node property`), file or argument.
        old: The first side's value; None when absent.
        new: The second side's value; None when absent.
        detail: What more is known.
    """

    kind: str
    where: str
    old: str | None
    new: str | None
    detail: str = ""


@dataclass(frozen=True)
class FirstStep:
    """The first step that differs: its number, and what it did on either side (None: no such step)."""

    number: int
    old: str | None
    new: str | None
    exact: bool = True


@dataclass(frozen=True)
class Comparison:
    """The result. `causes` is empty exactly when the RIMs are equal."""

    old_rim: str
    new_rim: str
    first: FirstStep | None
    causes: tuple[Cause, ...]

    @property
    def equal(self) -> bool:
        return self.old_rim == self.new_rim

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return asdict(self) | {"equal": self.equal, "causes": [asdict(cause) for cause in self.causes]}


def compare(old: Side, new: Side) -> Comparison:
    """Find out why the RIMs of two explanations differ."""
    a, b = old.explanation, new.explanation
    if a.rim == b.rim:
        return Comparison(a.rim, b.rim, None, ())
    causes = [
        *_arguments(a, b),
        *_dialects(a, b),
        *_parameters(a, b),
        *_layout(a, b),
        *_contents(old, new),
        *_device_tree(a, b),
        *_vcpus(a, b),
    ]
    return Comparison(a.rim, b.rim, first_step(a, b), tuple(causes))


def _arguments(a: Explanation, b: Explanation) -> Iterator[Cause]:
    """Arguments that matter and stand on one side only, paired when they are the same option."""
    before, after = ([item.argument for item in side.arguments if item.influences] for side in (a, b))
    gone = [text for text in before if text not in after]
    come = [text for text in after if text not in before]
    for text in gone:
        partner = next((other for other in come if _option(other) == _option(text)), None)
        if partner is not None:
            come.remove(partner)
        # The name of a file is not measured; whether its content differs is told with the files.
        if partner is None or _option(text) not in _FILE_OPTIONS:
            yield Cause("argument", _option(text), text, partner)
    for text in come:
        yield Cause("argument", _option(text), None, text)


def _option(argument: str) -> str:
    return argument.split()[0].split("=")[0] if argument.startswith("-") else "kernel"


def _dialects(a: Explanation, b: Explanation) -> Iterator[Cause]:
    if a.hash_algo != b.hash_algo:
        yield Cause("algorithm", "hash algorithm", a.hash_algo, b.hash_algo, "every step differs")
    for name in ("vmm", "dialect", "profile"):
        if getattr(a, name) != getattr(b, name):
            yield Cause("dialect", name, getattr(a, name), getattr(b, name))


def _parameters(a: Explanation, b: Explanation) -> Iterator[Cause]:
    for name in a.parameters:
        old, new = a.parameters[name], b.parameters.get(name)
        if old != new:
            yield Cause("parameter", _PARAMETER_NAMES.get(name, name), str(old), None if new is None else str(new))


def _layout(a: Explanation, b: Explanation) -> Iterator[Cause]:
    """Addresses and sizes; what a file's size decides is left to the file."""
    for what in _FILES:
        old, new = a.file(what), b.file(what)
        if old and new and old.start != new.start:
            yield Cause("layout", f"{what} address", f"{old.start:#x}", f"{new.start:#x}")
    if a.device_tree.start != b.device_tree.start:
        yield Cause("layout", "dtb address", f"{a.device_tree.start:#x}", f"{b.device_tree.start:#x}")
    for what in ("bss", "ram", "log"):
        ranges = [_range(side, what) for side in (a, b)]
        if ranges[0] != ranges[1]:
            yield Cause("layout", f"{what} (addresses only)", ranges[0], ranges[1])


def _range(side: Explanation, what: str) -> str | None:
    groups = [group for group in side.groups if group.what == what]
    if not groups:
        return None
    return f"{groups[0].start:#x}-{groups[-1].top:#x}, {sum(group.steps for group in groups)} steps"


def _contents(old: Side, new: Side) -> Iterator[Cause]:
    for what in _FILES:
        a, b = old.explanation.file(what), new.explanation.file(what)
        if a is None or b is None:
            if a or b:
                yield Cause("content", what, a.path if a else None, b.path if b else None)
            continue
        if a.size != b.size:
            yield Cause("content", f"{what} size", f"{a.size} bytes", f"{b.size} bytes", f"{a.path} / {b.path}")
        found = contents_of(what, old.explanation, new.explanation, live=old.live and new.live)
        if found is not None:
            yield _content_cause(what, found, a.path, b.path)


def _content_cause(what: str, found: Contents, old_path: str, new_path: str) -> Cause:
    paths = old_path if old_path == new_path else f"{old_path} / {new_path}"
    where = f"{what} {paths}"
    if found.offset is None:
        return Cause("content", where, None, None, found.text)
    old = None if found.old is None else f"{found.old:#04x}"
    new = None if found.new is None else f"{found.new:#04x}"
    return Cause("content", f"{where}, byte {found.offset:#x}", old, new, found.text)


def _device_tree(a: Explanation, b: Explanation) -> Iterator[Cause]:
    for change in devicetree.changes(a.tree, b.tree):
        where = change.path if change.name is None else f"{change.path} {change.name}"
        yield Cause("device-tree", where, change.old, change.new)
    if a.device_tree.area_size != b.device_tree.area_size:
        sizes = (f"{side.device_tree.area_size} bytes" for side in (a, b))
        yield Cause("device-tree", "size of the measured area", *sizes)


def _vcpus(a: Explanation, b: Explanation) -> Iterator[Cause]:
    counts = [max((vcpu.last + 1 for vcpu in side.vcpus), default=0) for side in (a, b)]
    if counts[0] != counts[1]:
        yield Cause("vcpu", "measured vCPUs", str(counts[0]), str(counts[1]))
    if a.vcpus and b.vcpus:
        for name, label in (("pc", "program counter"), ("x0", "X0")):
            old, new = getattr(a.vcpus[0], name), getattr(b.vcpus[0], name)
            if old != new:
                yield Cause("vcpu", f"vCPU 0 {label}", f"{old:#x}", f"{new:#x}")


def first_step(a: Explanation, b: Explanation) -> FirstStep | None:
    """The first step whose own inputs differ; `exact` is false when a saved side knows its neighbourhood only."""
    if a.hash_algo != b.hash_algo:
        return _first(a.groups[0], b.groups[0], 0)
    for old, new in zip(a.groups, b.groups, strict=False):
        index, exact = _difference(old, new, a.parameters == b.parameters)
        if index is not None:
            return _first(old, new, index, exact=exact)
    shorter = min(len(a.groups), len(b.groups))
    old_rest, new_rest = a.groups[shorter:], b.groups[shorter:]
    if not old_rest and not new_rest:
        return None
    return _first(old_rest[0] if old_rest else None, new_rest[0] if new_rest else None, 0)


def _difference(old: Group, new: Group, same_parameters: bool) -> tuple[int | None, bool]:
    """Where two groups in the same place part, as an index into them; None when they are the same."""
    if (old.kind, old.what, old.start, old.measured) != (new.kind, new.what, new.start, new.measured):
        return 0, True
    if old.kind == "create":
        return (None, True) if same_parameters else (0, True)
    stride = max(old.stride, new.stride)
    entries = zip(condensed_entries(old, stride), condensed_entries(new, stride), strict=False)
    differing = next((number for number, (left, right) in enumerate(entries) if left != right), None)
    if differing is not None:
        return differing * stride, stride == 1
    if (old.steps, old.top) != (new.steps, new.top):
        return min(old.steps, new.steps), old.kind == "data"
    return (None, True) if old.digest == new.digest else (0, False)


def _first(old: Group | None, new: Group | None, index: int, *, exact: bool = True) -> FirstStep:
    group = old or new
    number = (group.first_step if group else 0) + index
    texts = [Place(side, index).text if side is not None and index < side.steps else None for side in (old, new)]
    return FirstStep(number, texts[0], texts[1], exact)
