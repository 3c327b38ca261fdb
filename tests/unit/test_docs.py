"""The documents name only what exists: tests in the threat model, pages in sources."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED_TESTS = re.findall(
    r"`((?:unit|property|conformance|e2e)/\w+\.py)(?:::(\w+))?`", (ROOT / "docs/threat-model.md").read_text()
)

FOREIGN_PAGES = {"docs/realm-vm.md"}
"""Pages of other projects, cited with the project's name."""


def sources() -> list[Path]:
    found = [*ROOT.glob("python/islet_cli/**/*.py"), *ROOT.glob("rust/*/src/**/*.rs"), *ROOT.glob("docs/**/*.md")]
    return [*found, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def test_the_threat_model_names_tests() -> None:
    assert len(NAMED_TESTS) > 50


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED_TESTS)))
def test_a_named_test_exists(file: str, name: str) -> None:
    path = ROOT / "tests" / file
    assert path.is_file()
    assert not name or re.search(rf"^(async )?def {name}\(", path.read_text(), re.MULTILINE), f"{file} has no {name}"


def test_every_page_that_is_named_exists() -> None:
    missing = {
        f"{source.relative_to(ROOT)}: {page}"
        for source in sources()
        for page in re.findall(r"docs/[a-z0-9/-]+\.md", source.read_text())
        if page not in FOREIGN_PAGES and not (ROOT / page).is_file()
    }
    assert not missing
