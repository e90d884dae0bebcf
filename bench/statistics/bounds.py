"""Intervals and p-values for a sum of variances of which each is known with degrees of freedom of its own.

Satterthwaite puts the parts together to one t distribution, whose degrees of freedom are estimated from the very
variances whose chance smallness makes a difference look large: far out in the tail, where corrections for many pairs
look, that is wrong by a factor of ten and more. Here each part keeps its own quantile of Student's t:

    half width² = t²(f_1) v_1 + t²(f_2) v_2 + ...

which covers with at least the probability asked for, whatever the true shares of the parts, at every level (Banerjee
1961, "On confidence interval for two-means problem based on separate estimates of variances and tabulated values of
t-table": the distribution of chi-square with one degree of freedom is concave).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.metrics.metric import Array

# Smaller p-values count as 0. It is far below every level that a correction asks for.
SMALLEST_P = 1e-16
_HALVINGS = 50


@dataclass(frozen=True)
class Variance:
    """Part of the variance of a difference."""

    value: Array  # (...)
    degrees_of_freedom: Array | float  # of its estimate; broadcasts to (...)


@dataclass(frozen=True)
class Spread:
    """The uncertainty of a mean over seeds and sources.

    Attributes:
        seeds: Over seeds, the part of single sources that changes with the seed included.
        beyond_seeds: What sources add that every seed shares.
        sources: Over sources alone. What is due to seed and source together is in here and in ``seeds``, which is why
            ``beyond_seeds`` is smaller; an interval is no narrower than this part asks for by itself.
    """

    seeds: tuple[Variance, ...]  # empty: the spread over seeds is unknown, or there is none
    beyond_seeds: Variance
    sources: Variance

    def half_width(self, level: float | Array) -> Array:
        """Half width ``(...)`` of the interval that misses with a probability of at most ``level``."""
        both = sum((_share(part, level) for part in self.seeds), _share(self.beyond_seeds, level))
        return np.sqrt(np.maximum(both, _share(self.sources, level)))

    def p_value(self, difference: Array) -> Array:
        """The smallest level ``(...)`` at which the interval around a difference leaves out 0."""
        low, high = np.full(difference.shape, np.log(SMALLEST_P)), np.zeros(difference.shape)
        distance = np.abs(difference)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            left_out = distance > self.half_width(np.exp(middle))
            low, high = np.where(left_out, low, middle), np.where(left_out, middle, high)
        return np.where(distance > 0, np.exp(high), 1.0)

    @property
    def standard_error(self) -> Array:
        """Root of the variance."""
        both = sum((part.value for part in self.seeds), self.beyond_seeds.value)
        return np.sqrt(np.maximum(both, self.sources.value))


def joined(spreads: Sequence[Spread]) -> Spread:
    """Spreads of ``(N_1,)``, ``(N_2,)``, ... as one of their sum, ``(N,)``."""
    most = max(len(one.seeds) for one in spreads)
    parts = [
        [*one.seeds, *[Variance(np.zeros_like(one.sources.value), 1.0)] * (most - len(one.seeds))] for one in spreads
    ]
    return Spread(
        tuple(_end_to_end([of_one[number] for of_one in parts]) for number in range(most)),
        _end_to_end([one.beyond_seeds for one in spreads]),
        _end_to_end([one.sources for one in spreads]),
    )


def _end_to_end(parts: Sequence[Variance]) -> Variance:
    freedoms = [np.broadcast_to(part.degrees_of_freedom, part.value.shape) for part in parts]
    return Variance(np.concatenate([part.value for part in parts]), np.concatenate(freedoms))


def step_down(p_values: Array, multipliers: Sequence[int], last: NDArray[np.bool_]) -> tuple[Array, NDArray[np.int64]]:
    """Adjusted p-values of a step-down procedure, and the multiplier that each hypothesis came to stand at.

    Args:
        p_values: ``(N,)``.
        multipliers: Of the smallest p-value, of the next one, ... ``(N,)``.
        last: Hypotheses that come after all others, whatever their p-value, ``(N,)``.

    Returns:
        Both ``(N,)``.
    """
    order = np.lexsort((p_values, last))
    stepped = np.minimum(1.0, p_values[order] * np.asarray(multipliers))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(stepped)
    places = np.empty(len(p_values), dtype=np.int64)
    places[order] = multipliers
    return adjusted, places


def shaffer_multipliers(methods: int) -> list[int]:
    """How many pairs of so many methods may still be equal, once 0, 1, 2, ... pairs are known to differ.

    Shaffer 1986, "Modified sequentially rejective multiple test procedures", procedure S1: if any two of m methods
    differ, at most (m-1)(m-2)/2 pairs are equal, not one less than all as Holm counts. ``(methods (methods - 1) / 2,)``
    """
    possible = [{0}, {0}]  # numbers of equal pairs among n methods that fall into groups of equals
    for count in range(2, methods + 1):
        possible.append(
            {size * (size - 1) // 2 + rest for size in range(1, count + 1) for rest in possible[count - size]}
        )
    pairs = methods * (methods - 1) // 2
    return [max(number for number in possible[methods] if number <= pairs - known) for known in range(pairs)]


def _share(part: Variance, level: float | Array) -> Array:
    from scipy.special import stdtrit  # imported late, because it takes a moment

    quantile: Array = stdtrit(part.degrees_of_freedom, np.asarray(level) / 2)
    return quantile**2 * part.value
