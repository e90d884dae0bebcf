"""How far means over seeds and sources may be off: of one method, of a pair, and of pairs with the seeds of all pooled.

Seeds and sources are crossed: every seed meets every source. Scores of a seed are exact; what the choice of sources
adds is estimated by the jackknife, which is linear in the sources and therefore gives every pair at once.

m methods, S seeds, M sources, N pairs of methods, ... any leading dimensions (experiments of a simulation).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.metrics.metric import Array, Score
from bench.statistics.bounds import Spread, Variance

# Degrees of freedom of a variance over M sources, as a share of M - 1. Single sources of scores like BLEU, longer and
# shorter ones, have heavier tails than a normal distribution, which makes their variance less certain: with an excess
# kurtosis of 1, by this share.
CERTAINTY_OF_SOURCES = 2 / 3
# A method whose seeds spread so much more than those of the others that equal methods do so in one of twenty
# comparisons is kept out of the pool.
LEVEL_OF_CHECK = 0.05


@dataclass(frozen=True)
class Crossed:
    """Methods that were tested with the same seeds on the same sources.

    Attributes:
        scores: Of each seed, ``(..., m, S)``.
        of_means: Covariance, over the choice of sources, of the means over seeds, ``(..., m, m)``.
        of_seeds: The same for single seeds, averaged over them, ``(..., m, m)``.
        sources: M.
        trains: Whether a method depends on seeds at all, ``(m,)``; the scores of the others are equal in all.
    """

    scores: Array
    of_means: Array
    of_seeds: Array
    sources: int
    trains: NDArray[np.bool_]


def jackknife(statistics: Array, score: Score) -> Array:
    """What each source moves a score by, ``(..., M)``: pseudo-values about their mean.

    Their variance divided by M is the variance of the score over new sources (Efron & Stein 1981: on average no
    smaller than it is).

    Args:
        statistics: ``(..., M, K)``.
        score: Of sums.
    """
    total = statistics.sum(axis=-2, keepdims=True)
    without = score(total - statistics)
    moved: Array = (statistics.shape[-2] - 1) * (without.mean(axis=-1, keepdims=True) - without)
    return moved


def crossed(scores: Array, influences: Array, trains: NDArray[np.bool_]) -> Crossed:
    """Put together scores ``(..., m, S)`` and influences of sources ``(..., m, S, M)``."""
    sources = influences.shape[-1]
    by_seed = np.moveaxis(influences, -2, -3)  # (..., S, m, M)
    means = influences.mean(axis=-2)
    scale = (sources - 1) * sources
    of_means = means @ np.swapaxes(means, -1, -2) / scale
    of_seeds = (by_seed @ np.swapaxes(by_seed, -1, -2)).mean(axis=-3) / scale
    return Crossed(scores, of_means, of_seeds, sources, trains)


def pair_spreads(of: Crossed, check: bool = True) -> tuple[Spread, Spread, NDArray[np.bool_]]:
    """Two spreads of every pair's difference, in the order of ``np.triu_indices(m, 1)``, and which pairs are pooled.

    The first spread takes the variance over seeds from all methods that train, paired by seed: with 13 methods and
    three seeds it has 24 degrees of freedom instead of 2. A method that :func:`wide_method` finds stays out, and its
    pairs have a spread of their own. The second takes it from the two methods of the pair alone, and is there because
    the check of the pool cannot see every method that spreads more than the others.

    Args:
        of: The methods.
        check: Whether :func:`wide_method` looks at the pool; off only to see what it is good for.

    Returns:
        Both of shape ``(..., N)``; whether the first is pooled over more methods than the pair itself, ``(..., N)``.
    """
    first, second = np.triu_indices(of.scores.shape[-2], k=1)
    seeds = of.scores.shape[-1]
    of_sources = _of_pairs(of.of_means, first, second)
    together = np.maximum(_of_pairs(of.of_seeds, first, second) - of_sources, 0.0) / max(1, seeds - 1)
    freedom = CERTAINTY_OF_SOURCES * (of.sources - 1)
    beyond = Variance(np.maximum(of_sources - together, 0.0), freedom)
    sources = Variance(of_sources, freedom)
    if seeds == 1:
        return (alone := Spread((), sources, sources)), alone, np.zeros(of_sources.shape, dtype=bool)
    own_of_methods = _own_variances(of, np.broadcast_to(of.trains, of.scores.shape[:-1]))
    untrained = ~of.trains[first] | ~of.trains[second]
    trained = np.where(of.trains[second], second, first)
    plain = of.scores.var(axis=-1, ddof=1)
    own = np.where(untrained, plain[..., trained], own_of_methods[..., first] + own_of_methods[..., second]) / seeds
    by_itself = Spread((Variance(own, seeds - 1.0),), beyond, sources)

    in_pool = np.broadcast_to(of.trains, of.scores.shape[:-1])
    if check:
        in_pool = in_pool & ~wide_method(of)
    of_residuals, of_means_of_seeds, members = _pool(of, in_pool)
    members = members[..., None]
    member_or_untrained = in_pool | ~of.trains
    pooled = member_or_untrained[..., first] & member_or_untrained[..., second] & (members > 2)
    # Against what trains nothing, what a seed does to all methods alike does not cancel: its variance is known from S
    # means over methods, and only the rest of it from the pool.
    depends = of.trains[first] | of.trains[second]
    share = np.where(untrained, (members - 1) / np.maximum(members, 1), 2.0) * depends
    residual = share * of_residuals[..., None] / seeds
    alike = np.where(untrained & depends, of_means_of_seeds[..., None], 0.0) / seeds
    residual_freedom = np.maximum(1, members - 1) * (seeds - 1.0)
    paired = (of.scores[..., first, :] - of.scores[..., second, :]).var(axis=-1, ddof=1) / seeds
    from_all = Spread(
        (
            Variance(np.where(pooled, residual, paired), np.where(pooled, residual_freedom, seeds - 1.0)),
            Variance(np.where(pooled, alike, 0.0), seeds - 1.0),
        ),
        beyond,
        sources,
    )
    return from_all, by_itself, pooled


def wide_method(of: Crossed) -> NDArray[np.bool_]:
    """The one method whose seeds spread more than those of all others, ``(..., m)``; none where several would.

    Its variance over seeds against that of the others, an F-test at 5 % over all methods together. Where a second
    method would still stand out without the first, spreads differ in general, and leaving out the widest would make the
    pool too narrow for the next ones.
    """
    everything = np.broadcast_to(of.trains, of.scores.shape[:-1])
    found = _widest(of, everything)
    again = _widest(of, everything & ~found).any(axis=-1, keepdims=True)
    return found & ~again


def method_spread(scores: Array, influences: Array, trains: bool) -> Spread:
    """Of one method's mean, over new seeds and new sources; of what trains nothing, over new sources.

    Args:
        scores: ``(..., S)``.
        influences: ``(..., S, M)``.
        trains: Whether it depends on seeds.
    """
    seeds, sources = influences.shape[-2:]
    scale = (sources - 1) * sources
    of_sources = (influences.mean(axis=-2) ** 2).sum(axis=-1) / scale
    together = np.maximum((influences**2).sum(axis=-1).mean(axis=-1) / scale - of_sources, 0.0) / max(1, seeds - 1)
    freedom = CERTAINTY_OF_SOURCES * (sources - 1)
    beyond = Variance(np.maximum(of_sources - together, 0.0), freedom)
    whole = Variance(of_sources, freedom)
    if seeds == 1 or not trains:
        return Spread((), whole, whole)
    return Spread((Variance(scores.var(axis=-1, ddof=1) / seeds, seeds - 1.0),), beyond, whole)


def _of_pairs(covariance: Array, first: NDArray[np.int64], second: NDArray[np.int64]) -> Array:
    """Variance of differences, ``(..., N)``."""
    own = np.diagonal(covariance, axis1=-2, axis2=-1)
    return np.maximum(own[..., first] + own[..., second] - 2.0 * covariance[..., first, second], 0.0)


def _residual_squares(of: Crossed, members: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
    """Squares that are left of each method once its mean and what the seed does to all members are taken off.

    Returns:
        Squares ``(..., m)``, zero of methods that are no members; means of members by seed ``(..., S)``; how many there
        are ``(...)``.
    """
    weights = members[..., None].astype(np.float64)
    count = members.sum(axis=-1)
    by_seed = (of.scores * weights).sum(axis=-2) / np.maximum(1, count)[..., None]
    centred = of.scores - of.scores.mean(axis=-1, keepdims=True)
    shared = (by_seed - by_seed.mean(axis=-1, keepdims=True))[..., None, :]
    return (((centred - shared) * weights) ** 2).sum(axis=-1), by_seed, count


def _own_variances(of: Crossed, members: NDArray[np.bool_]) -> Array:
    """Variance of each method's seeds about what the seed does to all members, ``(..., m)``."""
    squares, _, count = _residual_squares(of, members)
    scale = count / np.maximum(1, count - 1) / (of.scores.shape[-1] - 1)
    own: Array = squares * scale[..., None]
    return own


def _pool(of: Crossed, members: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
    """Residual variance of single scores, variance of the members' means by seed, and how many members, ``(...)``."""
    squares, by_seed, count = _residual_squares(of, members)
    freedom = np.maximum(1, count - 1) * (of.scores.shape[-1] - 1)
    return squares.sum(axis=-1) / freedom, by_seed.var(axis=-1, ddof=1), count


def _widest(of: Crossed, members: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy.special import fdtri

    own = np.where(members, _own_variances(of, members), 0.0)
    count = members.sum(axis=-1)
    freedom = of.scores.shape[-1] - 1
    others = (own.sum(axis=-1, keepdims=True) - own) / np.maximum(1, count - 1)[..., None]
    limit = fdtri(freedom, np.maximum(1, count - 2) * freedom, 1.0 - LEVEL_OF_CHECK / np.maximum(1, count))
    stands_out = (own > limit[..., None] * others) & (count > 2)[..., None]
    place = np.arange(own.shape[-1]) == own.argmax(axis=-1)[..., None]
    found: NDArray[np.bool_] = stands_out & place
    return found
