"""Where the contents of a file differ between two measurements: granules, and bytes where both files are at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from islet_cli.rim.boot_files import is_compressed, place_in_initramfs, place_in_kernel
from islet_cli.rim.explanation import PAGE, Explanation, File, Group, condensed_entries
from islet_cli.rim.request import REALM_VM

_CHUNK = 1 << 20
_SHOWN_RANGES = 4


@dataclass(frozen=True)
class Contents:
    """What differs, in words, and the first differing byte where it is known.

    `old` or `new` is None where that file has ended.
    """

    text: str
    offset: int | None = None
    old: int | None = None
    new: int | None = None


def contents_of(what: str, a: Explanation, b: Explanation, *, live: bool) -> Contents | None:
    """Compare the contents of `what`; None when they are equal.

    Args:
        what: `kernel`, `firmware` or `initrd`; both sides have one.
        a: One side.
        b: The other.
        live: Whether the files on disk are those that were measured.
    """
    old, new = a.file(what), b.file(what)
    groups = [_group(side, what) for side in (a, b)]
    if old is None or new is None or groups[0] is None or groups[1] is None:
        return None
    # What is measured of a compressed kernel is what it unpacks to: the files' own bytes tell nothing.
    if what == "kernel" and b.dialect == REALM_VM and any(is_compressed(Path(side.path)) for side in (old, new)):
        live = False
    byte = _first_byte(Path(old.path), Path(new.path)) if live else None
    if a.hash_algo != b.hash_algo or old.start % PAGE != new.start % PAGE:
        # Digests of different algorithms, or of granules that are cut differently, tell nothing.
        return None if byte is None else Contents(_place(what, new, byte[0]), *byte)
    stride = max(groups[0].stride, groups[1].stride)
    entries = [condensed_entries(group, stride) for group in groups if group is not None]
    count = max(len(side) for side in entries)
    differing = [
        number for number in range(count) if entries[0][number : number + 1] != entries[1][number : number + 1]
    ]
    if not differing:
        return None
    text = _granules(differing, count, stride, new)
    offset = byte[0] if byte else max(0, differing[0] * stride * PAGE - new.start % PAGE)
    place = _place(what, new, offset) if byte or live else ""
    text += f"; {place}" if place else ""
    return Contents(text, *byte) if byte else Contents(text)


def _group(side: Explanation, what: str) -> Group | None:
    return next((group for group in side.groups if group.what == what and group.kind == "data"), None)


def _granules(differing: list[int], count: int, stride: int, file: File) -> str:
    """Which granules differ, as ranges of file offsets and addresses."""
    ranges: list[list[int]] = []
    for number in differing:
        if ranges and number == ranges[-1][1]:
            ranges[-1][1] = number + 1
        else:
            ranges.append([number, number + 1])
    first = file.start - file.start % PAGE
    unit, units = ("granule", "granules") if stride == 1 else ("block", f"blocks of {stride * PAGE >> 20} MiB")
    shown = []
    for start, end in ranges[:_SHOWN_RANGES]:
        offset = max(0, start * stride * PAGE - file.start % PAGE)
        numbers = f"{start}" if end == start + 1 else f"{start}-{end - 1}"
        shown.append(f"{numbers} (file offset {offset:#x}, IPA {first + start * stride * PAGE:#x})")
    more = f" and {len(ranges) - _SHOWN_RANGES} more ranges" if len(ranges) > _SHOWN_RANGES else ""
    verb = "differs" if len(differing) == 1 else "differ"
    return f"{len(differing)} of {count} {units} {verb}: {unit} {', '.join(shown)}{more}"


def _place(what: str, file: File, offset: int) -> str:
    """The section of a kernel or the member of an archive; empty where that is not known."""
    path = Path(file.path)
    found = place_in_initramfs(path, offset) if what == "initrd" else place_in_kernel(path, offset)
    return "" if found is None else f"in {found}"


def _first_byte(old: Path, new: Path) -> tuple[int, int | None, int | None] | None:
    """Offset and both values of the first byte that differs; None when the files are equal or cannot be read."""
    position = 0
    try:
        with old.open("rb") as left, new.open("rb") as right:
            while True:
                a, b = left.read(_CHUNK), right.read(_CHUNK)
                if a != b:
                    at = next((n for n, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), None)
                    at = min(len(a), len(b)) if at is None else at
                    return position + at, _byte(a, at), _byte(b, at)
                if not a:
                    return None
                position += len(a)
    except OSError:
        return None


def _byte(data: bytes, at: int) -> int | None:
    return data[at] if at < len(data) else None
