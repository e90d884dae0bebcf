"""The tables of a comparison, in the form that the template of the page needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from bench.report.budget import TITLE as BUDGET
from bench.report.budget import budget
from bench.report.column import ABSENT, Column, Shown
from bench.report.columns import title
from bench.report.configurations import Comparison, Configuration, chosen_of_methods
from bench.report.content import Content, legend, signatures
from bench.report.efficiency import NOTE as EFFICIENCY_NOTE
from bench.report.efficiency import TITLE as EFFICIENCY
from bench.report.efficiency import efficiency_table
from bench.report.figures import Picture
from bench.report.figures.style import UNTOUCHED, inlined
from bench.report.layout import MOST_ROWS, layout, letters_note, seeds_differ
from bench.report.others import NOTE as OTHERS_NOTE
from bench.report.others import TITLE as OTHERS
from bench.report.others import other_rows
from bench.report.planned import HEADING as FORECAST
from bench.report.planned import NOTE as FORECAST_NOTE
from bench.report.planned import TITLE as FORECAST_TITLE
from bench.report.planned import forecast_rows, forecasts
from bench.report.published_rows import TITLE as PUBLISHED_TITLE
from bench.report.published_rows import PublishedRows
from bench.report.searches import HEADING, audit_lines, budget_rows, expected_rows, metric_title
from bench.report.significance_table import PAIR_HEADING, letters_of, pair_note, pair_rows
from bench.schema.trial import JsonDict
from bench.statistics.estimates import Basis, Estimate
from bench.tuning.summary import Tuning

if TYPE_CHECKING:
    from bench.statistics.significance import Significance

# Gives the texts of all pictures the same size on the page.
PIXELS_PER_INCH = 92
# An interval may widen the scale of its column by this share of the spread of means; a wider one fills its cell.
MOST_WHISKER = 0.5


def shown_comparison(
    comparison: Comparison,
    pictures: Sequence[Picture],
    found: Significance | str | None = None,
    quoted: PublishedRows | None = None,
) -> JsonDict:
    """Everything that the page shows of one model and task.

    Args:
        comparison: Its configurations.
        pictures: Of them.
        found: Which differences hold, or why that is not known.
        quoted: Published numbers that belong beside it.
    """
    letters = letters_of(found)
    explained = letters_note(found, comparison.metrics[0]) if letters and found and not isinstance(found, str) else ""
    grouped, seeds, chosen = len(set(letters.values())) > 1, seeds_differ(comparison), layout(comparison)
    shown = comparison.scored[:MOST_ROWS]
    outcomes = [outcome for configuration in comparison.configurations for _, outcome in configuration.completed]
    scale = _Scale(comparison)
    return {
        "model": comparison.model,
        "task": comparison.task,
        "has_seeds": seeds,
        "has_intervals": scale.metric is not None,
        "has_groups": grouped,
        "headings": _headings(comparison, scale, chosen.shown, grouped, seeds),
        "rows": [_row(comparison, configuration, scale, letters, chosen.shown) for configuration in shown],
        "more_rows": len(comparison.scored) - len(shown),
        "explained": explained,
        "folded": chosen.folded,
        "all_headings": _column_headings(comparison, comparison.columns),
        "all_rows": [_all_columns(comparison, configuration) for configuration in shown],
        "legend": legend(comparison) if outcomes else "No trial has completed yet.",
        "signatures": [(title(name), text) for name, text in signatures(outcomes)],
        "tables": _tables(comparison, found, quoted),
        "pictures": [
            {
                "name": picture.name,
                "title": picture.title,
                "caption": picture.caption,
                "svg": inlined(picture.svg, picture.title),
                "wide": picture.width_inches > 6.5,
                "width": round(picture.width_inches * PIXELS_PER_INCH),
            }
            for picture in pictures
        ],
    }


class _Scale:
    """Where a mean and its interval lie between 0 and 100 in the column of intervals.

    The scale is that of the methods that train; the base model may lie outside.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.metric = comparison.metrics[0] if comparison.metrics and comparison.several_seeds else None
        trained = [
            configuration for configuration in comparison.scored if configuration.method != UNTOUCHED
        ] or comparison.scored
        known = [one for configuration in trained if (one := self.of(configuration)) is not None]
        means = [one.mean for one in known] or [0.0]
        widest = MOST_WHISKER * (max(means) - min(means)) or 1.0
        shown = [min(one.half_width or 0.0, widest) for one in known] or [0.0]
        self.low = min(mean - width for mean, width in zip(means, shown, strict=True))
        self.high = max(mean + width for mean, width in zip(means, shown, strict=True))

    def of(self, configuration: Configuration) -> Estimate | None:
        return configuration.estimate(self.metric.name) if self.metric is not None else None

    def place(self, value: float) -> float:
        return round(min(100.0, max(0.0, 100.0 * (value - self.low) / (self.high - self.low or 1.0))), 1)

    def interval(self, configuration: Configuration) -> JsonDict:
        found = self.of(configuration)
        if found is None or self.metric is None:
            return {"at": None, "sort": "", "tooltip": ""}
        return {
            "sort": "" if found.half_width is None else found.half_width,
            "low": self.place(found.low),
            "high": self.place(found.high),
            "at": round(self.place(found.mean) - 0.8, 1) if self.low <= found.mean <= self.high else None,
            "tooltip": "one value"
            if found.half_width is None
            else f"{self.metric.text(found.low)} to {self.metric.text(found.high)}",
        }


