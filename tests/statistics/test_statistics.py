"""The machinery of significance, tested itself: against sacrebleu, on experiments without and with a difference."""

from __future__ import annotations

import math
import random
import time

import numpy as np
import pytest
from false_calls.procedures import pooled_and_own, satterthwaite
from false_calls.simulation import batches
from false_calls.worlds import Design, draw
from predicted import WORDS
from predicted import references as references_of
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest
from scipy import stats

from bench.metrics.known import BUILT_IN
from bench.metrics.metric import Array, Metric, mean, with_values
from bench.metrics.sums import bleu
from bench.metrics.texts import prepare
from bench.statistics.bounds import Spread, Variance, shaffer_multipliers, step_down
from bench.statistics.differences import PairedTests, SeedStatistics, pairs_of_seeds
from bench.statistics.estimates import FEWEST_SEEDS, common_seeds, estimate, holm, two_sided_p
from bench.statistics.groups import groups, letters
from bench.statistics.resampling import bootstrap_counts, corpus_scores
from bench.statistics.spreads import CERTAINTY_OF_SOURCES, crossed, jackknife, method_spread, pair_spreads, wide_method
from bench.task import Scoring


def corpus(seed: int, sources: int = 60) -> tuple[list[str], list[list[str]]]:
    """Predictions that are damaged references, one to three references for each source."""
    generator = random.Random(seed)
    references = [references_of(source) for source in range(sources)]
    predictions = []
    for texts in references:
        words = [generator.choice(WORDS) if generator.random() < 0.3 else word for word in texts[0].split()]
        predictions.append(" ".join(words[: len(words) - generator.randrange(3)]))
    return predictions, references


def streams(references: list[list[str]]) -> list[list[str | None]]:
    return [[texts[n] if n < len(texts) else None for texts in references] for n in range(3)]


def seeded(statistics: dict[str, Array]) -> dict[str, SeedStatistics]:
    """The same seeds for all."""
    return {name: SeedStatistics(values, tuple(range(len(values)))) for name, values in statistics.items()}


def statistics_of(metric: Metric, predictions: list[str], references: list[list[str]]) -> Array:
    return metric.statistics(prepare(predictions, references, metric.scoring))


SACREBLEU = {"bleu": lambda: BLEU(lowercase=True, force=True), "chrf": lambda: CHRF(word_order=2), "ter": TER}


@pytest.mark.parametrize("name", SACREBLEU)
def test_scores_of_summed_statistics_are_those_of_sacrebleu(name: str) -> None:
    predictions, references = corpus(1)
    metric = BUILT_IN[name](Scoring(lowercase=True))
    statistics = statistics_of(metric, predictions, references)
    whole = SACREBLEU[name]().corpus_score(predictions, streams(references)).score
    assert metric.score(statistics.sum(axis=0)) == pytest.approx(whole, abs=1e-9)
    counts = bootstrap_counts(20, len(predictions), seed=3)
    for drawn, score in zip(counts, metric.score(counts @ statistics), strict=True):
        chosen = [index for index, times in enumerate(drawn) for _ in range(int(times))]
        expected = SACREBLEU[name]().corpus_score(
            [predictions[index] for index in chosen], streams([references[index] for index in chosen])
        )
        assert score == pytest.approx(expected.score, abs=1e-9)


@pytest.mark.parametrize("script", ["mteval", "multi-bleu"])
def test_scores_of_summed_statistics_are_those_of_the_official_scripts(script: str) -> None:
    predictions, references = corpus(1)
    scoring = Scoring(bleu=script, lowercase=True, max_references=2)
    metric = BUILT_IN["bleu"](scoring)
    statistics = statistics_of(metric, predictions, references)
    measured = metric.measure(prepare(predictions, references, scoring))
    for chosen in (range(len(predictions)), [3, 3, 1], [0]):
        assert metric.score(statistics[list(chosen)].sum(axis=0)) == pytest.approx(measured.over(chosen), abs=1e-9)


