"""The answer in a sentence: who leads in the first score, and who cannot be told apart from the best."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.report.column import Column
from bench.report.configurations import Comparison, Configuration, of_too_few_seeds
from bench.statistics.estimates import seeds_text

if TYPE_CHECKING:
    from bench.statistics.significance import Significance

# So many names stand in a sentence; further ones are counted.
MOST_NAMES = 6
MOST_FOLLOWING = 3


def headline(comparison: Comparison, found: Significance | str | None) -> str | None:
    """Names the group that leads; None without a score.

    Args:
        comparison: Best first.
        found: Which differences hold, or why that is not known.
    """
    if not comparison.metrics:
        return None
    metric = comparison.metrics[0]
    known = [configuration for configuration in comparison.scored if configuration.mean(metric.name) is not None]
    if not known:
        return None
    if metric.higher_is_better is None:
        listed = ", ".join(_with_mean(configuration, metric) for configuration in known[:MOST_NAMES])
        more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
        return f"{metric.title}: {listed}{more}. Neither end of this score is the better one, so that nobody leads."
    if len(known) == 1:
        return f"{metric.title}: {_with_interval(known[0], metric)}. There is nothing to compare it with."
    if found is None or isinstance(found, str) or not found.conclusive:
        best = [one for one in known if one.mean(metric.name) == known[0].mean(metric.name)]
        following = _following(known[len(best) :], metric)
        return f"{metric.title}: {_best_means(best, metric)}: {_why_unknown(found)}. {following}".strip()
    by_name = {configuration.name: configuration for configuration in known}
    leaders = [by_name[name] for name in found.leaders]
    others = [
        configuration
        for configuration in known
        if configuration.name in found.means and configuration.name not in found.leaders
    ]
    if len(leaders) == 1:
        first = f"{metric.title}: {_with_interval(leaders[0], metric)} leads{_ahead(leaders[0], found, metric)}."
    else:
        names = [_with_mean(configuration, metric) for configuration in leaders[:MOST_NAMES]]
        more = f" and {len(leaders) - MOST_NAMES} more" if len(leaders) > MOST_NAMES else ""
        listed = ", ".join(names) + more if more else f"{', '.join(names[:-1])} and {names[-1]}"
        lead = "" if len(leaders) == len(found.means) else " lead and"
        first = f"{metric.title}: {listed}{lead} cannot be told apart."
    rest = _not_tested(comparison, len(known) - len(found.means))
    return " ".join(part for part in (first, _following(others, metric), *rest) if part)


def _not_tested(comparison: Comparison, untested: int) -> list[str]:
    """Sentences that say which of the known configurations no test was made of, and why."""
    few = [configuration.name for configuration in of_too_few_seeds(comparison.scored)]
    sentences = []
    if not_chosen := max(0, untested - len(few)):
        sentences.append(
            f"Of each method the configuration with the lowest dev loss is tested, {not_chosen} more are not."
        )
    if few:
        more = f" and {len(few) - MOST_FOLLOWING} more" if len(few) > MOST_FOLLOWING else ""
        sentences.append(f"Not tested, for want of seeds: {', '.join(few[:MOST_FOLLOWING])}{more}.")
    return sentences


def _best_means(best: list[Configuration], metric: Column) -> str:
    """Whose mean is the best one, which several may have."""
    if len(best) == 1:
        return f"the best mean is that of {_with_mean(best[0], metric)}, which does not say that it leads"
    names = [configuration.name for configuration in best[:MOST_NAMES]]
    if len(best) > MOST_NAMES:
        names.append(f"{len(best) - MOST_NAMES} more")
    mean = metric.text(best[0].mean(metric.name) or 0.0)
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{listed} have the same best mean ({mean}), which does not say that they are equal"


def _with_mean(configuration: Configuration, metric: Column) -> str:
    found = configuration.estimate(metric.name)
    return configuration.name if found is None else f"{configuration.name} ({metric.text(found.mean)})"


def _with_interval(configuration: Configuration, metric: Column) -> str:
    found = configuration.estimate(metric.name)
    if found is None or found.half_width is None:
        return _with_mean(configuration, metric)
    count = len(found.values)
    return (
        f"{configuration.name} ({metric.text(found.mean)}, 95 % interval over {found.basis} {metric.text(found.low)} "
        f"to {metric.text(found.high)}, {seeds_text(count)})"
    )


def _ahead(best: Configuration, found: Significance, metric: Column) -> str:
    """By how much the leader is ahead of the nearest other configuration."""
    nearest = min((one for one in found.differences if one.first == best.name), key=lambda one: abs(one.difference))
    ahead = f"{abs(nearest.difference) * metric.scale:.{metric.decimals}f}"
    return f", by {ahead} over {nearest.second}"


def _following(others: list[Configuration], metric: Column) -> str:
    following = ", ".join(_with_mean(configuration, metric) for configuration in others[:MOST_FOLLOWING])
    more = f" and {len(others) - MOST_FOLLOWING} more" if len(others) > MOST_FOLLOWING else ""
    return f"Next: {following}{more}." if following else ""


def _why_unknown(found: Significance | str | None) -> str:
    if isinstance(found, str):
        return found[0].lower() + found[1:].rstrip(".")
    return "there are too few seeds to tell" if found is not None else "differences are not tested without predictions"
