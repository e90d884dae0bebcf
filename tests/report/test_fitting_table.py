"""A terminal that is too narrow for a table is told fewer columns, and whole words."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from fakes import completed, record, trial
from rich.console import Console

from bench.report.fitting_table import FittingTable
from bench.report.terminal import results_table
from bench.report.up_to_date import TerminalPart, read_terminal_part, write_terminal_part


def shown(table: FittingTable, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def table() -> FittingTable:
    made = FittingTable(["d", "cost"])
    made.add_column("method", overflow="fold")
    for heading in ("accuracy", "cost", "d"):
        made.add_column(heading, justify="right", no_wrap=True)
    made.add_row("prompt_tuning (rank=4)", "26.0", "1,234 MiB", "7")
    return made


@pytest.mark.parametrize(
    ("width", "headings", "left_out"),
    [
        (80, "method accuracy cost d", None),
        (40, "method accuracy cost d", None),
        (39, "method accuracy cost", "No room for: d."),
        (37, "method accuracy cost", "No room for: d."),
        (36, "method accuracy", "No room for: cost, d."),
        (29, "method accuracy", "No room for: cost, d."),
    ],
)
def test_columns_go_before_letters(width: int, headings: str, left_out: str | None) -> None:
    lines = shown(table(), width)
    assert max(map(len, lines)) <= width
    text = " ".join(lines)
    assert " ".join(word for word in lines[1].replace("┃", " ").split()) == headings
    assert "prompt_tuning" in text and "(rank=4)" in text and "26.0" in text
    assert (left_out is None and "No room" not in text) or " ".join(lines[-1].split()) == left_out


def test_where_nothing_helps_all_is_shown_in_what_there_is() -> None:
    assert max(map(len, shown(table(), 12))) <= 12


def test_a_method_is_named_beside_long_headings() -> None:
    outcome = completed()
    values = {"accuracy": 26.0, "macro_f1": 8.25, "matthews": 0.0, "reference_perplexity": 309.6}
    scores = outcome.scores.model_copy(update={"values": values})
    lines = shown(results_table([record(trial("prefix_tuning"), outcome.model_copy(update={"scores": scores}))]), 80)
    assert "prefix_tuning" in " ".join(lines)
    assert "reference perplexity" in lines[-1]


def test_a_table_that_was_kept_fits_too(tmp_path: Path) -> None:
    write_terminal_part(tmp_path, "key", TerminalPart((table(),), ()))
    kept = read_terminal_part(tmp_path, "key")
    assert kept is not None
    assert [shown(one, 38) for one in kept.tables] == [shown(table(), 38)]