@pytest.mark.parametrize(
    "predictions", [[""], ["xyz"], ["the"], ["the red"], ["the red tree"], ["the red tree stands there today"]]
)
def test_scores_of_hardly_anything_are_those_of_sacrebleu(predictions: list[str]) -> None:
    references = [["the red tree stands near the river."]]
    for name, make in SACREBLEU.items():
        metric = BUILT_IN[name](Scoring(lowercase=True))
        expected = make().corpus_score(predictions, streams(references)[:1]).score
        assert metric.score(statistics_of(metric, predictions, references).sum(axis=0)) == pytest.approx(
            expected, abs=1e-9
        ), name


@pytest.mark.parametrize("name", SACREBLEU)
@pytest.mark.parametrize("kind", ["bs", "ar"])
def test_p_values_of_one_seed_are_those_of_sacrebleu(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", "12345")
    monkeypatch.setattr("bench.statistics.resampling.ROUNDING", -1e-9)  # sacrebleu does not count ties
    systems = {"one": corpus(1), "other": corpus(2)}
    references = systems["one"][1]
    named = [(system, predictions) for system, (predictions, _) in systems.items()]
    test = PairedTest(named, {name: SACREBLEU[name]()}, streams(references), test_type=kind, n_samples=400)
    expected = list(test()[1].values())[-1][1].p_value
    metric = BUILT_IN[name](Scoring(lowercase=True))
    tests = PairedTests(len(references), metric.score, resamples=400, sacrebleu=True)
    (pair,) = tests.all_pairs(
        seeded({system: statistics_of(metric, texts, references)[None] for system, (texts, _) in systems.items()})
    )
    assert expected is not None
    assert 0.01 < expected < 0.99, "a p-value at the end of its range would prove little"
    ours = pair.p_sacrebleu_bootstrap if kind == "bs" else pair.p_randomisation
    assert ours == pytest.approx(expected, abs=1.01 / 401), "sacrebleu sums in 32 bits, which may move one"


def test_estimates_over_seeds() -> None:
    interval = estimate([1.0, 2.0, 4.0])
    assert interval is not None
    low, high = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1.0, 2.0, 4.0]))
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert two_sided_p(2.5, 7) == pytest.approx(2 * stats.t.sf(2.5, 7))
    assert estimate([]) is None
    single = estimate([3.0])
    assert single is not None
    assert single.half_width is None


def test_holm_adjusts_as_published() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def simulated(
    generator: np.random.Generator, seeds: int, sources: int, spread: tuple[float, float, float], effect: float = 0.0
) -> Array:
    """Differences ``(S, M)`` of a mean score: effects of seeds, of sources, and of both together."""
    of_seeds, of_sources, of_both = spread
    return (
        effect
        + of_seeds * generator.normal(size=(seeds, 1))
        + of_sources * generator.normal(size=(1, sources))
        + of_both * generator.normal(size=(seeds, sources))
    )


def share_called(
    seeds: int, sources: int, spread: tuple[float, float, float], effect: float = 0.0, experiments: int = 2000
) -> float:
    """In how many experiments a difference is called at the level of 5 %."""
    generator = np.random.default_rng(7)
    drawn = np.stack([simulated(generator, seeds, sources, spread, effect) for _ in range(experiments)])
    scores = drawn.mean(axis=-1)
    # Against a method whose scores are all 0, which is as good as a pair: what varies is the difference.
    values = np.stack([drawn, np.zeros_like(drawn)], axis=1)
    moved = values - values.mean(axis=-1, keepdims=True)
    variances = crossed(np.stack([scores, np.zeros_like(scores)], axis=1), moved, np.array([True, True]))
    from_all, *_ = pair_spreads(variances)
    return float((np.abs(scores.mean(axis=1)) > from_all.half_width(0.05)[:, 0]).mean())


