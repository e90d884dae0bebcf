"""Links of pages work, and files and modules that pages name exist."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from statistics import fmean

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


def test_the_flagships_losses_on_new_categories_are_those_of_its_report() -> None:
    report = json.loads((ROOT / "results/exhibits/flagship_webnlg/report.json").read_text(encoding="utf-8"))
    lost = {
        row["name"]: fmean(tags["seen"]["bleu"] - tags["unseen"]["bleu"] for tags in row["by_tag"].values())
        for row in report["comparisons"][0]["configurations"]
    }
    named = [f"{lost.pop(name):.1f}" for name in ("full", "prompt_tuning", "adapters", "mam")]
    lost.pop("none")
    page = " ".join((ROOT / "docs" / "flagship.md").read_text(encoding="utf-8").split())
    full, prompts, adapters, mam = named
    assert (
        f"it loses {full} BLEU, prompt tuning {prompts}, `adapters` and `mam` {adapters} and {mam}, the others "
        f"{min(lost.values()):.1f} to {max(lost.values()):.1f}"
    ) in page


def test_pages_say_how_many_pairs_of_method_and_family_were_tried() -> None:
    page = (ROOT / "docs/inside/families.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|")[1:] for line in page.splitlines() if re.match(r"\| [^|\s]", line)]
    cells = [cell for row in rows for cell in row]
    count = f"{sum(bool(cell.strip()) for cell in cells)} of {len(cells)} pairs"
    for name in ("docs/inside/families.md", "docs/methods/methods.md", "docs/README.md"):
        assert count in (ROOT / name).read_text(encoding="utf-8"), name


def test_a_newcomer_reads_two_hundred_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
