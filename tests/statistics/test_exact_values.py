"""Small numbers by hand: the divisors and terms that a simulation would not miss."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from scipy import stats

from bench.metrics.metric import mean, with_values
from bench.statistics.differences import Difference, PairedTests, SeedStatistics
from bench.statistics.estimates import estimate
from bench.statistics.significance import smallest_found


def test_the_deviation_of_seeds_is_that_of_a_sample() -> None:
    scores = np.array([[10.0, 20.0], [14.0, 20.0], [30.0, 20.0]])  # three seeds, two sources
    method = SeedStatistics(np.stack([with_values(row) for row in scores]), (0, 1, 2))
    found = PairedTests(2, mean, resamples=10).estimate(method)
    of_seeds = [15.0, 17.0, 25.0]
    assert found.values == pytest.approx(of_seeds)
    assert found.mean == pytest.approx(19.0)
    assert found.standard_deviation == pytest.approx(statistics.stdev(of_seeds))


def test_an_interval_over_seeds_is_that_of_a_t_distribution() -> None:
    values = [15.0, 17.0, 25.0, 21.0]
    found = estimate(values)
    assert found.standard_deviation == pytest.approx(statistics.stdev(values))
    expected = stats.t.ppf(0.975, 3) * statistics.stdev(values) / 2
    assert found.half_width == pytest.approx(expected)


@pytest.mark.parametrize(("seeds", "quantile"), [(3, 1.060660), (6, 0.919544)])
def test_the_difference_that_is_found_takes_its_power_besides_its_level(seeds: int, quantile: float) -> None:
    """Half an interval is found in one of two experiments; for four of five, the 0.8 quantile of t comes on top."""
    difference = Difference(
        first="a",
        second="b",
        difference=1.0,
        first_mean=2.0,
        second_mean=1.0,
        low=-1.0,
        high=3.0,
        seeds=seeds,
        standard_error=0.5,
        p_value=0.3,
        p_randomisation=0.3,
    )
    assert smallest_found(difference) == pytest.approx(2.0 + 0.5 * quantile, abs=1e-5)