def tolerance(share: float, experiments: int = 2000) -> float:
    """Three standard deviations of a share: chance exceeds it in about one of a thousand tests."""
    return 3 * math.sqrt(share * (1 - share) / experiments)


# Spread over seeds, over sources, and of both together; all in points of a score, the last two of single sources.
SPREADS = {
    "seeds shift every source alike": (1.0, 0.0, 0.0),
    "seeds change single sources only": (0.0, 0.0, 10.0),
    "seeds do both": (0.5, 0.0, 10.0),
    "sources favour one method or the other": (0.0, 10.0, 5.0),
    "all of it": (1.0, 3.0, 10.0),
}


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
def test_equal_methods_are_called_different_in_at_most_five_percent(
    seeds: int, spread: tuple[float, float, float]
) -> None:
    assert share_called(seeds, 100, spread) <= 0.05 + tolerance(0.05)


def test_a_bootstrap_over_seeds_would_fail_this_test() -> None:
    """Why there is a t distribution: with five seeds, resampled seeds are far too sure of themselves."""
    generator = np.random.default_rng(7)
    called = 0
    for _ in range(1000):
        of_seeds = generator.normal(size=5)
        means = of_seeds[generator.integers(5, size=(400, 5))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        called += not low <= 0 <= high
    assert called / 1000 > 0.1


@pytest.mark.parametrize(
    ("seeds", "spread", "effect", "power"),
    [
        # Where seeds shift every source alike, this is the paired t-test over seeds.
        (5, (1.0, 0.0, 0.0), 1.5, lambda: nct_power(1.5 / math.sqrt(1 / 5), 4)),
        (10, (1.0, 0.0, 0.0), 1.0, lambda: nct_power(1.0 / math.sqrt(1 / 10), 9)),
        # Where only sources matter, it is the paired t-test over sources.
        (5, (0.0, 10.0, 0.0), 2.5, lambda: nct_power(2.5 / math.sqrt(100 / 100), 99)),
    ],
)
def test_a_known_difference_is_found_as_often_as_theory_says(
    seeds: int, spread: tuple[float, float, float], effect: float, power: object
) -> None:
    expected = power()  # type: ignore[operator]
    assert 0.6 < expected < 0.9
    assert share_called(seeds, 100, spread, effect) == pytest.approx(expected, abs=tolerance(expected))


def nct_power(noncentrality: float, freedom: int) -> float:
    """Power of a two-sided t-test at the level of 5 %."""
    limit = stats.t.ppf(0.975, freedom)
    return float(stats.nct.sf(limit, freedom, noncentrality) + stats.nct.cdf(-limit, freedom, noncentrality))


def simulated_bleu(generator: np.random.Generator, seeds: int, sources: int, quality: float) -> Array:
    """BLEU statistics ``(S, M, 10)`` of one method: sources differ in difficulty, seeds in luck."""
    difficulty = np.random.default_rng(0).normal(scale=0.1, size=(1, sources))
    luck = 0.01 * generator.normal(size=(seeds, 1)) + 0.1 * generator.normal(size=(seeds, sources))
    hit = np.clip(quality + difficulty + luck, 0.05, 0.98)  # probability that a word is right
    length = np.broadcast_to(np.random.default_rng(1).integers(8, 25, size=sources), hit.shape)
    totals = [np.maximum(length - order, 0) for order in range(4)]
    matches = [generator.binomial(total, hit ** (order + 1)) for order, total in enumerate(totals)]
    return np.stack([length, length, *matches, *totals], axis=-1).astype(np.float64)


def test_seeds_of_one_method_are_called_different_in_at_most_five_percent_by_bleu() -> None:
    generator, experiments, sources = np.random.default_rng(11), 300, 80
    tests = PairedTests(sources, bleu, resamples=200)
    called = found_worse = 0
    differences = []
    for _ in range(experiments):
        one, other, better = (simulated_bleu(generator, 5, sources, quality) for quality in (0.7, 0.7, 0.73))
        (equal,) = tests.all_pairs(seeded({"one": one, "other": other}))
        (worse,) = tests.all_pairs(seeded({"one": one, "better": better}))
        called += equal.told_apart
        found_worse += worse.told_apart and worse.difference < 0
        differences.append(worse.difference)
    assert called / experiments <= 0.05 + tolerance(0.05, experiments)
    # Between a t-test with the five seeds' degrees of freedom and one that knows the standard error.
    noncentrality = -float(np.mean(differences) / np.std(differences, ddof=1))
    least, most = nct_power(noncentrality, 4), nct_power(noncentrality, 10_000)
    assert 0.5 < least < 0.9
    slack = tolerance(0.5, experiments)
    assert least - slack < found_worse / experiments < most + slack


def test_the_base_model_has_one_seed_and_stands_against_all() -> None:
    generator = np.random.default_rng(3)
    tests = PairedTests(40, bleu, resamples=100)
    base, tuned = simulated_bleu(generator, 1, 40, 0.3), simulated_bleu(generator, 5, 40, 0.7)
    (pair,) = tests.all_pairs({"none": SeedStatistics(base, None), "full": SeedStatistics(tuned, (0, 1, 2, 3, 4))})
    assert pair.seeds == 5
    assert pair.told_apart
    assert pair.difference == pytest.approx(float(corpus_scores(base, bleu)[0] - corpus_scores(tuned, bleu).mean()))


def test_seeds_are_paired_across_methods() -> None:
    assert pairs_of_seeds((0, 1, 2), (2, 1, 5)) == [(1, 1), (2, 0)], "a seed that failed on one side is left out"
    assert pairs_of_seeds((0, 1), (5, 6, 7)) == [(0, 0), (1, 1)], "without a common seed, in order"
    assert pairs_of_seeds(None, (3, 4)) == [(0, 0), (0, 1)], "what trains nothing has every seed"
    assert pairs_of_seeds(None, None) == [(0, 0)]
    shifted = np.random.default_rng(0).normal(size=(5, 1, 1))
    noise = 0.01 * np.random.default_rng(1).normal(size=(5, 30, 1))
    values = [
        np.concatenate([base_value + noise, np.ones((5, 30, 1))], axis=-1) for base_value in (shifted, shifted + 0.1)
    ]
    methods = {"a": SeedStatistics(values[0], (0, 1, 2, 3, 4)), "b": SeedStatistics(values[1], (0, 1, 2, 3, 4))}
    (paired,) = PairedTests(30, mean, resamples=50).all_pairs(methods)
    assert paired.told_apart, "what seeds do to both methods cancels"


def test_few_seeds_conclude_nothing_about_methods() -> None:
    generator = np.random.default_rng(3)
    tests = PairedTests(40, bleu, resamples=100)
    for seeds in (1, 2):
        statistics = {name: simulated_bleu(generator, seeds, 40, quality) for name, quality in (("a", 0.3), ("b", 0.9))}
        (pair,) = tests.all_pairs(seeded(statistics))
        assert seeds < FEWEST_SEEDS
        assert not pair.conclusive
        assert not pair.told_apart
        assert pair.p_randomisation < 0.05, "these two trained models differ, which is another statement"
        assert (pair.p_value is None) == (seeds == 1)
        assert pair.low < pair.difference < pair.high
        assert pair.p_adjusted == (None if seeds == 1 else pytest.approx(pair.p_value)), "there is one pair"


def test_a_method_does_not_differ_from_itself() -> None:
    same = simulated_bleu(np.random.default_rng(3), 5, 40, 0.7)
    (pair,) = PairedTests(40, bleu, resamples=100).all_pairs(seeded({"a": same, "b": same.copy()}))
    assert pair.difference == 0
    assert pair.p_value == 1.0
    assert pair.p_randomisation == 1.0
    assert not pair.told_apart


def of_means(values: dict[str, Array]) -> dict[str, SeedStatistics]:
    """Methods whose score is the mean of these values of single sources, ``(S, M)`` each."""
    return seeded({name: np.stack([with_values(row) for row in rows]) for name, rows in values.items()})


def test_intervals_and_p_values_carry_the_same_correction() -> None:
    generator = np.random.default_rng(5)
    values = {f"m{index}": generator.normal(loc=index / 4, size=(6, 30)) for index in range(5)}
    tests = PairedTests(30, mean, resamples=200)
    pairs = tests.all_pairs(of_means(values))
    assert len(pairs) == 10
    assert 0 < sum(one.told_apart for one in pairs) < 10
    for one in pairs:
        assert one.p_adjusted is not None and one.p_value is not None
        assert (one.low > 0 or one.high < 0) == one.told_apart, one
        assert one.p_value < 0.05 or not one.told_apart, "the seeds of the pair itself have to agree"
        (alone,) = tests.all_pairs(of_means({name: values[name] for name in (one.first, one.second)}))
        assert (one.first_mean, one.second_mean) == (alone.first_mean, alone.second_mean)
        assert alone.p_adjusted == alone.p_value, "one pair needs no correction"


def test_a_half_width_is_that_of_each_part_at_its_own_degrees_of_freedom() -> None:
    t_2, t_99 = stats.t.ppf(0.975, 2), stats.t.ppf(0.975, 99)
    spread = Spread(
        (Variance(np.array([0.3]), 2.0),), Variance(np.array([0.2]), 99.0), Variance(np.array([0.25]), 99.0)
    )
    (width,) = spread.half_width(0.05)
    assert width == pytest.approx(math.sqrt(0.3 * t_2**2 + 0.2 * t_99**2))
    assert spread.p_value(np.array([width])) == pytest.approx([0.05])
    (far,) = spread.p_value(np.array([100.0]))
    assert spread.half_width(far) == pytest.approx([100.0])
    assert far < 1e-4
    assert spread.p_value(np.array([0.0])) == [1.0]
    by_sources = Spread((Variance(np.array([0.0]), 2.0),), Variance(np.array([0.0]), 99.0), spread.sources)
    assert by_sources.half_width(0.05) == pytest.approx([0.5 * t_99]), "never narrower than the sources alone ask for"


def test_more_pairs_may_be_equal_only_as_far_as_the_others_allow() -> None:
    assert shaffer_multipliers(2) == [1]
    assert shaffer_multipliers(3) == [3, 1, 1]
    assert shaffer_multipliers(4) == [6, 3, 3, 3, 2, 1], "Shaffer 1986, table 1"
    assert shaffer_multipliers(5)[:5] == [10, 6, 6, 6, 6]
    adjusted, places = step_down(np.array([0.04, 0.01, 0.001]), [3, 1, 1], np.array([False, False, True]))
    assert adjusted == pytest.approx([0.04, 0.03, 0.04]), "the last one is no smaller than those before it"
    assert places.tolist() == [1, 3, 1]


def test_the_jackknife_of_a_mean_is_its_textbook_variance() -> None:
    values = np.random.default_rng(2).normal(size=(1, 40))
    influences = jackknife(with_values(values[0])[None], mean)
    assert influences == pytest.approx(values - values.mean())
    spread = method_spread(values.mean(axis=1), influences, trains=False)
    assert spread.half_width(0.05) == pytest.approx(
        stats.t.ppf(0.975, 39 * CERTAINTY_OF_SOURCES) * stats.sem(values[0])
    )


def test_a_method_whose_seeds_spread_far_more_is_kept_out_of_the_pool() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(6, 5))
    scores[2] *= 12
    nothing = np.zeros((6, 5, 10))
    trains = np.ones(6, dtype=bool)
    assert wide_method(crossed(scores, nothing, trains)).tolist() == [number == 2 for number in range(6)]
    from_all, _, pooled = pair_spreads(crossed(scores, nothing, trains))
    first, second = np.triu_indices(6, k=1)
    assert (pooled == ((first != 2) & (second != 2))).all()
    assert from_all.seeds[0].degrees_of_freedom[pooled].tolist() == [16.0] * 10
    assert from_all.seeds[0].degrees_of_freedom[~pooled].tolist() == [4.0] * 5
    scores[4] *= 12
    assert not wide_method(crossed(scores, nothing, trains)).any(), "two of them: spreads differ in general"


