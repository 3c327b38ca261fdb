"""Explanations, comparisons and search results as text for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from islet_cli.rim import devicetree
from islet_cli.rim.diff import Cause, Comparison, FirstStep
from islet_cli.rim.explanation import Explanation, Group
from islet_cli.rim.lock import Check
from islet_cli.rim.request import MEASURER
from islet_cli.rim.search import Result

_OPERATIONS = {"create": "REALM_CREATE", "data": "DATA_CREATE", "ripas": "INIT_RIPAS", "rec": "REC_CREATE"}
_FLAGS = ((0, "LPA2"), (1, "SVE"), (2, "PMU"))
_SHOWN_DIGEST = 16
_KINDS = {
    "argument": "arguments",
    "algorithm": "hash algorithm",
    "dialect": "dialect",
    "parameter": "realm parameters",
    "layout": "addresses",
    "content": "files",
    "device-tree": "device tree",
    "vcpu": "vCPUs",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Rows under a head, in columns as wide as they must be; the columns `right` are flush right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    out = []
    for line in lines:
        cells = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        out.append("  ".join(cells).rstrip())
    return out


def explanation_text(explanation: Explanation) -> str:
    """Everything that went into a RIM, from the command line to the last step."""
    parts = [
        _heading(explanation),
        _section("Arguments", _arguments(explanation)),
        _section("Order of measurement", _groups(explanation)),
        _section("Realm parameters", _parameters(explanation)),
        _section("vCPUs", _vcpus(explanation)),
        _section("Files", _files(explanation)),
        _section(_device_tree_title(explanation), devicetree.source(explanation.tree).splitlines()),
        _section("Notes", [f"* {note}" for note in explanation.notes]),
        [f"RIM: {explanation.rim}"],
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _section(title: str, lines: list[str]) -> list[str]:
    return [title, *(f"  {line.expandtabs(2)}".rstrip() for line in lines)] if lines else []


def _heading(explanation: Explanation) -> list[str]:
    host = "profile" if explanation.dialect == MEASURER else "host"
    return [
        explanation.source,
        f"{explanation.vmm}, dialect {explanation.dialect}, {host} {explanation.profile}, {explanation.hash_algo}, "
        f"{explanation.steps} steps",
    ]


def _arguments(explanation: Explanation) -> list[str]:
    rows = []
    for item in explanation.arguments:
        effect = "; ".join(item.influences) or "no influence" + (f": {item.remark}" if item.remark else "")
        rows.append((item.argument, effect))
    return table(("argument", "influences"), rows) if rows else []


def _groups(explanation: Explanation) -> list[str]:
    head = ("step", "operation", "what", "IPA range", "count", "digest", "RIM after")
    return table(head, (_group(group) for group in explanation.groups), right=(0, 4))


def _group(group: Group) -> tuple[str, ...]:
    last = group.first_step + group.steps - 1
    steps = str(last) if group.steps == 1 else f"{group.first_step}-{last}"
    where = f"{group.start:#x}-{group.top:#x}" if group.top else "-"
    digest = group.digest[:_SHOWN_DIGEST] if group.measured and group.digest else "(addresses only)"
    if group.kind == "create":
        digest = "-"
    rim = group.rim[:_SHOWN_DIGEST]
    return (steps, _OPERATIONS[group.kind], group.what, where, str(group.steps), digest, rim)


def _parameters(explanation: Explanation) -> list[str]:
    out = []
    for name, value in explanation.parameters.items():
        note = ""
        if name == "flags":
            note = ", ".join(label for bit, label in _FLAGS if value >> bit & 1) or "no LPA2, SVE, PMU"
        elif name == "hash_algo":
            note = explanation.hash_algo
        elif name == "sve_vl" and explanation.parameters["flags"] & 2:
            note = f"{(value + 1) * 128} bits"
        out.append(f"{name:<13} {value:#x}" + (f"  ({note})" if note else ""))
    return out


def _vcpus(explanation: Explanation) -> list[str]:
    out = []
    for vcpu in explanation.vcpus:
        name = f"vCPU {vcpu.first}" if vcpu.first == vcpu.last else f"vCPUs {vcpu.first}-{vcpu.last}"
        state = f"runnable, PC {vcpu.pc:#x}, X0 {vcpu.x0:#x}" if vcpu.runnable else "not runnable, all registers 0"
        out.append(f"{name:<10} {state}")
    return out


def _files(explanation: Explanation) -> list[str]:
    rows = [(file.what, f"{file.start:#x}", str(file.size), file.path) for file in explanation.files]
    return table(("what", "address", "bytes", "file"), rows, right=(2,))


def _device_tree_title(explanation: Explanation) -> str:
    tree = explanation.device_tree
    origin = f"given: {tree.given}" if tree.given else "built"
    return (
        f"Device tree ({origin}; at {tree.start:#x}, {len(explanation.tree.blob)} of {tree.area_size} bytes, "
        f"SHA-256 of the area {tree.area_sha256})"
    )


def comparison_text(comparison: Comparison, old: str = "A", new: str = "B") -> str:
    """Why two RIMs differ."""
    if comparison.equal:
        return f"equal\nRIM: {comparison.new_rim}"
    lines = [f"{old}: {comparison.old_rim}", f"{new}: {comparison.new_rim}"]
    if comparison.first is not None:
        lines += ["", *_first_lines(comparison.first, old, new)]
    for kind, title in _KINDS.items():
        causes = [cause for cause in comparison.causes if cause.kind == kind]
        if causes:
            lines += ["", title, *(f"  {line}" for cause in causes for line in _cause_lines(cause))]
    if not comparison.causes:
        lines += ["", "no cause was found: a step differs in something that neither side records"]
    return "\n".join(lines)


def _first_lines(first: FirstStep, old: str, new: str) -> Iterator[str]:
    about = "first step that differs" if first.exact else "first step that differs, at or shortly behind"
    if first.old == first.new:
        yield f"{about}: {first.number}, {first.old}"
    else:
        yield f"{about}: {first.number}"
        yield f"  {old}: {first.old or 'no such step'}"
        yield f"  {new}: {first.new or 'no such step'}"


def _cause_lines(cause: Cause) -> Iterator[str]:
    if cause.old is None and cause.new is None:
        yield cause.where
    else:
        absent = "absent" if cause.kind != "argument" else "(none)"
        old, new = cause.old or absent, cause.new or absent
        if cause.kind == "argument":
            yield f"{old} -> {new}"
        elif len(old) + len(new) > 80:
            yield f"{cause.where}:"
            yield f"    - {old}"
            yield f"    + {new}"
        else:
            yield f"{cause.where}: {old} -> {new}"
    if cause.detail:
        yield f"    {cause.detail}"


def search_text(result: Result) -> str:
    """What the search found."""
    tried = f"{result.tried} launch{'' if result.tried == 1 else 'es'} tried"
    if not result.found:
        return (
            f"nothing gives this RIM ({tried})\n"
            "the files may differ: a changed byte in the kernel or initrd cannot be guessed"
        )
    if result.found == ((),):
        return f"the launch as given has this RIM\nRIM: {result.rim}"
    lines = [f"this RIM results with ({tried}):"]
    for labels in result.found:
        lines.append("  " + " and ".join(labels))
    return "\n".join([*lines, f"RIM: {result.rim}"])


def check_text(check: Check) -> str:
    """Whether a lock file still holds, and if not, why."""
    if check.equal:
        lines = ["the lock holds"]
        lines += [f"changed without influence on the RIM: {name}" for name in check.changed]
        return "\n".join([*lines, f"RIM: {check.rim}"])
    lines = ["the RIM has drifted"]
    lines += [f"changed input: {name}" for name in check.changed]
    if not check.changed:
        lines.append(f"no input changed: the tool did ({check.lock.tool} wrote the lock)")
    return "\n".join([*lines, "", comparison_text(check.comparison, "locked", "now")])
