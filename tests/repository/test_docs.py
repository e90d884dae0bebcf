"""Links of pages work, and files and modules that pages name exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "configs").rglob("*.md")])
ARCHITECTURE = (ROOT / "docs" / "inside" / "architecture.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if not re.match(r"[a-z]+:", link)]
    assert [link for link in links if not (page.parent / link).exists()] == []
    if page.name != "CHANGELOG.md":  # which speaks of the past
        named = re.findall(r"\b((?:bench|methods|tests)/[\w/]+\.py)\b", text)
        assert [file for file in named if not (ROOT / file).exists()] == []


def test_the_modules_that_the_architecture_names_exist() -> None:
    names = set(re.findall(r"`((?:bench|methods)(?:\.\w+)*)`", ARCHITECTURE))
    assert len(names) > 20
    assert [name for name in sorted(names) if importlib.util.find_spec(name) is None] == []


def test_every_package_has_its_question() -> None:
    packages = {path.parent.name for path in (ROOT / "bench").glob("*/__init__.py")}
    assert {name for name in packages if f"`bench.{name}`" not in ARCHITECTURE} == set()
    beside = {path.stem for path in (ROOT / "bench").glob("*.py")} - {"__init__"}
    assert beside == {"cli", "lane_rows", "method", "task"}


def test_a_newcomer_reads_two_hundred_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
