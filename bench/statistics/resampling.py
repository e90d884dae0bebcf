"""Resamples sources, to see which differences the choice of test sources could explain.

R resamples, S seeds, M sources, K statistics of a source.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from bench.metrics.metric import Array, Score

RESAMPLES = 1000
# sacrebleu's own seed, so that both draw the same resamples.
RESAMPLING_SEED = 12345
# Scores that differ by less count as equal.
ROUNDING = 1e-9


def bootstrap_counts(resamples: int, sources: int, seed: int = RESAMPLING_SEED) -> Array:
    """How often each source is drawn, ``(R, M)``; the draws are sacrebleu's."""
    drawn = np.random.default_rng(seed).choice(sources, size=(resamples, sources), replace=True)
    places = drawn + np.arange(resamples)[:, None] * sources
    return np.bincount(places.ravel(), minlength=resamples * sources).reshape(resamples, sources).astype(np.float64)


def random_swaps(resamples: int, sources: int, seed: int = RESAMPLING_SEED) -> Array:
    """Which sources change sides, ``(R, M)`` of 0 and 1; the draws are sacrebleu's."""
    return np.random.default_rng(seed).integers(2, size=(resamples, sources), dtype=bool).astype(np.float64)


def corpus_scores(statistics: Array, score: Score) -> Array:
    """Score of each seed, ``(S,)``, from ``(S, M, K)``."""
    return score(statistics.sum(axis=-2))


def resampled_scores(statistics: Array, counts: Array, score: Score) -> Array:
    """Score of each seed in each resample, ``(R, S)``."""
    return score(_weighted(counts, statistics))


def sacrebleu_bootstrap(resamples: int, sources: int, seed: int, score: Score) -> Callable[[Array, Array], float]:
    """The p-value of sacrebleu's paired bootstrap (two-sided), but for ties, which count; of statistics ``(S, M, K)``.

    It compares the distances from their mean of *absolute* differences with the difference that was seen. These
    distances are too small where methods hardly differ: of equal pairs, 10 to 17 % come out below 0.05. Kept to be set
    beside published numbers; :func:`randomisation_p_value` is the one that holds.
    """
    counts = bootstrap_counts(resamples, sources, seed)

    def p_value(first: Array, second: Array) -> float:
        resampled = [resampled_scores(one, counts, score).mean(axis=1) for one in (first, second)]
        distances = np.abs(resampled[0] - resampled[1])
        observed = float((corpus_scores(first, score) - corpus_scores(second, score)).mean())
        return _p_value(distances - distances.mean(), abs(observed))

    return p_value


def randomisation_p_value(first: Array, second: Array, swaps: Array, score: Score) -> float:
    """Two-sided approximate randomisation (Riezler & Maxwell 2005), stratified by seed.

    A source changes sides as a whole, its predictions of every seed together, because what a source does to a score it
    does in every seed. The statistic is the mean over seeds of the difference of corpus scores. With one seed this is
    sacrebleu's test, except that ties count: sacrebleu finds a system to differ from itself.

    Args:
        first: Statistics ``(S, M, K)``.
        second: Likewise, of the same seeds and sources.
        swaps: From :func:`random_swaps`.
        score: Of sums.
    """
    difference = float((corpus_scores(first, score) - corpus_scores(second, score)).mean())
    moved = _weighted(swaps, first - second)  # (R, S, K)
    swapped_first = score(second.sum(axis=-2) + moved)
    swapped_second = score(first.sum(axis=-2) - moved)
    return _p_value(np.abs((swapped_first - swapped_second).mean(axis=-1)), abs(difference))


def exact_paired_p_value(first: Array, second: Array) -> float | None:
    """The same question answered exactly, for means of right and wrong; None for other scores and for several seeds.

    Of the sources that one system has right and the other wrong, each is as likely to favour either side: the two-sided
    sign test, which is the exact form of McNemar's.

    Args:
        first: Statistics ``(S, M, K)``.
        second: Likewise, of the same seeds and sources.
    """
    both = np.stack([first, second])
    if both.shape[1] > 1 or both.shape[-1] != 2 or (both[..., 1] != 1).any() or len(np.unique(both[..., 0])) > 2:
        return None
    gained = int((first[..., 0] > second[..., 0]).sum())
    lost = int((first[..., 0] < second[..., 0]).sum())
    differing = gained + lost
    ways = sum(math.comb(differing, count) for count in range(min(gained, lost) + 1))
    return min(1.0, float(Fraction(2 * ways, 2**differing)))


def _weighted(weights: Array, statistics: Array) -> Array:
    """``(R, M)`` and ``(S, M, K)`` to ``(R, S, K)``, in one matrix product."""
    seeds, sources, size = statistics.shape
    flat = np.ascontiguousarray(statistics.transpose(1, 0, 2)).reshape(sources, seeds * size)
    return (weights @ flat).reshape(len(weights), seeds, size)


def _p_value(resampled: NDArray[np.float64], observed: float) -> float:
    return float((np.sum(resampled >= observed - ROUNDING) + 1) / (len(resampled) + 1))