def _headings(
    comparison: Comparison, scale: _Scale, columns: Sequence[Column], has_groups: bool, has_seeds: bool
) -> list[JsonDict]:
    found: list[JsonDict] = [{"title": "method", "text": True}]
    if has_groups:
        found.append({"title": "group"})
    if has_seeds:
        found.append({"title": "seeds", "wide": True})
    if scale.metric is not None:
        bases = {one.basis for configuration in comparison.scored if (one := scale.of(configuration)) is not None}
        tooltip = f"95 % interval of the mean, over {_either(bases)}; sorts by its width"
        found.append({"title": f"{scale.metric.title} 95 %", "tooltip": tooltip, "wide": True})
    return [*found, *_column_headings(comparison, columns)]


def _column_headings(comparison: Comparison, columns: Sequence[Column]) -> list[JsonDict]:
    arrows = {True: "↑", False: "↓", None: ""}
    first = comparison.metrics[:1]
    return [
        {
            "title": column.title,
            "arrow": arrows[column.higher_is_better],
            "tooltip": column.axis,
            "first": ("descending" if column.higher_is_better else "ascending") if column in first else "",
            "wide": _is_wide(comparison, column),
        }
        for column in columns
    ]


def _is_wide(comparison: Comparison, column: Column) -> bool:
    """Whether narrow screens leave a column to the table of all columns."""
    return column not in comparison.metrics[:1] and not column.shown & Shown.NARROW


def _either(bases: set[Basis]) -> str:
    """A note that says what the intervals of a column account for."""
    trained = sorted(bases - {"sources"}) or sorted(bases)
    return " or ".join(trained)


def _row(
    comparison: Comparison,
    configuration: Configuration,
    scale: _Scale,
    letters: Mapping[str, str],
    columns: Sequence[Column],
) -> JsonDict:
    return {
        "method": configuration.method,
        "group": letters.get(configuration.name, ""),
        "label": configuration.label,
        "seeds": configuration.seeds,
        "num_seeds": len(configuration.counted_results),
        "interval": scale.interval(configuration),
        "cells": [_cell(comparison, configuration, column) for column in columns],
    }


def _all_columns(comparison: Comparison, configuration: Configuration) -> JsonDict:
    cells = [_cell(comparison, configuration, column) for column in comparison.columns]
    return {"method": configuration.method, "label": configuration.label, "cells": cells}


def _cell(comparison: Comparison, configuration: Configuration, column: Column) -> JsonDict:
    found = configuration.estimate(column.name)
    wide = _is_wide(comparison, column)
    if found is None:
        return {"text": ABSENT, "sort": "", "spread": "", "best": False, "tooltip": "", "wide": wide}
    varies = found.standard_deviation is not None and column.varies_over_seeds
    return {
        "text": column.short_text(found.mean),
        "sort": found.mean,
        "spread": column.text(found.standard_deviation or 0.0) if varies else "",
        "best": comparison.is_best(configuration, column),
        "wide": wide,
        "tooltip": f"95 % over {found.basis}: {column.text(found.low)} to {column.text(found.high)}"
        if varies
        else column.text(found.mean),
    }


def _tables(comparison: Comparison, found: Significance | str | None, quoted: PublishedRows | None) -> list[JsonDict]:
    first = (_differences(comparison, found), _published(quoted), _tags(comparison))
    made = (*first, _efficiency(comparison), _budget(comparison), _forecast(comparison))
    return [_bounded(table) for table in made if table is not None]


