"""Which columns a table shows: quality, trained parameters, memory and throughput; what says nothing is folded away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.report.column import ABSENT, Column, Shown
from bench.report.configurations import Comparison, Configuration

if TYPE_CHECKING:
    from bench.statistics.significance import Significance

# As many as papers print; a task may have a dozen diagnostics beside its official scores, which come first.
MOST_SCORES = 5
# Rows of a table on the page or in report.md; of more, the first, and report.json has the rest.
MOST_ROWS = 100


@dataclass(frozen=True)
class Layout:
    """The columns of one comparison."""

    shown: tuple[Column, ...]  # scores and test loss, then costs
    further: tuple[Column, ...]  # that differ between rows, but are not what one looks for first
    folded: str  # in one line, the columns that are alike in all rows; empty without such


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
    """Whether rows have different numbers of seeds, so that a column has to tell them."""
    return len({configuration.seeds for configuration in comparison.scored if configuration.trains}) > 1


def letters_note(found: Significance, metric: Column) -> str:
    """What the letters of groups mean, with the members of each."""
    by_letter = dict(zip(_letters(found), found.groups, strict=True))
    if len(by_letter) == 1:
        return f"Group: all share a letter, so that none can be told apart in {metric.title}."
    members = "; ".join(f"{letter}: {', '.join(names)}" for letter, names in by_letter.items())
    return f"Group: rows that share a letter cannot be told apart in {metric.title} ({members})."


def _letters(found: Significance) -> list[str]:
    from bench.statistics.groups import letter

    return [letter(index) for index in range(len(found.groups))]


def _alike(comparison: Comparison, column: Column) -> str | None:
    """What stands in every row; None where rows differ, and where a row that was trained has no value."""
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
    told = [f"{column.title} {text}" for column, text in alike.items()]
    if comparison.several_seeds and not seeds_differ(comparison):
        told.append(
            f"seeds {next((configuration.seeds for configuration in comparison.scored if configuration.trains), '1')}"
        )
    return f"Folded away, the same in every row that has it: {', '.join(told)}." if told else ""
