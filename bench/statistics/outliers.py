"""Finds seeds that are far from the other seeds of their method: their trainings may have gone wrong."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

# A normal distribution's standard deviation over its median distance from the median.
NORMAL = 1.4826
# So many robust standard deviations from the median of its method, and so much of that median, is far; where few seeds
# tell how far they usually spread, more of the median.
FAR, LEAST_FRACTION, LEAST_FRACTION_OF_FEW = 6.0, 0.01, 0.1
FEW_DISTANCES = 6


def outlying_seeds(methods: Mapping[str, Mapping[int, float]]) -> dict[str, list[int]]:
    """Name of each method that has such seeds to these seeds, in ascending order.

    A distance is far if it is so by the median distance of all methods' seeds and by that of its own method: a method
    that spreads more than the others, seed for seed, has no outlier.

    Args:
        methods: Name to scores by seed; of those that train. Fewer than three seeds tell nothing.
    """
    distances = {
        name: {seed: abs(score - statistics.median(scores.values())) for seed, score in scores.items()}
        for name, scores in methods.items()
        if len(scores) >= 3
    }
    # The median has a distance of zero to itself, which says nothing about the spread.
    spread = {name: sorted(of_seeds.values())[len(of_seeds) % 2 :] for name, of_seeds in distances.items()}
    together = [distance for of_method in spread.values() for distance in of_method]
    if not together:
        return {}
    least = LEAST_FRACTION if len(together) >= FEW_DISTANCES else LEAST_FRACTION_OF_FEW
    found: dict[str, list[int]] = {}
    for name, of_seeds in distances.items():
        scale = NORMAL * max(statistics.median_low(together), statistics.median_low(spread[name]))
        limit = max(FAR * scale, least * abs(statistics.median(methods[name].values())))
        if far := sorted(seed for seed, distance in of_seeds.items() if distance > limit):
            found[name] = far
    return found
