"""Tests whether two methods differ, over seeds and sources together.

S seeds, M sources, K statistics of a source, N pairs, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.metrics.metric import Array, Score, mean
from bench.statistics.bounds import Spread, joined, shaffer_multipliers, step_down
from bench.statistics.estimates import FEWEST_SEEDS, LEVEL, Estimate, common_seeds
from bench.statistics.resampling import (
    RESAMPLES,
    RESAMPLING_SEED,
    corpus_scores,
    exact_paired_p_value,
    random_swaps,
    randomisation_p_value,
    sacrebleu_bootstrap,
)
from bench.statistics.spreads import crossed, jackknife, method_spread, pair_spreads


@dataclass(frozen=True)
class Difference:
    """First method minus second, in one score, over the seeds that both completed."""

    first: str
    second: str
    difference: float  # of the means over seeds
    first_mean: float
    second_mean: float
    low: float  # of the interval, corrected like p_adjusted: it leaves out 0 if the methods are told apart
    high: float
    seeds: int  # pairs of seeds
    standard_error: float  # over seeds and sources; over sources alone with a single pair of seeds
    # The chance that equal methods differ as much, by the spread of these two alone; uncorrected. None of a single pair
    # of seeds of what seeds change.
    p_value: float | None
    p_randomisation: float  # for these trained models: over sources alone, by resamples or exactly; uncorrected
    p_adjusted: float | None = None  # over all pairs of the comparison; None where p_value is
    p_sacrebleu_bootstrap: float | None = None  # by sacrebleu's own formula, where it was asked for
    exactly: bool = False  # whether p_randomisation is that of McNemar's test in its exact form
    fixed: bool = False  # whether no seed changes either: then all there is to know is how other sources come out

    @property
    def conclusive(self) -> bool:
        """Whether there are enough seeds to say anything about the methods."""
        return self.p_value is not None and (self.fixed or self.seeds >= FEWEST_SEEDS)

    @property
    def told_apart(self) -> bool:
        """Whether the methods differ beyond chance, after the correction."""
        return self.conclusive and self.p_adjusted is not None and self.p_adjusted < LEVEL


@dataclass(frozen=True)
class SeedStatistics:
    """The predictions of one method's seeds, as statistics of single sources."""

    values: Array  # (S, M, K)
    seeds: tuple[int, ...] | None  # one for each of S; None: nothing was trained, S = 1, and it holds for every seed


@dataclass(frozen=True)
class _Method:
    """Scores of a method's seeds, and the influence of each source on them."""

    statistics: Array  # (S, M, K)
    scores: Array  # (S,)
    influences: Array  # (S, M)
    seeds: tuple[int, ...] | None

    def at(self, places: Sequence[int]) -> _Method:
        """The same method with the seeds at these places."""
        seeds = None if self.seeds is None else tuple(self.seeds[place] for place in places)
        chosen = list(places)
        return _Method(self.statistics[chosen], self.scores[chosen], self.influences[chosen], seeds)