def _bounded(table: JsonDict) -> JsonDict:
    """The first rows of a long table, with a note that there are more."""
    rows = table["rows"]
    if len(rows) <= MOST_ROWS:
        return table
    note = f"The first {MOST_ROWS} of {len(rows)} rows; report.json has all. {table['note']}"
    return {**table, "rows": rows[:MOST_ROWS], "note": note}


def _differences(comparison: Comparison, found: Significance | str | None) -> JsonDict | None:
    """Which differences hold in the first metric."""
    if found is None:
        return None
    title = "Which differences hold"
    if isinstance(found, str):
        return {"title": title, "headings": [], "rows": [], "note": found}
    metric = comparison.metrics[0]
    return {
        "title": title,
        "headings": PAIR_HEADING,
        "rows": pair_rows(found, metric),
        "note": " ".join([*found.remarks, pair_note(found, metric)]),
    }


def _budget(comparison: Comparison) -> JsonDict:
    found = budget(comparison)
    return {
        "title": BUDGET,
        "headings": found.heading if found.rows else [],
        "rows": found.rows,
        "note": found.sentence,
    }


def others_tables(content: Content) -> list[JsonDict]:
    """Records that the sweep does not ask for, where they are listed."""
    if not content.others:
        return []
    heading, rows = other_rows(content.records, content.others)
    return [{"title": OTHERS, "headings": heading, "rows": rows, "note": OTHERS_NOTE}]


def _forecast(comparison: Comparison) -> JsonDict | None:
    found = forecasts(comparison)
    if not found:
        return None
    rows = forecast_rows(found)
    return {"title": FORECAST_TITLE, "headings": FORECAST, "rows": rows, "note": FORECAST_NOTE}


def _published(quoted: PublishedRows | None) -> JsonDict | None:
    if quoted is None:
        return None
    shown = {"headings": quoted.heading(), "rows": quoted.rows(), "quoted": quoted.quoted_columns}
    return {"title": PUBLISHED_TITLE, **shown, "note": quoted.note}


def tuning_tables(tunings: Sequence[Tuning]) -> list[JsonDict]:
    """What each search used and chose, and what the best of so many trials is expected to reach."""
    if not tunings:
        return []
    chosen_by = metric_title(tunings[0])
    audits = [f"{line}." for line in audit_lines(tunings)]
    budget: JsonDict = {
        "title": "Budgets and choices",
        "headings": [*HEADING[:-1], chosen_by],
        "rows": budget_rows(tunings),
        "note": " ".join(["Full lengths: what was trained, counted in trainings of full length.", *audits]),
    }
    heading, expected = expected_rows(tunings)
    if not expected:
        return [_bounded(budget)]
    best: JsonDict = {
        "title": f"Expected {chosen_by} of the best of n trials",
        "headings": heading,
        "rows": expected,
        "note": "The unbiased estimator of Tang et al. 2020, over the trials whose settings did not depend on results.",
    }
    return [_bounded(budget), _bounded(best)]


def _tags(comparison: Comparison) -> JsonDict | None:
    """The first metric by tag, all tags that the records have."""
    outcomes = [outcome for configuration in comparison.configurations for _, outcome in configuration.completed]
    sources = {tag: count for outcome in outcomes for tag, count in outcome.scores.sources_by_tag.items()}
    if not sources or not comparison.metrics:
        return None
    metric = comparison.metrics[0]
    rows = []
    for configuration in chosen_of_methods(comparison.scored):
        values = [
            _mean(outcome.scores.by_tag.get(tag, {}).get(metric.name) for _, outcome in configuration.counted_results)
            for tag in sources
        ]
        rows.append([configuration.name, *(ABSENT if value is None else metric.text(value) for value in values)])
    return {
        "title": f"{metric.title} by tag",
        "headings": ["method", *(f"{tag} ({count})" for tag, count in sources.items())],
        "rows": rows,
        "note": "Of several configurations of a method, the one with the lowest dev loss; mean over seeds. Numbers of "
        "test sources in brackets.",
    }


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None and math.isfinite(value)]
    return sum(found) / len(found) if found else None


def _efficiency(comparison: Comparison) -> JsonDict | None:
    found = efficiency_table(comparison)
    if found is None:
        return None
    headings, rows = found
    return {"title": EFFICIENCY, "headings": headings, "rows": rows, "note": EFFICIENCY_NOTE}
