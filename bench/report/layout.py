"""Chooses the columns of a table: quality, trained parameters, memory, throughput. Equal columns are folded away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.report.column import ABSENT, Column, Shown
from bench.report.configurations import Comparison, Configuration

if TYPE_CHECKING:
    from bench.statistics.significance import Significance

# Papers print about so many scores. A task may have a dozen diagnostics behind its official scores.
MOST_SCORES = 5
# So many rows of a table stand on the page and in report.md; report.json has all.
MOST_ROWS = 100


@dataclass(frozen=True)
class Layout:
    """The columns of one comparison."""

    shown: tuple[Column, ...]  # scores and test loss, then costs
    further: tuple[Column, ...]  # others that differ between rows
    folded: str  # a line with the columns that are equal in all rows; empty if there are none


def layout(comparison: Comparison) -> Layout:
    """Choose the columns; the first score is always shown."""
    alike = {
        column: text
        for column in comparison.columns
        if column not in comparison.metrics[:1] and (text := _alike(comparison, column)) is not None
    }
    left = [column for column in comparison.columns if column not in alike]
    scores = [column for column in left if column in comparison.metrics][:MOST_SCORES]
    shown = (*scores, *(column for column in left if column.shown & Shown.KEY))
    return Layout(shown, tuple(column for column in left if column not in shown), _folded(comparison, alike))


def cell_text(configuration: Configuration, column: Column) -> str:
    """Mean and spread as tables print them."""
    found = configuration.estimate(column.name)
    if found is None:
        return ABSENT
    spread = found.standard_deviation if column.varies_over_seeds else None
    return column.text(found.mean) if spread is None else f"{column.text(found.mean)} ± {column.text(spread)}"


def seeds_differ(comparison: Comparison) -> bool:
    """Whether rows have different numbers of seeds, which a column then shows."""
    return len({configuration.seeds for configuration in comparison.scored if configuration.varies_over_seeds}) > 1


def letters_note(found: Significance, metric: Column) -> str:
    """A sentence that says which configurations belong to the group of each letter."""
    by_letter = dict(zip(_letters(found), found.groups, strict=True))
    if len(by_letter) == 1:
        return f"Group: all share a letter, so that none can be told apart in {metric.title}."
    members = "; ".join(f"{letter}: {', '.join(names)}" for letter, names in by_letter.items())
    return f"Group: rows that share a letter cannot be told apart in {metric.title} ({members})."


def _letters(found: Significance) -> list[str]:
    from bench.statistics.groups import letter

    return [letter(index) for index in range(len(found.groups))]


def _alike(comparison: Comparison, column: Column) -> str | None:
    """The text that all rows share; None if rows differ, or if a row that was trained has no value."""
    configurations = [
        configuration for configuration in comparison.scored if configuration.estimate(column.name) is not None
    ]
    if len(configurations) < 2 or any(
        configuration.trains and configuration not in configurations for configuration in comparison.scored
    ):
        return None
    texts = {
        cell_text(configuration, column).removesuffix(f" ± {column.text(0.0)}") for configuration in configurations
    }
    return texts.pop() if len(texts) == 1 else None


def _folded(comparison: Comparison, alike: Mapping[Column, str]) -> str:
    texts = [f"{column.title} {text}" for column, text in alike.items()]
    if comparison.several_seeds and not seeds_differ(comparison):
        varying = (configuration.seeds for configuration in comparison.scored if configuration.varies_over_seeds)
        texts.append(f"seeds {next(varying, '1')}")
    return f"Folded away, the same in every row that has it: {', '.join(texts)}." if texts else ""
