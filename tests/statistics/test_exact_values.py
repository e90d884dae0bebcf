"""Small numbers by hand: the divisors and terms that a simulation would not miss."""

from __future__ import annotations

import statistics
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from predicted import write_sweep
from scipy import stats

from bench.metrics.metric import mean, with_values
from bench.statistics.bounds import Spread, Variance, joined
from bench.statistics.differences import Difference, PairedTests, SeedStatistics
from bench.statistics.estimates import estimate
from bench.statistics.groups import letters
from bench.statistics.outliers import outlying_seeds
from bench.statistics.resampling import RESAMPLES, bootstrap_counts, sacrebleu_bootstrap
from bench.statistics.significance import significance, smallest_found
from bench.statistics.spreads import _own_variances, crossed, method_spread, pair_spreads


def test_the_deviation_of_seeds_is_that_of_a_sample() -> None:
    scores = np.array([[10.0, 20.0], [14.0, 20.0], [30.0, 20.0]])  # three seeds, two sources
    method = SeedStatistics(np.stack([with_values(row) for row in scores]), (0, 1, 2))
    interval = PairedTests(2, mean, resamples=10).estimate(method)
    of_seeds = [15.0, 17.0, 25.0]
    assert interval.values == pytest.approx(of_seeds)
    assert interval.mean == pytest.approx(19.0)
    assert interval.standard_deviation == pytest.approx(statistics.stdev(of_seeds))


def test_an_interval_over_seeds_is_that_of_a_t_distribution() -> None:
    values = [15.0, 17.0, 25.0, 21.0]
    interval = estimate(values)
    assert interval.standard_deviation == pytest.approx(statistics.stdev(values))
    expected = stats.t.ppf(0.975, 3) * statistics.stdev(values) / 2
    assert interval.half_width == pytest.approx(expected)


def test_a_single_value_has_no_interval() -> None:
    interval = estimate([15.0])
    assert (interval.low, interval.high, interval.half_width) == (15.0, 15.0, None)


def test_more_groups_than_letters_get_a_number() -> None:
    names = [f"method {number:02}" for number in range(28)]
    letters_of_names = list(letters(names, combinations(names, 2)).values())
    assert (letters_of_names[:2], letters_of_names[25:]) == (["a", "b"], ["z", "a2", "b2"])


def test_far_is_six_robust_deviations_from_the_median() -> None:
    """Distances from the median of 51 are 1, 2, 3 and that of the last; the median distance of 2 makes 17.8 far."""
    scores = {0: 50.0, 1: 51.0, 2: 48.0, 3: 53.0}
    assert outlying_seeds({"a": {**scores, 4: 51.0 + 18.0}}) == {"a": [4]}
    assert outlying_seeds({"a": {**scores, 4: 51.0 + 17.5}}) == {}


def test_six_distances_tell_how_far_seeds_spread_and_five_do_not() -> None:
    """Of few, a tenth of the median is the least that counts as far; of six or more, a hundredth."""
    near = {seed: 60.0 + seed / 100 for seed in range(6)}
    assert outlying_seeds({"a": {**near, 6: 61.0}}) == {"a": [6]}
    few = {seed: near[seed] for seed in range(4)}
    assert outlying_seeds({"a": {**few, 6: 61.0}}) == {}
    assert outlying_seeds({"two": {0: 60.0, 1: 60.0}, "a": {**few, 6: 61.0}}) == {}, "two seeds are not counted"


def test_the_largest_difference_comes_first(tmp_path: Path) -> None:
    configurations = write_sweep(tmp_path / "demo", {"none": 0.2, "full": 0.85, "lora": 0.6})
    significance_of_pairs = significance(tmp_path / "demo", configurations, "bleu", higher_is_better=True)
    assert significance_of_pairs is not None
    assert next((one.first, one.second) for one in significance_of_pairs.differences) == ("full", "none")


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


def test_the_interval_of_one_method_is_the_same_among_experiments_that_are_computed_together() -> None:
    generator = np.random.default_rng(0)
    scores, influences = generator.normal(size=(4, 3)), generator.normal(size=(4, 3, 5))
    together = method_spread(scores, influences, trains=True)
    for place in range(4):
        alone = method_spread(scores[place], influences[place], trains=True)
        assert together.half_width(0.05)[place] == pytest.approx(alone.half_width(0.05))
        assert together.standard_error[place] == pytest.approx(alone.standard_error)


def test_a_pair_without_several_seeds_keeps_its_interval_beside_one_with_them() -> None:
    sources = Variance(np.array([4.0]), 19.0)
    one_seed = Spread((), sources, sources)
    three_seeds = Spread((Variance(np.array([9.0]), 2.0),), sources, sources)
    both = joined([one_seed, three_seeds])
    assert both.half_width(0.05) == pytest.approx([one_seed.half_width(0.05)[0], three_seeds.half_width(0.05)[0]])
    assert both.standard_error == pytest.approx([2.0, 13**0.5])


def test_pairs_of_experiments_that_are_computed_together_are_those_of_each_alone() -> None:
    generator = np.random.default_rng(1)
    scores, influences = generator.normal(size=(2, 4, 3)), generator.normal(size=(2, 4, 3, 6))
    trains = np.array([True, True, True, False])
    together = pair_spreads(crossed(scores, influences, trains))
    for place in range(2):
        alone = pair_spreads(crossed(scores[place], influences[place], trains))
        for of_all, of_one in zip(together[:2], alone[:2], strict=True):
            assert of_all.half_width(0.05)[place] == pytest.approx(of_one.half_width(0.05))
        assert together[2][place].tolist() == alone[2].tolist()


def test_a_methods_own_variance_leaves_out_what_a_seed_does_to_all() -> None:
    scores = np.array([[1.0, 2.0, 6.0], [2.0, 2.0, 2.0], [0.0, 1.0, 5.0]])  # three methods, three seeds
    residual = scores - scores.mean(axis=1, keepdims=True)
    residual -= residual.mean(axis=0)
    variances = _own_variances(crossed(scores, np.zeros((3, 3, 5)), np.ones(3, dtype=bool)), np.ones(3, dtype=bool))
    assert variances == pytest.approx((residual**2).sum(axis=1) * (3 / 2) / 2)


def test_sacrebleus_bootstrap_takes_distances_from_their_mean() -> None:
    generator = np.random.default_rng(2)
    first, second = (with_values(generator.normal(size=30) + shift)[None] for shift in (0.0, 0.3))
    counts = bootstrap_counts(200, 30, seed=7)
    distances = np.abs(counts @ (first[0, :, 0] - second[0, :, 0]) / 30)
    observed = abs(float((first[0, :, 0] - second[0, :, 0]).mean()))
    expected = (1 + (distances - distances.mean() >= observed).sum()) / 201
    assert sacrebleu_bootstrap(200, 30, 7, mean)(first, second) == pytest.approx(expected)
    assert RESAMPLES == 1000