def test_a_pool_is_the_mean_square_of_methods_and_seeds() -> None:
    generator = np.random.default_rng(1)
    scores = generator.normal(size=(4, 3)) + generator.normal(size=(1, 3))  # what seeds do to all methods alike
    from_all, _, pooled = pair_spreads(crossed(scores, np.zeros((4, 3, 10)), np.ones(4, dtype=bool)))
    residuals = scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0) + scores.mean()
    assert pooled.all()
    assert from_all.standard_error == pytest.approx([math.sqrt(2 * (residuals**2).sum() / 6 / 3)] * 6)


def test_seeds_that_all_have_are_counted_where_they_are_enough() -> None:
    assert common_seeds([(0, 1, 2, 3), (1, 2, 3, 4), None]) == (1, 2, 3)
    assert common_seeds([(0, 1), (0, 1)]) == (0, 1), "too few to conclude anything, but nobody has more"
    assert common_seeds([(0, 1, 2), (1, 2, 3)]) is None
    assert common_seeds([None, None]) == (0,)


def test_pairs_with_seeds_of_their_own_stand_by_themselves() -> None:
    generator = np.random.default_rng(4)

    def of(*seeds: int) -> SeedStatistics:
        return SeedStatistics(np.stack([with_values(row) for row in generator.normal(size=(len(seeds), 30))]), seeds)

    methods = {"a": of(0, 1, 2, 3, 4), "b": of(0, 1), "c": of(2, 3, 4)}
    found = {(one.first, one.second): one for one in PairedTests(30, mean, resamples=50).all_pairs(methods)}
    assert {pair: one.seeds for pair, one in found.items()} == {("a", "b"): 2, ("a", "c"): 3, ("b", "c"): 2}
    one = found["a", "c"]
    assert one.first_mean == pytest.approx(float(corpus_scores(methods["a"].values[2:], mean).mean()))
    assert one.first_mean - one.second_mean == pytest.approx(one.difference)


