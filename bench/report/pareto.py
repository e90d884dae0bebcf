"""Finds the configurations that no other one beats in both score and cost."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.column import Column
from bench.report.configurations import Configuration


def front(configurations: Sequence[Configuration], score: Column, cost: Column) -> list[Configuration]:
    """The configurations that are not dominated, cheapest first.

    A configuration is dominated by one that is at least as good in both means and better in one.

    Args:
        configurations: Those without one of the two values are left out.
        score: A column with a direction.
        cost: Likewise; less need not be better (tokens per second).
    """
    points = [
        (_loss(cost, configuration), _loss(score, configuration), number, configuration)
        for number, configuration in enumerate(configurations)
        if configuration.estimate(score.name) is not None and configuration.estimate(cost.name) is not None
    ]
    found: list[tuple[float, float, Configuration]] = []
    for price, loss, _, configuration in sorted(points, key=lambda point: point[:3]):
        if not found or loss < found[-1][1] or (price, loss) == found[-1][:2]:
            found.append((price, loss, configuration))
    return [configuration for *_, configuration in found]


def _loss(column: Column, configuration: Configuration) -> float:
    found = configuration.estimate(column.name)
    if found is None or column.higher_is_better is None:
        raise ValueError(f"{configuration.name} cannot be ranked by {column.name}")
    return -found.mean if column.higher_is_better else found.mean
