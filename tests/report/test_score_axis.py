"""The axis of scores shows the intervals by which configurations cannot be told apart."""

import pytest

from bench.report.figures.pareto_plot import score_limits
from bench.statistics.estimates import Estimate


def of(mean: float, half_width: float | None) -> Estimate:
    return Estimate(mean, None, half_width, (mean,))


def test_intervals_wider_than_the_spread_of_means_lie_within_the_frame() -> None:
    low, high = score_limits([of(28.2, 5.0), of(28.1, 5.2), of(27.7, 4.0), of(26.4, 6.0)])
    assert low < 26.4 - 6.0
    assert high > 28.1 + 5.2


def test_one_interval_far_wider_than_the_others_leaves_the_frame() -> None:
    low, high = score_limits([of(50.0, 1.0), of(40.0, 1.0), of(45.0, 60.0)])
    assert low == pytest.approx(39.0 - 0.8)
    assert high == pytest.approx(51.0 + 1.2)


def test_means_without_intervals_fill_the_frame() -> None:
    assert score_limits([of(50.0, None), of(40.0, None)]) == (pytest.approx(39.2), pytest.approx(51.2))