def test_intervals_of_a_mean_hold_the_score_on_new_seeds_and_new_sources() -> None:
    generator = np.random.default_rng(6)
    for seeds, sources in ((3, 64), (5, 500)):
        drawn = np.stack([simulated(generator, seeds, sources, (0.5, 8.0, 8.0)) for _ in range(1000)])
        scores = drawn.mean(axis=-1)
        spread = method_spread(scores, drawn - scores[..., None], trains=True)
        covered = (np.abs(scores.mean(axis=1)) <= spread.half_width(0.05)).mean()
        assert 0.95 - tolerance(0.05, 1000) <= covered <= 0.995
        alone = stats.t.ppf(0.975, seeds - 1) * scores.std(axis=1, ddof=1) / math.sqrt(seeds)
        assert (np.abs(scores.mean(axis=1)) <= alone).mean() < 0.9, "over seeds alone it would not"


@pytest.mark.parametrize("world", ["equal", "one wide", "heavy tails", "one untrained", "ties"])
def test_equal_methods_are_called_different_in_at_most_five_percent_of_comparisons(world: str) -> None:
    """A slice of tests/programs/false_calls, whose whole table is results/exhibits/false_calls/false_calls.md."""
    for methods, seeds, sources in ((13, 3, 500), (8, 5, 64)):
        design = Design(methods, seeds, sources, "mean", world)
        called, before = (0, 0)
        for of in batches(design, 250, np.random.default_rng(8), np.zeros(methods)):
            called += int(pooled_and_own(of, np.random.default_rng(0), True).any(axis=1).sum())
            before += int(satterthwaite(of, np.random.default_rng(0), True).any(axis=1).sum())
        assert called / 250 <= 0.05 + tolerance(0.05, 250)
        if seeds == 3 and world in ("equal", "one wide"):
            assert before / 250 > 0.25, "with degrees of freedom from the variances themselves it was this bad"


