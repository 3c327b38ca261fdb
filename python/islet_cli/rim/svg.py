"""The guest memory map and the order of measurement as a drawing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape

from islet_cli.rim.explanation import Explanation, Group

_COLOURS = {
    "kernel": "#4c78a8",
    "firmware": "#4c78a8",
    "bss": "#9ecae9",
    "initrd": "#f58518",
    "dtb": "#54a24b",
    "ram": "#e8e8e8",
    "log": "#b279a2",
}
_OTHER = "#bab0ac"
_WIDTH, _TOP = 1060, 90
_MAP_X, _MAP_WIDTH, _ORDER_X, _ROW = 150, 170, 560, 34
# Sizes span five orders of magnitude: heights grow with their logarithm, from that of the device tree on.
_LEAST, _REGION_STEP, _GAP_STEP, _UNIT = 24.0, 14.0, 4.0, 64 << 10
_STYLE = "text{font-family:sans-serif;font-size:13px;fill:#222}.s{font-size:11px;fill:#555}.m{font-family:monospace}"


@dataclass(frozen=True)
class _Band:
    """A piece of the map: a region, or what lies between two (`what` empty)."""

    what: str
    start: int
    top: int
    height: float
    order: int = 0


def draw(explanation: Explanation) -> str:
    """An SVG document: memory on the left, lowest address below; the order of steps on the right."""
    regions = [group for group in explanation.groups if group.top and group.what != "ram"]
    bands = _bands(explanation, regions)
    height = max(_TOP + sum(band.height for band in bands), _TOP + _ROW * len(explanation.groups)) + 50
    body = [*_title(explanation), *_map(bands), *_order(explanation)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {_WIDTH} {height:.0f}">\n<style>{_STYLE}</style>\n'
        f'<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def memory(explanation: Explanation) -> tuple[int, int]:
    """First address and end of RAM, as the device tree says; else what the regions span."""
    for node in explanation.tree.nodes:
        if node.depth == 1 and node.name.partition("@")[0] == "memory":
            reg = next((item.data for item in node.properties if item.name == "reg"), b"")
            if len(reg) >= 16:
                start = int.from_bytes(reg[:8], "big")
                return start, start + int.from_bytes(reg[8:16], "big")
    groups = [group for group in explanation.groups if group.top]
    return min(group.start for group in groups), max(group.top for group in groups)


def _bands(explanation: Explanation, regions: list[Group]) -> list[_Band]:
    """All of RAM, from high to low addresses, in regions and gaps."""
    low, high = memory(explanation)
    order = {id(group): number for number, group in enumerate(explanation.groups, start=1)}
    out: list[_Band] = []
    position = min([low, *(group.start for group in regions)])
    for group in sorted(regions, key=lambda group: (group.start, group.first_step)):
        if group.start > position:
            out.append(_gap(position, group.start))
        height = _height(group.top - group.start, _REGION_STEP)
        out.append(_Band(group.what, group.start, group.top, height, order[id(group)]))
        position = max(position, group.top)
    if position < high:
        out.append(_gap(position, high))
    return out[::-1]


def _gap(start: int, top: int) -> _Band:
    return _Band("", start, top, _height(top - start, _GAP_STEP))


def _height(size: int, step: float) -> float:
    return _LEAST + step * max(0.0, math.log2(size / _UNIT))


def _title(explanation: Explanation) -> Iterator[str]:
    head = f"{explanation.vmm}, {explanation.dialect}, {explanation.profile}, {explanation.hash_algo}"
    yield _text(20, 28, f"RIM {explanation.rim[:64]}{'…' if len(explanation.rim) > 64 else ''}", "m")
    yield _text(20, 48, f"{head}, {explanation.steps} steps", "s")
    yield _text(_MAP_X, _TOP - 14, "guest memory (heights: logarithm of sizes)")
    yield _text(_ORDER_X, _TOP - 14, "order of measurement")


def _map(bands: list[_Band]) -> Iterator[str]:
    y = float(_TOP)
    for band in bands:
        if band.what:
            fill = _COLOURS.get(band.what, _OTHER)
            yield _rectangle(_MAP_X, y, _MAP_WIDTH, band.height, fill)
            label = f"{band.order}  {band.what}, {_size(band.top - band.start)}"
            yield _text(_MAP_X + _MAP_WIDTH + 10, y + band.height / 2 + 5, label)
        else:
            yield _rectangle(_MAP_X, y, _MAP_WIDTH, band.height, "#f7f7f7", dashed=True)
            note = f"content not measured, {_size(band.top - band.start)}"
            yield _text(_MAP_X + 8, y + band.height / 2 + 4, note, "s")
        yield _text(20, y + 11, f"{band.top:#x}", "s m")
        y += band.height
    if bands:
        yield _text(20, y + 11, f"{bands[-1].start:#x}", "s m")


def _order(explanation: Explanation) -> Iterator[str]:
    for number, group in enumerate(explanation.groups, start=1):
        y = _TOP + _ROW * (number - 1)
        fill = _COLOURS.get(group.what, _OTHER)
        yield _rectangle(_ORDER_X, y, 22, 22, fill)
        where = f"  {group.start:#x}-{group.top:#x}" if group.top else ""
        yield _text(_ORDER_X + 32, y + 11, f"{number}  {group.kind.upper()}  {group.what}{where}")
        steps = f"{group.steps} step{'' if group.steps == 1 else 's'}, RIM after {group.rim[:24]}…"
        yield _text(_ORDER_X + 32, y + 25, steps, "s")


def _rectangle(x: float, y: float, width: float, height: float, fill: str, *, dashed: bool = False) -> str:
    stroke = ' stroke-dasharray="4 3"' if dashed else ""
    return (
        f'<rect x="{x:.0f}" y="{y:.1f}" width="{width:.0f}" height="{height:.1f}" fill="{fill}" '
        f'stroke="#888" stroke-width="1"{stroke}/>'
    )


def _text(x: float, y: float, text: str, classes: str = "") -> str:
    attribute = f' class="{classes}"' if classes else ""
    return f'<text x="{x:.0f}" y="{y:.1f}"{attribute}>{escape(text)}</text>'


def _size(count: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << shift:
            return f"{count / (1 << shift):.4g} {unit}"
    return f"{count} bytes"