class PairedTests:
    """Paired tests on one set of test sources.

    Args:
        sources: M, 2 or more.
        score: Of sums of statistics.
        resamples: R, of the randomisation and of sacrebleu's bootstrap.
        seed: Of the resamples.
        sacrebleu: Whether sacrebleu's bootstrap is computed too. It calls too many differences (10 to 17 % of equal
            pairs at 5 %), so that nothing here depends on it.
    """

    def __init__(
        self,
        sources: int,
        score: Score,
        resamples: int = RESAMPLES,
        seed: int = RESAMPLING_SEED,
        sacrebleu: bool = False,
    ) -> None:
        self.score = score
        self.swaps = random_swaps(resamples, sources, seed)
        self.bootstrap = sacrebleu_bootstrap(resamples, sources, seed, score) if sacrebleu else None

    def estimate(self, method: SeedStatistics) -> Estimate:
        """Mean over seeds, and an interval for the score on new seeds and new sources."""
        known = self._method(method)
        half_width = float(method_spread(known.scores, known.influences, known.seeds is not None).half_width(LEVEL))
        several = len(known.scores) > 1
        return Estimate(
            mean=float(known.scores.mean()),
            standard_deviation=float(known.scores.std(ddof=1)) if several else None,
            half_width=half_width,
            values=tuple(float(score) for score in known.scores),
            basis="seeds and sources" if several else "sources",
        )

    def all_pairs(self, methods: Mapping[str, SeedStatistics]) -> list[Difference]:
        """Test every pair of methods, corrected for the number of pairs.

        Where all methods that train have seeds in common, at least as many as a conclusion takes, these are counted
        alone, and the variance over seeds is estimated from all methods together
        (:func:`bench.statistics.spreads.pair_spreads`). Otherwise each pair stands by itself, over its own seeds.
        """
        known = {name: self._method(one) for name, one in methods.items()}
        names = list(methods)
        pairs = [(one, other) for index, one in enumerate(names) for other in names[index + 1 :]]
        common = common_seeds([one.seeds for one in methods.values()])
        if common is not None:
            at_common = {name: _at(one, common) for name, one in known.items()}
            tested = [_Pair(one, other, at_common[one], at_common[other]) for one, other in pairs]
            return self._corrected(tested, *_spreads(list(at_common.values())), shaffer_multipliers(len(names)))
        tested = [_Pair(one, other, *_paired(known[one], known[other])) for one, other in pairs]
        alone = [_spreads([pair.first, pair.second]) for pair in tested]
        own = joined([by_itself for _, by_itself, _ in alone])
        return self._corrected(tested, own, own, np.zeros(len(pairs), dtype=bool), list(range(len(pairs), 0, -1)))

    def _corrected(
        self,
        pairs: Sequence[_Pair],
        from_all: Spread,
        by_itself: Spread,
        pooled: NDArray[np.bool_],
        multipliers: Sequence[int],
    ) -> list[Difference]:
        """Differences with their corrected p-values, and intervals that leave out 0 where these are below the level."""
        differences = np.array([float((pair.first.scores - pair.second.scores).mean()) for pair in pairs])
        seeds = [len(pair.first.scores) for pair in pairs]
        own_level = np.where(pooled, level_of_own_seeds(min(seeds)), 1.0)
        own = by_itself.p_value(differences)
        against_own = np.minimum(1.0, own * LEVEL / own_level) * pooled
        adjusted, steps = step_down(from_all.p_value(differences), multipliers, against_own >= LEVEL)
        adjusted = np.maximum(adjusted, against_own)
        held = adjusted < LEVEL
        undecided = max((int(step) for step, apart in zip(steps, held, strict=True) if not apart), default=1)
        widths = np.maximum(
            from_all.half_width(LEVEL / np.where(held, steps, undecided)), by_itself.half_width(own_level) * pooled
        )
        of_these_models = list(map(self._of_these_models, pairs))
        return [
            Difference(
                first=pair.one,
                second=pair.other,
                difference=float(differences[place]),
                first_mean=float(pair.first.scores.mean()),
                second_mean=float(pair.second.scores.mean()),
                low=float(differences[place] - widths[place]),
                high=float(differences[place] + widths[place]),
                seeds=seeds[place],
                standard_error=float(from_all.standard_error[place]),
                p_value=float(own[place]) if pair.fixed or seeds[place] > 1 else None,
                p_adjusted=float(adjusted[place]) if pair.fixed or seeds[place] > 1 else None,
                p_randomisation=of_these_models[place][0],
                exactly=of_these_models[place][1],
                fixed=pair.fixed,
                p_sacrebleu_bootstrap=None
                if self.bootstrap is None
                else self.bootstrap(pair.first.statistics, pair.second.statistics),
            )
            for place, pair in enumerate(pairs)
        ]

    def _of_these_models(self, pair: _Pair) -> tuple[float, bool]:
        """Whether the trained models differ on other sources: exactly where that can be told, else by resamples.

        Returns:
            The p-value, and whether it is exact.
        """
        first, second = pair.first.statistics, pair.second.statistics
        exact = exact_paired_p_value(first, second) if self.score is mean else None
        if exact is not None:
            return exact, True
        return randomisation_p_value(first, second, self.swaps, self.score), False

    def _method(self, one: SeedStatistics) -> _Method:
        scores, influences = corpus_scores(one.values, self.score), jackknife(one.values, self.score)
        return _Method(one.values, scores, influences, one.seeds)


@dataclass(frozen=True)
class _Pair:
    """Two methods with the seeds that they have in common."""

    one: str
    other: str
    first: _Method
    second: _Method

    @property
    def fixed(self) -> bool:
        """Whether no seed changes either of the two."""
        return self.first.seeds is None and self.second.seeds is None


def level_of_own_seeds(seeds: int) -> float:
    """The level of the second test of a pair, by the spread of its own methods, after the pooled test has found it.

    The pool is too narrow for a method that spreads more than the others, which a handful of seeds may hide. The
    levels come out of the simulation in ``tests/programs/false_calls``: with them, equal methods of which one has six
    times the seed spread are called different in no more than 5 % of comparisons.
    """
    return min(LEVEL, 0.1 / max(1, seeds))


def pairs_of_seeds(first: Sequence[int] | None, second: Sequence[int] | None) -> list[tuple[int, int]]:
    """Places of paired seeds: equal seeds are paired; if there are none, seeds are paired in their order."""
    if first is None or second is None:
        most = max(len(first or (0,)), len(second or (0,)))
        return [(index if first else 0, index if second else 0) for index in range(most)]
    common = [seed for seed in first if seed in second]
    if not common:
        return [(index, index) for index in range(min(len(first), len(second)))]
    return [(first.index(seed), second.index(seed)) for seed in common]


def _paired(first: _Method, second: _Method) -> tuple[_Method, _Method]:
    places = pairs_of_seeds(first.seeds, second.seeds)
    return first.at([one for one, _ in places]), second.at([other for _, other in places])


def _at(method: _Method, seeds: Sequence[int]) -> _Method:
    return method.at([0] * len(seeds) if method.seeds is None else [method.seeds.index(seed) for seed in seeds])


def _spreads(methods: Sequence[_Method]) -> tuple[Spread, Spread, NDArray[np.bool_]]:
    trains = np.array([method.seeds is not None for method in methods])
    scores = np.stack([method.scores for method in methods])
    return pair_spreads(crossed(scores, np.stack([method.influences for method in methods]), trains))
