"""The table of families is whole, and its cells are what the program finds."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import FAMILIES, OUT, REFUSES, WORKS, Ground, Page, Tried, known_to_the_contract

from methods import METHODS


def test_every_family_has_a_row_and_every_method_a_column() -> None:
    table = [line for line in OUT.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    heads, _, *rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table]
    assert heads[1:] == list(METHODS)
    assert [row[0] for row in rows] == list(FAMILIES)
    cells = Page.read(OUT).cells
    assert {cell.verdict for cell in cells.values()} == {WORKS, REFUSES}
    assert all(bool(cell.reason) == (cell.verdict == REFUSES) for cell in cells.values())


@pytest.mark.usefixtures("one_rank")
def test_a_cell_is_tried_by_a_trial_and_the_contract(tmp_path: Path) -> None:
    with known_to_the_contract():
        ground = Ground(tmp_path)
        tried = {method: ground.cell(FAMILIES["Llama"], method) for method in ("bitfit", "loftq")}
    assert tried["bitfit"] == Tried(WORKS)
    assert tried["loftq"].verdict == REFUSES
    assert tried["loftq"].reason.startswith("loftq starts from what quantising took away")


def test_a_page_is_read_as_it_was_written(tmp_path: Path) -> None:
    page = Page({("T5", "lora"): Tried(WORKS), ("LFM2", "ia3"): Tried(REFUSES, "no such part")}, {"T5": "told"})
    (tmp_path / "page.md").write_text(page.text(list(METHODS)), encoding="utf-8")
    assert Page.read(tmp_path / "page.md") == page
