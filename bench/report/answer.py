"""The sentences below the headline: by how much the best configurations lead, with intervals, and at what cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.report.column import Column, compact
from bench.report.columns import TRAINED
from bench.report.configurations import Comparison, Configuration

if TYPE_CHECKING:
    from bench.statistics.differences import Difference
    from bench.statistics.significance import Significance

# So many configurations are told with intervals and costs; the table has the others.
MOST_IN_SENTENCE = 3


def answer(comparison: Comparison, found: Significance | str | None) -> list[str]:
    """Sentences about those that lead, or about the best mean where that is not known.

    None without a score, and of one without a direction.

    Args:
        comparison: Best first.
        found: Which differences hold, or why that is not known.
    """
    if not comparison.metrics or comparison.metrics[0].higher_is_better is None:
        return []
    metric = comparison.metrics[0]
    known = [configuration for configuration in comparison.scored if configuration.mean(metric.name) is not None]
    tested = found if found is not None and not isinstance(found, str) and found.conclusive else None
    leaders = (
        [configuration for configuration in known if configuration.name in tested.leaders] if tested else known[:1]
    )
    lines = [_margin(leaders, tested, metric) if tested else _interval(leaders, metric), _price(comparison, leaders)]
    return [line for line in lines if line]


def _margin(leaders: list[Configuration], found: Significance, metric: Column) -> str:
    """The lead of one leader over the next configuration, or how far several leaders are apart at most."""
    best = leaders[0].name
    others = {configuration.name for configuration in leaders[1:]}
    pairs = [one for one in found.differences if one.first == best and (not others or one.second in others)]
    if not pairs:
        return ""
    if others:
        widest = max(pairs, key=lambda one: abs(one.difference))
        return f"By how much: {best} is {_difference(widest, metric)} {widest.second}, which may be chance."
    nearest = min(pairs, key=lambda one: abs(one.difference))
    return f"By how much: {best} is {_difference(nearest, metric)} {nearest.second}."


def _difference(one: Difference, metric: Column) -> str:
    def signed(value: float) -> str:
        return f"{value * metric.scale:+.{metric.decimals}f}"

    side = "above" if one.difference >= 0 else "below"
    size = f"{abs(one.difference) * metric.scale:.{metric.decimals}f}"
    return f"{size} {metric.title} (95 % interval of the difference {signed(one.low)} to {signed(one.high)}) {side}"


def _interval(leaders: list[Configuration], metric: Column) -> str:
    found = leaders[0].estimate(metric.name) if leaders else None
    if found is None or found.half_width is None:
        return ""
    return (
        f"By how much: not known. 95 % interval of {leaders[0].name} over {found.basis}: {metric.text(found.low)} to "
        f"{metric.text(found.high)}."
    )


def _price(comparison: Comparison, leaders: list[Configuration]) -> str:
    prices = [text for configuration in leaders[:MOST_IN_SENTENCE] if (text := _costs(comparison, configuration))]
    if not prices:
        return ""
    rest = len(leaders) - MOST_IN_SENTENCE
    more = f"; the table has the costs of {rest} more" if rest > 0 else ""
    return f"At what cost: {'; '.join(prices)}{more}."


def _costs(comparison: Comparison, configuration: Configuration) -> str:
    shown = []
    if (trained := configuration.mean(TRAINED.name)) is not None:
        share = configuration.mean("trained_percent")
        of_all = "" if share is None else f" ({share:.3g} % of all)"
        shown.append(f"{compact(trained)} parameters trained{of_all}")
    for column in comparison.columns:
        if column.sentence_part and (mean := configuration.mean(column.name)) is not None:
            shown.append(column.sentence_part.format(column.text(mean)))
    return f"{configuration.name} {', '.join(shown)}" if shown else ""
