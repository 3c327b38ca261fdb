"""Every exec case: image configuration, passwd and group to the process, or the named refusal."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import vectors

from islet_cli.appmanager.execconfig import resolve
from islet_cli.errors import VerificationError

_CASES = (vectors.images("exec", "expected.json") or {"cases": []})["cases"]


@pytest.mark.parametrize("case", _CASES, ids=lambda case: str(case["name"]))
def test_exec(case: dict[str, Any]) -> None:
    expected = dict(case["expect"])
    files = [None if case[key] is None else case[key].encode() for key in ("passwd", "group")]
    if expected.pop("result") == "ok":
        assert asdict(resolve(case["config"], *files)) == expected
        return
    with pytest.raises(VerificationError) as caught:
        resolve(case["config"], *files)
    assert caught.value.code == expected["error"]
