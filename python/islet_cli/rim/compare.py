"""`islet rim diff` as one call: two things, whatever they are, compared or searched for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from islet_cli.errors import InputError
from islet_cli.rim.diff import Side, compare
from islet_cli.rim.report import comparison_text, search_text
from islet_cli.rim.request import Request, checked
from islet_cli.rim.search import search
from islet_cli.rim.sources import resolve, side_of


@dataclass(frozen=True)
class Outcome:
    """What there is to show. `settled`: the RIMs are equal, or the search found what gives the RIM."""

    settled: bool
    text: str
    value: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return self.value


def compare_or_search(old: str, new: str, options: dict[str, object], *, changes: int | None) -> Outcome:
    """Compare what two texts name.

    Args:
        old: A manifest, saved explanation, lock file, command line or RIM.
        new: The same.
        options: Members of every request that is made.
        changes: Search with at most so many changes; None compares.

    Raises:
        InputError: One of them names nothing, or cannot be measured; a search without exactly one RIM (`usage`).
    """

    def adjust(request: Request) -> Request:
        return checked(dataclasses.replace(request, **options))  # type: ignore[arg-type]

    found = [resolve(text, adjust) for text in (old, new)]
    rims = [item for item in found if isinstance(item, str)]
    if changes is not None:
        return _searched(found, rims, changes)
    if rims:
        return _of_rims(found)
    first, second = (side_of(item) for item in found if not isinstance(item, str))
    comparison = compare(first, second)
    return Outcome(comparison.equal, comparison_text(comparison), comparison.to_json())


def _searched(found: list[Side | Request | str], rims: list[str], changes: int) -> Outcome:
    subjects = [item for item in found if isinstance(item, Request)]
    if len(rims) != 1 or len(subjects) != 1:
        raise InputError(
            "--search: needs a RIM on one side and a manifest or command line on the other",
            code="usage",
            hint="give the expected RIM in hexadecimal",
        )
    result = search(subjects[0], rims[0], changes=changes)
    return Outcome(bool(result.found), search_text(result), result.to_json())


def _of_rims(found: list[Side | Request | str]) -> Outcome:
    """A RIM on one side at least: nothing but equality can be told."""
    old, new = (item if isinstance(item, str) else side_of(item).explanation.rim for item in found)
    value = {"old_rim": old, "new_rim": new, "equal": old == new, "first": None, "causes": []}
    if old == new:
        return Outcome(True, f"equal\nRIM: {new}", value)
    text = f"A: {old}\nB: {new}\n\nthe RIMs differ; a RIM alone does not tell why: try --search"
    return Outcome(False, text, value)
