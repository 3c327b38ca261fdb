"""Every case of the `layouts` family: what loads, what is refused, and with which code."""

from __future__ import annotations

from typing import Any

import pytest
import vectors

from islet_cli.errors import IsletError
from islet_cli.oci import layout

FOLDER = vectors.path("ISLET_VECTORS_IMAGES") / "layouts"
CASES: list[dict[str, Any]] = (vectors.images("layouts", "expected.json") or {}).get("cases", [])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["layout"])
def test_layout(case: dict[str, Any]) -> None:
    if case["expect"] != "ok":
        with pytest.raises(IsletError) as caught:
            layout.load(FOLDER / case["layout"])
        assert caught.value.code == case["expect"]
        return
    loaded = layout.load(FOLDER / case["layout"])
    if "tags" in case:
        assert sorted(loaded.tags) == sorted(case["tags"])
    if case["layout"].endswith("/orphan_blob"):
        assert [line.partition(":")[0] for line in loaded.warnings] == ["orphan_blob"]