def test_what_is_simulated_is_what_reports_do() -> None:
    """The simulation decides many experiments at once; one by one, the tests of reports decide the same."""
    design = Design(5, 4, 64, "mean", "one wide")
    shift = np.array([0.0, 0.0, 0.0, 6.0, 9.0])
    scores, influences = draw(design, 12, np.random.default_rng(3), shift)
    expected = pooled_and_own(crossed(scores, influences, np.ones(5, dtype=bool)), np.random.default_rng(0), False)
    tests = PairedTests(64, mean, resamples=2)
    for number in range(12):
        values = scores[number][..., None] + influences[number]
        pairs = tests.all_pairs(of_means({f"m{method}": values[method].astype(float) for method in range(5)}))
        assert [one.told_apart for one in pairs] == expected[number].tolist()
    assert 0 < expected.mean() < 1


@pytest.mark.parametrize("sources", [20, 200])
def test_randomisation_holds_where_sacrebleus_bootstrap_does_not(sources: int) -> None:
    generator = np.random.default_rng(9)
    tests = PairedTests(sources, mean, resamples=200, sacrebleu=True)
    called = called_by_sacrebleu = 0
    for _ in range(300):
        values = {name: generator.normal(size=(1, sources)) for name in ("a", "b")}
        (pair,) = tests.all_pairs(of_means(values))
        called += pair.p_randomisation < 0.05
        assert pair.p_sacrebleu_bootstrap is not None
        called_by_sacrebleu += pair.p_sacrebleu_bootstrap < 0.05
    assert called / 300 <= 0.05 + tolerance(0.05, 300)
    assert called_by_sacrebleu / 300 > 0.05 + tolerance(0.05, 300)


