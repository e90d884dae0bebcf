"""Finds the methods of a comparison that can be told apart, and says what the number of seeds allows to conclude."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.schema.record import TrialResult
from bench.statistics.differences import Difference, PairedTests, SeedStatistics
from bench.statistics.estimates import FEWEST_SEEDS, Estimate, common_seeds, t_quantile
from bench.statistics.groups import groups, letters
from bench.statistics.systems import PairedSystems, StatisticsError, load_system

# So many seeds are enough for differences of a usual size. A remark says if there are fewer.
ENOUGH_SEEDS = 5
POWER = 0.8


@dataclass(frozen=True)
class Significance:
    """All methods of one comparison against each other, in one score.

    For reports: ``letters`` goes beside each row (methods that share one cannot be told apart), ``groups`` is the same
    as sets, best first, ``leaders`` is the answer in short, ``remarks`` are whole sentences that belong below the
    table.
    """

    metric: str
    higher_is_better: bool | None
    sources: int
    seeds: tuple[int, ...] | None  # that all means and differences are over; None where each pair has its own
    by_pair: bool  # whether each pair has seeds of its own: pairs are then corrected for by Holm, else by Shaffer
    estimates: dict[str, Estimate]  # best first, with intervals for new seeds and new sources
    differences: tuple[Difference, ...]  # the better mean first, largest difference first; corrected
    groups: tuple[tuple[str, ...], ...]
    letters: dict[str, str]
    remarks: tuple[str, ...]

    @property
    def means(self) -> dict[str, float]:
        """Mean of each method, best first."""
        return {name: one.mean for name, one in self.estimates.items()}

    @property
    def conclusive(self) -> bool:
        """Whether any pair has enough seeds to say something about the methods."""
        return any(one.conclusive for one in self.differences)

    @property
    def leaders(self) -> tuple[str, ...]:
        """The method with the best mean and all that cannot be told apart from it, best first.

        None of a score without a direction.
        """
        if self.higher_is_better is None:
            return ()
        best = next(iter(self.estimates))
        behind = {
            one.second
            for one in self.differences
            # A pair has seeds of its own, over which its order may be the reverse of that of the means.
            if one.told_apart and one.first == best and (one.difference > 0) == self.higher_is_better
        }
        return tuple(name for name in self.estimates if name not in behind)


def significance(
    root: Path,
    configurations: Mapping[str, Sequence[TrialResult]],
    metric: str,
    higher_is_better: bool | None,
    sacrebleu: bool = False,
) -> Significance | None:
    """Test all pairs; None if there is no pair, or if the score has no values of single sources.

    Args:
        root: Results folder of the sweep.
        configurations: Name of each configuration to its final trials, failed ones included.
        metric: A score of the records.
        higher_is_better: Its direction; without one (None) nobody leads.
        sacrebleu: Whether p-values of sacrebleu's own bootstrap are given too, which call too much.

    Raises:
        StatisticsError: The configurations were not tested on the same sources, or scores cannot be computed again.
    """
    loaded = [load_system(root, name, results) for name, results in configurations.items()]
    known = [system for system in loaded if system.predictions and system.completed]
    if len(known) < 2:
        return None
    paired = PairedSystems(tuple(known))
    made = paired.statistics(metric)
    if made is None:
        paired.check()
        return None
    if paired.sources < 2:
        raise StatisticsError("there is one test source, which says nothing about others")
    score, statistics = made
    tests = PairedTests(paired.sources, score, sacrebleu=sacrebleu)
    common = common_seeds([one.seeds for one in statistics.values()])
    estimates = {name: tests.estimate(_at(one, common)) for name, one in statistics.items()}
    order = sorted(estimates, key=lambda name: -estimates[name].mean if higher_is_better else estimates[name].mean)
    differences = tests.all_pairs({name: statistics[name] for name in order})
    apart = [(one.first, one.second) for one in differences if one.told_apart]
    return Significance(
        metric=metric,
        higher_is_better=higher_is_better,
        sources=paired.sources,
        seeds=None if common is None or not any(one.seeds for one in statistics.values()) else common,
        by_pair=common is None,
        estimates={name: estimates[name] for name in order},
        differences=tuple(sorted(differences, key=lambda one: -abs(one.difference))),
        groups=tuple(groups(order, apart)),
        letters=letters(order, apart),
        remarks=(*_failed(configurations, statistics, common), *_remarks(differences)),
    )


def _at(one: SeedStatistics, common: Sequence[int] | None) -> SeedStatistics:
    """The common seeds of a method, where there are any."""
    if common is None or one.seeds is None:
        return one
    return SeedStatistics(one.values[[one.seeds.index(seed) for seed in common]], tuple(common))


def _failed(
    configurations: Mapping[str, Sequence[TrialResult]],
    known: Mapping[str, SeedStatistics],
    common: Sequence[int] | None,
) -> list[str]:
    """Remarks on missing seeds, and on the seeds that means and differences are therefore over."""
    lines = []
    for name, results in configurations.items():
        failed = sum(result.outcome.status == "failed" for result in results)
        if failed and name in known:
            lines.append(f"{name}: {failed} of {len(results)} seeds failed.")
    having = {one.seeds for one in known.values() if one.seeds is not None}
    if len(having) < 2:
        return lines
    if common is not None:
        seeds = ", ".join(map(str, common))
        return [*lines, f"Means and differences are over the seeds that all completed ({seeds})."]
    return [
        *lines,
        f"Fewer than {FEWEST_SEEDS} seeds were completed by all: each difference, and the means beside it, are over "
        "the seeds that its pair has in common, and means in other tables over each configuration's own seeds.",
    ]


def _remarks(differences: Sequence[Difference]) -> list[str]:
    """Remarks on what the number of seeds allows to conclude."""
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
    over_seeds = [one for one in differences if not one.fixed]
    fewest = min((one.seeds for one in over_seeds), default=ENOUGH_SEEDS)
    if fewest >= ENOUGH_SEEDS:
        return []
    return [
        f"With {fewest} pairs of seeds, a difference has to be up to {max(map(smallest_found, over_seeds)):.2g} to be "
        "found in four of five experiments; smaller ones may stay undecided."
    ]


def smallest_found(difference: Difference) -> float:
    """The true difference that the corrected test finds with a power of about 0.8 at this spread."""
    half_width = (difference.high - difference.low) / 2
    return half_width + t_quantile(POWER, difference.seeds - 1) * difference.standard_error
