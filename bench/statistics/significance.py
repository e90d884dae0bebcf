"""Which methods of a comparison can be told apart, and what the number of seeds allows to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.record import TrialResult
from bench.statistics.differences import FEWEST_SEEDS, Difference, PairedTests
from bench.statistics.estimates import estimate, t_quantile
from bench.statistics.groups import groups, letters
from bench.statistics.systems import PairedSystems, load_system

# Seeds that are enough for differences of a usual size; fewer are worth a remark.
ENOUGH_SEEDS = 5
POWER = 0.8


@dataclass(frozen=True)
class Significance:
    """All methods of one comparison against each other, in one score.

    For reports: ``letters`` goes beside each row (methods that share one cannot be told apart), ``groups`` is the same
    as sets, best first, ``remarks`` are whole sentences that belong below the table.
    """

    metric: str
    sources: int
    means: dict[str, float]  # best first
    differences: tuple[Difference, ...]  # the better mean first, largest difference first; Holm-corrected
    groups: tuple[tuple[str, ...], ...]
    letters: dict[str, str]
    remarks: tuple[str, ...]

    @property
    def conclusive(self) -> bool:
        """Whether any pair has enough seeds to say something about the methods."""
        return any(one.conclusive for one in self.differences)


def significance(
    root: Path, cells: Mapping[str, Sequence[TrialResult]], metric: str, higher_is_better: bool
) -> Significance | None:
    """Test all pairs; None where there is no pair, or where sources have no share in the score.

    Args:
        root: Results folder of the sweep.
        cells: Name of each configuration to its final trials, failed ones included.
        metric: A score of the records.
        higher_is_better: Its direction.

    Raises:
        StatisticsError: The configurations were not tested on the same sources, or scores cannot be computed again.
    """
    loaded = [load_system(root, name, results) for name, results in cells.items()]
    known = [system for system in loaded if system.predictions and system.completed]
    if len(known) < 2:
        return None
    means = {
        system.name: found.mean
        for system in known
        if (found := estimate([outcome.scores.values[metric] for outcome in system.completed.values()])) is not None
    }
    order = sorted(means, key=lambda name: -means[name] if higher_is_better else means[name])
    by_name = {system.name: system for system in known}
    paired = PairedSystems(tuple(by_name[name] for name in order))
    made = paired.statistics(metric)
    if made is None:
        return None
    score, statistics = made
    differences = PairedTests(paired.sources, score).all_pairs(statistics)
    apart = [(one.first, one.second) for one in differences if one.told_apart]
    return Significance(
        metric=metric,
        sources=paired.sources,
        means={name: means[name] for name in order},
        differences=tuple(sorted(differences, key=lambda one: -abs(one.difference))),
        groups=tuple(groups(order, apart)),
        letters=letters(order, apart),
        remarks=(*_failed(cells, by_name), *_remarks(differences)),
    )


def _failed(cells: Mapping[str, Sequence[TrialResult]], known: Mapping[str, object]) -> list[str]:
    lines = []
    for name, results in cells.items():
        failed = sum(result.outcome.status == "failed" for result in results)
        if failed and name in known:
            lines.append(
                f"{name}: {failed} of {len(results)} seeds failed, so that its differences are over the others."
            )
    return lines


def _remarks(differences: Sequence[Difference]) -> list[str]:
    """What the number of seeds allows to say."""
    few = [one for one in differences if not one.conclusive]
    if few:
        which = (
            "" if len(few) == len(differences) else f" for {', '.join(f'{one.first} and {one.second}' for one in few)}"
        )
        fewest = min(one.seeds for one in few)
        pairs = "One pair of seeds" if fewest == 1 else f"{fewest} pairs of seeds"
        return [
            f"{pairs}{which}: too few to conclude anything about the methods. What differs are these trained models, "
            f"on these sources. {FEWEST_SEEDS} seeds are the least, 5 to 10 are better."
        ]
    fewest = min(one.seeds for one in differences)
    found = [one for one in differences if one.standard_error is not None]
    if fewest >= ENOUGH_SEEDS or not found:
        return []
    return [
        f"With {fewest} pairs of seeds, a difference has to be up to {max(map(smallest_found, found)):.2g} to be found "
        "in four of five experiments; smaller ones may stay undecided."
    ]


def smallest_found(difference: Difference) -> float:
    """The true difference that a test with this standard error finds with a power of 0.8, uncorrected."""
    if difference.standard_error is None or difference.degrees_of_freedom is None:
        raise ValueError(f"{difference.first} and {difference.second} have no standard error over seeds")
    freedom = difference.degrees_of_freedom
    return (t_quantile(0.975, freedom) + t_quantile(POWER, freedom)) * difference.standard_error
