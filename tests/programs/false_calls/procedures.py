"""Ways to decide which of all pairs differ. The one that reports use is the last.

E experiments, N pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from bench.statistics.bounds import Spread, Variance, shaffer_multipliers
from bench.statistics.differences import level_of_own_seeds
from bench.statistics.estimates import LEVEL
from bench.statistics.spreads import CERTAINTY_OF_SOURCES, Crossed, pair_spreads

Array = NDArray[np.float64]
# Crossed methods, a generator, and whether the first step is enough (it decides whether anything is called) to which of
# the pairs are called different, (E, N).
Procedure = Callable[[Crossed, np.random.Generator, bool], NDArray[np.bool_]]


def satterthwaite(of: Crossed, _: np.random.Generator, first_step: bool) -> NDArray[np.bool_]:
    """Until 2026-11: one t distribution, its degrees of freedom from the variances themselves, Holm."""
    difference, own, together, sources = _parts(of)
    seeds, many = of.scores.shape[-1], of.sources
    variance = np.maximum.reduce([own + sources - together, own, sources])
    spread = own**2 / (seeds - 1) + sources**2 / (many - 1) + together**2 / ((seeds - 1) * (many - 1))
    freedom = np.where(spread > 0, variance**2 / np.maximum(spread, 1e-300), seeds - 1.0)
    return _stepped(
        difference, lambda level: np.sqrt(variance) * -stdtrit(freedom, level / 2), _holm(difference), first_step
    )


def few_degrees(of: Crossed, _: np.random.Generator, first_step: bool) -> NDArray[np.bool_]:
    """The same variance with S - 1 degrees of freedom, Holm."""
    difference, own, together, sources = _parts(of)
    error = np.sqrt(np.maximum.reduce([own + sources - together, own, sources]))
    freedom = of.scores.shape[-1] - 1
    return _stepped(difference, lambda level: error * -stdtrit(freedom, level / 2), _holm(difference), first_step)


def own_variances(of: Crossed, _: np.random.Generator, first_step: bool) -> NDArray[np.bool_]:
    """The pair's own variance over seeds; each part with its own quantile (Banerjee), Holm."""
    difference, own, together, sources = _parts(of)
    freedom = CERTAINTY_OF_SOURCES * (of.sources - 1)
    spread = Spread(
        (Variance(own, of.scores.shape[-1] - 1.0),),
        Variance(np.maximum(sources - together, 0.0), freedom),
        Variance(sources, freedom),
    )
    return _stepped(difference, spread.half_width, _holm(difference), first_step)


def joint_resamples(of: Crossed, generator: np.random.Generator, _: bool, resamples: int = 400) -> NDArray[np.bool_]:
    """Max-t: the largest of all differences over their errors in resamples of seeds and sources together."""
    difference, own, together, sources = _parts(of)
    error = np.sqrt(np.maximum.reduce([own + sources - together, own, sources]))
    experiments, methods, seeds = of.scores.shape
    first, second = np.triu_indices(methods, k=1)
    drawn = generator.integers(seeds, size=(resamples, seeds))
    share = (drawn[..., None] == np.arange(seeds)).mean(axis=1)  # (R, S)
    centred = of.scores - of.scores.mean(axis=-1, keepdims=True)
    called = np.empty(difference.shape, dtype=bool)
    for number in range(experiments):
        by_sources = generator.multivariate_normal(
            np.zeros(methods), of.of_means[number], size=resamples, method="eigh", check_valid="ignore"
        )
        moved = share @ centred[number].T + by_sources
        largest = (np.abs(moved[:, first] - moved[:, second]) / np.maximum(error[number], 1e-12)).max(axis=1)
        called[number] = np.abs(difference[number]) > np.quantile(largest, 1 - LEVEL) * error[number]
    return called


def pooled_always(of: Crossed, _: np.random.Generator, first_step: bool) -> NDArray[np.bool_]:
    """The variance over seeds pooled over all methods, unchecked; Shaffer."""
    from_all, *_rest = pair_spreads(of, check=False)
    return _stepped(_differences(of), from_all.half_width, _shaffer(of), first_step)


