"""Published numbers beside ours: which rows belong to which configurations, and the table that shows both.

They are quoted, never measured here: no test, group or bold face takes part of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from bench.report.column import ABSENT, Column
from bench.report.configurations import Comparison, Configuration
from bench.report.published import ANOTHER_MODEL, Quoted, fits, other_base
from bench.schema.trial import JsonDict
from bench.statistics.estimates import Estimate, estimate

TITLE = "Beside published numbers"


@dataclass(frozen=True)
class PublishedRow:
    """A configuration of ours and a published row of its method and task."""

    configuration: Configuration
    row: Quoted

    @property
    def other_base(self) -> str | None:
        """What our base model is beside the published one; None: the same."""
        return other_base(self.row, self.configuration.results[0].spec)

    def ours(self, column: Column) -> Estimate | None:
        """Our estimate over the same part of the test sources as the published value."""
        if self.row.tag == "all":
            return self.configuration.estimate(column.name)
        scores = [outcome.scores.by_tag.get(self.row.tag, {}) for _, outcome in self.configuration.counted_results]
        return estimate([value for one in scores if math.isfinite(value := one.get(column.name, math.nan))])


@dataclass(frozen=True)
class PublishedRows:
    """All published rows that belong to the configurations of one model and task."""

    comparison: Comparison
    found: tuple[PublishedRow, ...]
    same_model: bool  # whether they were published on our base model; else none was

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """Scores that both we and a published row have."""
        quoted = {name for pair in self.found for name in pair.row.values}
        return tuple(column for column in self.comparison.metrics if column.name in quoted)

    def heading(self) -> list[str]:
        """Headings of the columns of :meth:`rows`."""
        pairs = [text for column in self.columns for text in (column.title, f"{column.title}, quoted")]
        return ["method", *(["test sources"] if self._has_tags else []), "quoted from", *pairs]

    def rows(self) -> list[list[str]]:
        """A row for each pair, with our value and the published value of each score."""
        return [
            [
                pair.configuration.name,
                *([pair.row.tag] if self._has_tags else []),
                self._source(pair.row),
                *(text for column in self.columns for text in (_ours(pair, column), _quoted(pair, column))),
            ]
            for pair in self.found
        ]

    @property
    def quoted_columns(self) -> list[int]:
        """Indices of the columns of :meth:`rows` that are not ours."""
        first = 1 + self._has_tags
        return [first, *range(first + 2, first + 1 + 2 * len(self.columns), 2)]

    @property
    def note(self) -> str:
        """A note with what a reader has to know before comparing."""
        about = {f"{row.key}, {row.table}: {row.note}." for row in self._rows if row.note}
        spreads = any(row.spread for row in self._rows)
        sentences = [
            "Values called quoted are copied from publications and were not measured here."
            + (" Their ± is what the publication prints." if spreads else ""),
            *self._no_reproduction(),
            *sorted(about),
        ]
        return " ".join(sentences)

    def document(self) -> list[JsonDict]:
        """The pairs for report.json, unrounded."""
        return [
            {
                "configuration": pair.configuration.name,
                **pair.row.model_dump(include={"key", "table", "label", "model", "tag", "note"}),
                "same_model": self.same_model,
                "scores": {
                    column.name: {
                        "ours": None if (ours := pair.ours(column)) is None else ours.mean,
                        "quoted": pair.row.values[column.name],
                        "quoted_spread": pair.row.spread.get(column.name),
                    }
                    for column in self.columns
                    if column.name in pair.row.values
                },
            }
            for pair in self.found
        ]

    def _no_reproduction(self) -> list[str]:
        """Why ours are no reproduction, a sentence; none where they may be."""
        if self.same_model:
            return []
        others = {pair.other_base for pair in self.found}
        on = [
            *(["another base model"] if ANOTHER_MODEL in others else []),
            *(["weights that are not quantised as ours are"] if others - {ANOTHER_MODEL} else []),
        ]
        return [f"They were published on {' or '.join(on)}: ours are no reproduction."]

    @property
    def _rows(self) -> list[Quoted]:
        return [pair.row for pair in self.found]

    @property
    def _has_tags(self) -> bool:
        return any(row.tag != "all" for row in self._rows)

    def _source(self, row: Quoted) -> str:
        model = "" if self.same_model else f" ({row.model})"
        return f"{row.key}, {row.table}: {row.label}{model}"


def published_rows(comparison: Comparison, rows: Sequence[Quoted]) -> PublishedRows | None:
    """The published rows of the methods and settings of a comparison; None where there are none.

    Rows on the same base model come alone if there are any.

    Args:
        comparison: Our configurations of one model and task.
        rows: What publications print.
    """
    fitting = [
        PublishedRow(configuration, row)
        for configuration in comparison.scored
        for row in rows
        if fits(row, configuration.results[0].spec)
    ]
    same = [one for one in fitting if one.other_base is None]
    found = PublishedRows(comparison, tuple(same or fitting), bool(same))
    return found if found.columns else None


def _ours(pair: PublishedRow, column: Column) -> str:
    found = pair.ours(column)
    if found is None:
        return ABSENT
    spread = "" if found.standard_deviation is None else f" ± {column.text(found.standard_deviation)}"
    return f"{column.text(found.mean)}{spread}"


def _quoted(pair: PublishedRow, column: Column) -> str:
    value = pair.row.values.get(column.name)
    if value is None:
        return ABSENT
    spread = pair.row.spread.get(column.name)
    return column.text(value) + ("" if spread is None else f" ± {column.text(spread)}")
