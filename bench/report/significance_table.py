"""The part of a report that says which differences hold: groups, pairs and what the seeds allow to conclude."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.report.column import ABSENT, Column
from bench.report.configurations import Comparison, Configuration, chosen_of_methods, of_too_few_seeds
from bench.schema.trial import JsonDict
from bench.statistics.estimates import FEWEST_SEEDS, LEVEL, seeds_text

if TYPE_CHECKING:
    from bench.statistics.differences import Difference
    from bench.statistics.significance import Significance

# Nobody reads all pairs of more configurations, and testing them takes long. Then one of each method is tested, which
# the dev loss has chosen.
MOST_CONFIGURATIONS = 12
# All pairs of so many configurations are shown; if there are more, each is shown against the best.
MOST_IN_FULL = 5

# What the p-value of trained models is made by, exactly or not.
TESTS_OF_MODELS = {True: "McNemar's test in its exact form", False: "approximate randomisation"}
PAIR_HEADING = ("", "mean", "against", "mean", "difference", "95 % interval", "p", "p, these models")


def tested_significance(root: Path, comparison: Comparison) -> Significance | str | None:
    """Tests in the first metric; a sentence where they cannot be made, None where there is nothing to test.

    Args:
        root: Results folder of the sweep.
        comparison: Configurations of one model and task.
    """
    from bench.statistics.significance import significance  # imported late, because its imports take long
    from bench.statistics.systems import StatisticsError

    configurations = tested_configurations(comparison)
    if not comparison.metrics or len(configurations) < 2:
        return None
    first = comparison.metrics[0]
    results = {configuration.name: configuration.results for configuration in configurations}
    try:
        found = significance(root, results, first.name, first.higher_is_better)
        return None if found is None else replace(found, remarks=(*found.remarks, *_not_tested(comparison)))
    except StatisticsError as error:
        return f"Differences are not tested: {error}."


def tested_configurations(comparison: Comparison) -> list[Configuration]:
    """The configurations that are tested against each other."""
    enough = _of_enough_seeds(comparison)
    return enough if len(enough) <= MOST_CONFIGURATIONS else chosen_of_methods(enough)


def _of_enough_seeds(comparison: Comparison) -> list[Configuration]:
    few = {id(configuration) for configuration in of_too_few_seeds(comparison.scored)}
    return [configuration for configuration in comparison.scored if id(configuration) not in few]


def _not_tested(comparison: Comparison) -> list[str]:
    """Remarks on the configurations that are not tested, with the reasons."""
    remarks = [
        f"{configuration.name}: {seeds_text(len(configuration.completed))}, not tested: {FEWEST_SEEDS} are the least."
        for configuration in of_too_few_seeds(comparison.scored)
    ]
    if left_out := len(_of_enough_seeds(comparison)) - len(tested_configurations(comparison)):
        remarks.append(
            f"{left_out} more configurations are not tested: of each method, the one with the lowest dev loss is."
        )
    return remarks


def letters_of(found: Significance | str | None) -> Mapping[str, str]:
    """Letters of the groups by configuration; empty where nothing can be concluded."""
    return found.letters if found is not None and not isinstance(found, str) and found.conclusive else {}


def pair_rows(found: Significance, metric: Column) -> list[list[str]]:
    """Rows under :data:`PAIR_HEADING`: all pairs of a few configurations, of many each against the best."""
    best = next(iter(found.means))
    shown = [one for one in found.differences if len(found.means) <= MOST_IN_FULL or best in (one.first, one.second)]
    return [
        [
            one.first,
            metric.text(one.first_mean),
            one.second,
            metric.text(one.second_mean),
            f"{one.difference * metric.scale:+.{metric.decimals}f}",
            f"{one.low * metric.scale:+.{metric.decimals}f} to {one.high * metric.scale:+.{metric.decimals}f}",
            p_text(one.p_adjusted) if one.conclusive else ABSENT,
            p_text(one.p_randomisation),
        ]
        for one in shown
    ]


def pair_note(found: Significance, metric: Column) -> str:
    """A note that explains the columns of the pairs."""
    corrected = (
        "p: that methods without a difference come out as far apart on new seeds and new sources, corrected for the "
        f"number of pairs ({'Holm' if found.by_pair else 'Shaffer'}); intervals carry the same correction and leave "
        "out 0 where p is below 0.05."
        if found.conclusive
        else "Intervals are over these sources, corrected for the number of pairs."
    )
    exactly = {one.exactly for one in found.differences}
    tests = [name for exact, name in TESTS_OF_MODELS.items() if exact in exactly]
    return (
        f"Differences in {metric.title} over {found.sources} test sources, seeds paired. {corrected} p, these models: "
        f"the same for the trained models at hand, over sources alone ({' or '.join(tests)}), not corrected."
    )


def p_text(p_value: float | None) -> str:
    """A p-value as tables print it; one below the level never reads as the level itself."""
    if p_value is None:
        return ABSENT
    text = f"{p_value:.3f}"
    if p_value < 0.001:
        return "< 0.001"
    return f"< {LEVEL}" if p_value < LEVEL <= float(text) else text


def significance_document(found: Significance | str | None) -> JsonDict | str | None:
    """The tests for report.json, unrounded."""
    if found is None or isinstance(found, str):
        return found
    return {
        "metric": found.metric,
        "sources": found.sources,
        "seeds": found.seeds,
        "leaders": found.leaders,
        "groups": found.groups,
        "letters": found.letters,
        "differences": [_pair(one) for one in found.differences],
        "remarks": found.remarks,
    }


def _pair(one: Difference) -> JsonDict:
    return {**vars(one), "conclusive": one.conclusive, "told_apart": one.told_apart}
