"""The end-of-sweep table for a terminal: one line per trial."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.text import Text

from bench.report.column import ABSENT, Column, Shown
from bench.report.columns import columns_of, metric_columns, score_text
from bench.report.configurations import names
from bench.report.fitting_table import FittingTable
from bench.report.others import TITLE as OTHERS
from bench.report.others import other_rows
from bench.report.searches import HEADING, budget_rows, metric_title
from bench.schema.record import Completed, Failed, Probed, TrialResult
from bench.tuning.summary import Tuning

# So many scores fit beside the costs on a line of a hundred characters.
MOST_METRICS = 4
# So many trials are shown, the best ones; the report has tables by configuration.
MOST_ROWS = 40


def results_table(results: Sequence[TrialResult]) -> FittingTable:
    """All trials, the best first by the first metric that the records name; failed ones last."""
    several_seeds = len({result.spec.seed for result in results}) > 1
    metrics = metric_columns(results)[:MOST_METRICS]
    columns = (*metrics, *columns_of(Shown.TERMINAL))
    headings = [*(column.terminal_title or column.title for column in columns), "s"]
    # A method and its first score are always there; further scores go before costs.
    table = FittingTable([*reversed(headings[1 : len(metrics)]), *reversed(headings[max(1, len(metrics)) :])])
    table.add_column("method", overflow="fold")
    for heading in headings:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    rows, called = list(results), names(results)
    if metrics:
        rows.sort(key=lambda result: _rank(metrics[0].number(result), metrics[0]))
    for result in rows[:MOST_ROWS]:
        name = Text(called[result.trial_id] + f" s{result.spec.seed}" * several_seeds)
        seconds = f"{result.total_seconds:.0f}"
        if isinstance(result.outcome, Failed):
            table.add_row(name, Text(result.outcome.reason, style="red"), *[""] * (len(columns) - 1), seconds)
            continue
        table.add_row(name, *(_shown(column, column.number(result)) for column in columns), seconds)
    if len(rows) > MOST_ROWS:
        table.add_row(Text(f"{len(rows) - MOST_ROWS} more in results.csv", style="dim"), *[""] * (len(columns) + 1))
    return table


def tuning_table(searches: Sequence[Tuning]) -> FittingTable:
    """How much of its budget each search used, and what it chose."""
    table = FittingTable(["range extended", "full lengths", "device s", "failed", "trained", "searched"])
    for heading in (*HEADING[:-1], metric_title(searches[0])):
        table.add_column(heading, overflow="fold")
    for cells in budget_rows(searches):
        table.add_row(*(Text(cell) for cell in cells))
    return table


def headline(outcome: Completed | Probed) -> str:
    """The first metric that the record names, with its value; the dev loss of a trial that was not tested."""
    if isinstance(outcome, Probed):
        return "" if outcome.dev_loss is None else f"dev loss {outcome.dev_loss:.3f}"
    finite_scores = ((name, value) for name, value in outcome.scores.values.items() if math.isfinite(value))
    return next((score_text(name, value) for name, value in finite_scores), "no finite score")


def _shown(column: Column, value: float | None) -> str:
    return ABSENT if value is None else column.short_text(value)


def _rank(value: float | None, metric: Column) -> tuple[bool, float]:
    return value is None, 0.0 if value is None else -value if metric.higher_is_better else value


def others_table(current_records: Sequence[TrialResult], others: Sequence[TrialResult]) -> FittingTable:
    """A table of records that earlier versions of the sweep asked for."""
    heading, rows = other_rows(current_records, others)
    table = FittingTable([], caption=OTHERS)
    for name in heading:
        table.add_column(name, overflow="fold")
    for cells in rows:
        table.add_row(*(Text(cell) for cell in cells))
    return table
