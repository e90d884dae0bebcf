"""Means over seeds, and how far to trust them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# What the interval of a mean accounts for.
Basis = Literal["seeds and sources", "sources", "seeds", "repetitions"]
# With fewer pairs of seeds, the spread over seeds is unknown, or so uncertain that nothing follows from it.
FEWEST_SEEDS = 3
# Adjusted p-values below it tell methods apart.
LEVEL = 0.05


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds, and how far to trust it."""

    mean: float
    standard_deviation: float | None  # over n - 1; None of a single value
    half_width: float | None  # of the 95 % interval of the mean
    values: tuple[float, ...]
    basis: Basis = "seeds"  # what the interval accounts for

    @property
    def low(self) -> float:
        return self.mean - (self.half_width or 0.0)

    @property
    def high(self) -> float:
        return self.mean + (self.half_width or 0.0)


def estimate(values: Sequence[float], basis: Basis = "seeds") -> Estimate | None:
    """Mean, standard deviation and t-interval; None if there are no values."""
    if not values:
        return None
    count, mean = len(values), math.fsum(values) / len(values)
    if count == 1:
        return Estimate(mean, None, None, tuple(values), basis)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half_width = t_quantile(0.975, count - 1) * deviation / math.sqrt(count)
    return Estimate(mean, deviation, half_width, tuple(values), basis)


def seeds_text(count: int) -> str:
    """A number of seeds as sentences have it."""
    return "1 seed" if count == 1 else f"{count} seeds"


def t_quantile(probability: float, degrees_of_freedom: float) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit  # imported late, because it takes a moment

    return float(stdtrit(degrees_of_freedom, probability))


def two_sided_p(statistic: float, degrees_of_freedom: float) -> float:
    """Probability of a value of Student's t at least this far from 0."""
    from scipy.special import stdtr

    return float(2.0 * stdtr(degrees_of_freedom, -abs(statistic)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): at most 5 % risk of one false difference among all that are called below 0.05."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def common_seeds(of_methods: Sequence[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """The seeds over which methods are compared all together, in ascending order; None where each pair has its own.

    Seeds that every method has, if they are as many as a conclusion takes or if no method has others. What trains
    nothing (None) has every seed.
    """
    having = [seeds for seeds in of_methods if seeds is not None]
    if not having:
        return (0,)
    common = tuple(sorted(set(having[0]).intersection(*having)))
    nothing_left_out = all(len(seeds) == len(common) for seeds in having)
    return common if common and (len(common) >= FEWEST_SEEDS or nothing_left_out) else None
