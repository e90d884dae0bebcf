"""Whether two methods differ, over seeds and over sources together.

S seeds, M sources, K statistics of a source, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.statistics.corpus_scores import Array, Score
from bench.statistics.estimates import holm, t_quantile, two_sided_p
from bench.statistics.resampling import (
    RESAMPLES,
    RESAMPLING_SEED,
    bootstrap_counts,
    bootstrap_p_value,
    corpus_scores,
    random_swaps,
    randomisation_p_value,
    resampled_scores,
)

LEVEL = 0.05
# With fewer pairs of seeds the spread over seeds is unknown, or known so badly that nothing follows from it.
FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Difference:
    """First method minus second, in one score."""

    first: str
    second: str
    difference: float  # of the means over seeds
    low: float  # of the 95 % interval: over seeds and sources, or over sources alone with a single pair of seeds
    high: float
    seeds: int  # pairs of seeds that both completed
    standard_error: float | None  # over seeds and sources; None with a single pair of seeds
    degrees_of_freedom: float | None
    p_value: float | None  # that methods of equal mean differ as much, on new seeds and new sources
    p_bootstrap: float  # for these trained models: over sources alone
    p_randomisation: float  # likewise
    p_adjusted: float | None = None  # p_value after Holm's correction over all pairs of the comparison

    @property
    def conclusive(self) -> bool:
        """Whether there are enough seeds to say anything about the methods."""
        return self.p_value is not None and self.seeds >= FEWEST_SEEDS

    @property
    def told_apart(self) -> bool:
        """Whether the methods differ beyond chance, after the correction where there is one."""
        p_value = self.p_value if self.p_adjusted is None else self.p_adjusted
        return self.conclusive and p_value is not None and p_value < LEVEL


@dataclass(frozen=True)
class SeedStatistics:
    """What one method's seeds predicted, as statistics of single sources."""

    values: Array  # (S, M, K)
    seeds: tuple[int, ...] | None  # one for each of S; None: nothing was trained, S = 1, and it holds for every seed


class PairedTests:
    """Paired tests on one set of test sources. All pairs see the same resamples.

    Args:
        sources: M.
        score: Of sums of statistics.
        resamples: R.
        seed: Of the resamples.
    """

    def __init__(self, sources: int, score: Score, resamples: int = RESAMPLES, seed: int = RESAMPLING_SEED) -> None:
        self.score = score
        self.counts = bootstrap_counts(resamples, sources, seed)
        self.swaps = random_swaps(resamples, sources, seed)

    def all_pairs(self, methods: Mapping[str, SeedStatistics]) -> list[Difference]:
        """Every method against every other, Holm-corrected."""
        resampled = {name: resampled_scores(one.values, self.counts, self.score) for name, one in methods.items()}
        names = list(methods)
        found = [
            self._difference(first, second, methods, resampled)
            for index, first in enumerate(names)
            for second in names[index + 1 :]
        ]
        return corrected(found)

    def _difference(
        self, first: str, second: str, methods: Mapping[str, SeedStatistics], resampled: Mapping[str, Array]
    ) -> Difference:
        pairs = pairs_of_seeds(methods[first], methods[second])
        one = methods[first].values[[index for index, _ in pairs]]
        other = methods[second].values[[index for _, index in pairs]]
        resampled_one = resampled[first][:, [index for index, _ in pairs]]
        resampled_other = resampled[second][:, [index for _, index in pairs]]
        of_seeds = corpus_scores(one, self.score) - corpus_scores(other, self.score)  # (S,)
        difference = float(of_seeds.mean())
        of_resamples = resampled_one - resampled_other  # (R, S)
        tests = {
            "p_bootstrap": bootstrap_p_value(resampled_one.mean(axis=1), resampled_other.mean(axis=1), difference),
            "p_randomisation": randomisation_p_value(one, other, self.swaps, self.score),
        }
        if len(pairs) == 1:
            low, high = np.quantile(of_resamples[:, 0], [LEVEL / 2, 1 - LEVEL / 2])
            return Difference(first, second, difference, float(low), float(high), 1, None, None, None, **tests)
        error, freedom = standard_error(of_seeds, of_resamples, one.shape[1])
        p_value = two_sided_p(difference / error, freedom) if error > 0 else float(difference == 0)
        half_width = t_quantile(1 - LEVEL / 2, freedom) * error
        return Difference(
            first,
            second,
            difference,
            difference - half_width,
            difference + half_width,
            len(pairs),
            error,
            freedom,
            p_value,
            **tests,
        )


def pairs_of_seeds(first: SeedStatistics, second: SeedStatistics) -> list[tuple[int, int]]:
    """Places of the seeds that stand against each other: equal ones. Where none are equal, in their order."""
    if first.seeds is None or second.seeds is None:
        most = max(len(first.values), len(second.values))
        return [(index if first.seeds else 0, index if second.seeds else 0) for index in range(most)]
    common = [seed for seed in first.seeds if seed in second.seeds]
    if not common:
        return [(index, index) for index in range(min(len(first.seeds), len(second.seeds)))]
    return [(first.seeds.index(seed), second.seeds.index(seed)) for seed in common]


def standard_error(of_seeds: Array, of_resamples: Array, sources: int) -> tuple[float, float]:
    """Standard error of a mean difference over seeds and sources, and its degrees of freedom.

    Seeds and sources are crossed: every seed meets every source. The variance over seeds (divided by S) and that of the
    resampled mean over sources both hold the variance of seed and source together, which is estimated from how much
    more single seeds vary over the resamples than their mean does, and taken off once. The sum is no smaller than
    either part. Degrees of freedom are Satterthwaite's.

    A bootstrap over seeds would be far too sure of itself with five of them; Student's t is not.

    Args:
        of_seeds: Difference of each pair of seeds, ``(S,)``, S of 2 or more.
        of_resamples: The same in each resample of the sources, ``(R, S)``.
        sources: M.
    """
    seeds = len(of_seeds)
    over_seeds = float(of_seeds.var(ddof=1)) / seeds
    over_sources = float(of_resamples.mean(axis=1).var(ddof=1))
    both = max(0.0, float(of_resamples.var(axis=0, ddof=1).mean()) - over_sources) / (seeds - 1)
    variance = max(over_seeds + over_sources - both, over_seeds, over_sources)
    spread = over_seeds**2 / (seeds - 1) + over_sources**2 / (sources - 1) + both**2 / ((seeds - 1) * (sources - 1))
    return math.sqrt(variance), variance**2 / spread if spread > 0 else float(seeds - 1)


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """The same with Holm's correction over those that have a p-value."""
    tested = [one for one in differences if one.p_value is not None]
    adjusted = dict(zip(map(id, tested), holm([one.p_value for one in tested if one.p_value is not None]), strict=True))
    return [replace(one, p_adjusted=adjusted.get(id(one))) for one in differences]
