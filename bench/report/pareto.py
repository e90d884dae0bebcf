"""Which configurations no other one beats in both score and cost."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.column import Column
from bench.report.configurations import Configuration


def front(cells: Sequence[Configuration], score: Column, cost: Column) -> list[Configuration]:
    """The cells that are not dominated, cheapest first.

    A cell is dominated by one that is at least as good in both means and better in one.

    Args:
        cells: Those without one of the two values are left out.
        score: A column with a direction.
        cost: Likewise; less need not be better (tokens per second).
    """
    points = [
        (_loss(cost, cell), _loss(score, cell), number, cell)
        for number, cell in enumerate(cells)
        if cell.estimate(score.name) is not None and cell.estimate(cost.name) is not None
    ]
    found: list[tuple[float, float, Configuration]] = []
    for price, loss, _, cell in sorted(points, key=lambda point: point[:3]):
        if not found or loss < found[-1][1] or (price, loss) == found[-1][:2]:
            found.append((price, loss, cell))
    return [cell for *_, cell in found]


def _loss(column: Column, cell: Configuration) -> float:
    found = cell.estimate(column.name)
    if found is None or column.higher_is_better is None:
        raise ValueError(f"{cell.name} cannot be ranked by {column.name}")
    return -found.mean if column.higher_is_better else found.mean