def test_ten_methods_of_five_seeds_take_a_second_for_a_thousand_resamples() -> None:
    generator = np.random.default_rng(0)
    statistics = {f"m{index}": simulated_bleu(generator, 5, 630, 0.7) for index in range(10)}
    start = time.process_time()
    pairs = PairedTests(630, bleu).all_pairs(seeded(statistics))
    seconds = time.process_time() - start
    assert len(pairs) == 45
    assert seconds < 4, f"{seconds:.1f} s of CPU time; a quiet core takes about one"


def test_groups_are_the_largest_sets_that_cannot_be_told_apart() -> None:
    names = ["a", "b", "c", "d"]
    assert groups(names, []) == [("a", "b", "c", "d")]
    assert groups(names, [("a", "d")]) == [("a", "b", "c"), ("b", "c", "d")]
    assert groups(names, [("a", "c"), ("a", "d"), ("b", "d")]) == [("a", "b"), ("b", "c"), ("c", "d")]
    every = [(x, y) for index, x in enumerate(names) for y in names[index + 1 :]]
    assert groups(names, every) == [("a",), ("b",), ("c",), ("d",)]
    assert letters(names, [("a", "d")]) == {"a": "a", "b": "ab", "c": "ab", "d": "b"}


@pytest.mark.parametrize("seed", range(8))
def test_groups_hold_no_pair_that_differs_and_every_pair_that_does_not(seed: int) -> None:
    generator = random.Random(seed)
    names = [f"m{index}" for index in range(7)]
    pairs = [(x, y) for index, x in enumerate(names) for y in names[index + 1 :]]
    apart = {pair for pair in pairs if generator.random() < 0.5}
    groups_of_names = groups(names, apart)
    for pair in pairs:
        together = any(set(pair) <= set(group) for group in groups_of_names)
        assert together == (pair not in apart)
    assert not any(set(one) < set(other) for one in groups_of_names for other in groups_of_names)
