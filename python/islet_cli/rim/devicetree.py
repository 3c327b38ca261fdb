"""Device trees as people read them: source text, and what differs between two trees.

Source: Devicetree Specification v0.4, chapters 2 (properties) and 6 (source format).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from islet_cli import _native

_HEADER_SIZE = 40


@dataclass(frozen=True)
class Property:
    """One property: name and raw value."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Node:
    """One node without its children. `path` starts with `/`; equal siblings are told apart by `#2`, `#3`, …"""

    path: str
    name: str
    depth: int
    properties: tuple[Property, ...]


@dataclass(frozen=True)
class Tree:
    """A device tree: nodes in document order, the first being the root.

    `blob` holds the tree's own bytes, without what stands behind them in its area.
    """

    blob: bytes
    reservations: tuple[tuple[int, int], ...]
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Change:
    """One difference. `name` None stands for the whole node; `old` or `new` None for absent."""

    path: str
    name: str | None
    old: str | None
    new: str | None


def parse(area: bytes) -> Tree:
    """Read the tree at the start of `area`.

    Raises:
        InputError: It is no device tree, or is damaged (`device-tree`).
    """
    total, reservations, rows = _native.rim.read_device_tree(area)
    paths = _paths([(depth, name) for depth, name, _ in rows])
    nodes = (
        Node(path, name, depth, tuple(Property(key, data) for key, data in properties))
        for path, (depth, name, properties) in zip(paths, rows, strict=True)
    )
    return Tree(area[:total], tuple(reservations), tuple(nodes))


def _paths(rows: list[tuple[int, str]]) -> list[str]:
    out: list[str] = []
    used: dict[str, int] = {}
    open_nodes: list[str] = []
    for depth, name in rows:
        del open_nodes[depth:]
        path = "/" if depth == 0 else f"{open_nodes[-1].rstrip('/')}/{name}"
        used[path] = used.get(path, 0) + 1
        if used[path] > 1:
            path = f"{path}#{used[path]}"
        open_nodes.append(path)
        out.append(path)
    return out


def value_text(data: bytes) -> str:
    """A value as device-tree source: strings, cells or bytes; empty for a property without value."""
    if not data:
        return ""
    strings = _strings(data)
    if strings is not None:
        return ", ".join('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in strings)
    if len(data) % 4 == 0:
        return "<" + " ".join(f"{int.from_bytes(data[at : at + 4], 'big'):#x}" for at in range(0, len(data), 4)) + ">"
    return "[" + data.hex(" ") + "]"


def _strings(data: bytes) -> list[str] | None:
    """The strings that `data` holds; None when it holds something else."""
    if data[-1] != 0:
        return None
    parts = data[:-1].split(b"\0")
    if not all(part and all(0x20 <= byte < 0x7F for byte in part) for part in parts):
        return None
    return [part.decode("ascii") for part in parts]


def source(tree: Tree) -> str:
    """The tree as source text that `dtc -I dts` compiles back to the same tree."""
    lines = ["/dts-v1/;", *(f"/memreserve/ {at:#x} {size:#x};" for at, size in tree.reservations), ""]
    depth = -1
    for node in tree.nodes:
        lines += _closings(depth, node.depth)
        depth = node.depth
        lines.append(f"{_indent(depth)}{node.name or '/'} {{")
        lines += (_indent(depth + 1) + _assignment(item) for item in node.properties)
    lines += _closings(depth, 0)
    return "\n".join(lines) + "\n"


def _closings(depth: int, following: int) -> Iterator[str]:
    """The braces that end nodes before one of depth `following` begins."""
    for level in range(depth, following - 1, -1):
        yield _indent(level) + "};"


def _indent(depth: int) -> str:
    return "\t" * depth


def _assignment(item: Property) -> str:
    value = value_text(item.data)
    return f"{item.name} = {value};" if value else f"{item.name};"


def changes(old: Tree, new: Tree) -> list[Change]:
    """What differs, in the order of the old tree, then what only the new one has.

    Trees that mean the same but are written differently give one change of the blob itself.
    """
    before, after = ({node.path: node for node in tree.nodes} for tree in (old, new))
    out: list[Change] = []
    for path in [*before, *(path for path in after if path not in before)]:
        out += _node_changes(path, before.get(path), after.get(path))
    if old.reservations != new.reservations:
        out.append(Change("/", "memory reservations", str(list(old.reservations)), str(list(new.reservations))))
    if not out and old.blob != new.blob:
        out += _form_changes(old, new)
    return out


def _node_changes(path: str, old: Node | None, new: Node | None) -> Iterator[Change]:
    if old is None or new is None:
        present, absent = "present", None
        yield Change(path, None, absent if old is None else present, absent if new is None else present)
        return
    before, after = ({item.name: item.data for item in node.properties} for node in (old, new))
    for name in [*before, *(name for name in after if name not in before)]:
        if before.get(name) != after.get(name):
            yield Change(path, name, _shown(before.get(name)), _shown(after.get(name)))


def _shown(data: bytes | None) -> str | None:
    return None if data is None else value_text(data) or "present"


def _form_changes(old: Tree, new: Tree) -> list[Change]:
    """Two blobs of one meaning: the order of nodes or properties, or the format itself."""

    def order(tree: Tree) -> list[tuple[str, list[str]]]:
        return [(node.path, [item.name for item in node.properties]) for node in tree.nodes]

    if order(old) != order(new):
        first = next(a for a, b in zip(order(old), order(new), strict=True) if a != b)
        return [Change(first[0], None, "in another order", "in another order")]
    what = "header" if old.blob[:_HEADER_SIZE] != new.blob[:_HEADER_SIZE] else "padding or order of names"
    return [Change("/", None, f"blob of {len(old.blob)} bytes", f"blob of {len(new.blob)} bytes ({what})")]