def pooled_if_alike(of: Crossed, _: np.random.Generator, first_step: bool) -> NDArray[np.bool_]:
    """Pooled over all methods but one that stands out; Shaffer."""
    from_all, *_rest = pair_spreads(of)
    return _stepped(_differences(of), from_all.half_width, _shaffer(of), first_step)


def pooled_and_own(of: Crossed, _: np.random.Generator, first_step: bool) -> NDArray[np.bool_]:
    """The same, and the pair has to differ by its own seeds too: :class:`bench.statistics.differences.PairedTests`."""
    from_all, by_itself, pooled = pair_spreads(of)
    difference, multipliers = _differences(of), _shaffer(of)
    level = level_of_own_seeds(of.scores.shape[-1])
    agrees = (np.abs(difference) > by_itself.half_width(level)) | ~pooled
    return _stepped(difference, from_all.half_width, multipliers, first_step, agrees)


PROCEDURES: dict[str, Procedure] = {
    "Satterthwaite, Holm (until 2026-11-29)": satterthwaite,
    "t with S-1 degrees of freedom, Holm": few_degrees,
    "own variances, Banerjee, Holm": own_variances,
    "max-t over joint resamples": joint_resamples,
    "pooled over seeds, Shaffer": pooled_always,
    "pooled but for one wide method, Shaffer": pooled_if_alike,
    "**pooled, and by the pair's own seeds**": pooled_and_own,
}


def _differences(of: Crossed) -> Array:
    first, second = np.triu_indices(of.scores.shape[-2], k=1)
    means = of.scores.mean(axis=-1)
    difference: Array = means[..., first] - means[..., second]
    return difference


def _parts(of: Crossed) -> tuple[Array, Array, Array, Array]:
    """Differences, and their variances: over seeds, of seed and source together, over sources, ``(E, N)``."""
    first, second = np.triu_indices(of.scores.shape[-2], k=1)
    seeds = of.scores.shape[-1]
    own = (of.scores[..., first, :] - of.scores[..., second, :]).var(axis=-1, ddof=1) / seeds

    def of_pairs(covariance: Array) -> Array:
        diagonal = np.diagonal(covariance, axis1=-2, axis2=-1)
        return np.maximum(diagonal[..., first] + diagonal[..., second] - 2 * covariance[..., first, second], 0.0)

    sources = of_pairs(of.of_means)
    together = np.maximum(of_pairs(of.of_seeds) - sources, 0.0) / (seeds - 1)
    return _differences(of), own, together, sources


def _holm(difference: Array) -> list[int]:
    return list(range(difference.shape[-1], 0, -1))


def _shaffer(of: Crossed) -> list[int]:
    return shaffer_multipliers(of.scores.shape[-2])


def _stepped(
    difference: Array,
    half_width: Callable[[float], Array],
    multipliers: Sequence[int],
    first_step: bool,
    allowed: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """What a step-down procedure calls different, from the largest multiplier at which each pair still holds."""
    distance, levels = np.abs(difference), sorted(set(multipliers))
    if first_step:
        called_first = distance > half_width(LEVEL / levels[-1])
        return called_first if allowed is None else called_first & allowed
    holds = np.zeros(difference.shape, dtype=np.int64)
    if (distance > half_width(LEVEL / levels[0])).any():
        low, high = np.full(difference.shape, -1), np.full(difference.shape, len(levels) - 1)
        for _ in range(len(levels).bit_length()):
            middle = (low + high + 1) // 2
            level = LEVEL / np.take(levels, np.maximum(middle, 0))
            passes = distance > half_width(level)  # type: ignore[arg-type]
            low, high = np.where(passes, middle, low), np.where(passes, high, middle - 1)
        holds = np.where(low >= 0, np.take(levels, np.maximum(low, 0)), 0)
    if allowed is not None:
        holds = np.where(allowed, holds, 0)
    order = np.argsort(-holds, axis=-1, kind="stable")
    kept = np.logical_and.accumulate(np.take_along_axis(holds, order, -1) >= np.asarray(multipliers), axis=-1)
    called = np.zeros(difference.shape, dtype=bool)
    np.put_along_axis(called, order, kept, axis=-1)
    return called
