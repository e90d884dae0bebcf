"""What a search asks, cuts and chooses: rules on plain values, without a trial."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest

from bench.schema.search_space import Choices, Range, SearchSpace
from bench.schema.sweep import HalvingSpec, TuneSpec
from bench.schema.trial import JsonDict
from bench.tuning.search import (
    Ask,
    AskResult,
    Search,
    best,
    beyond_border,
    cut,
    first_settings,
    grid,
    next_settings,
    quasi_random,
    reserved,
)

RATE = "train.learning_rate"
SPACE: SearchSpace = {RATE: Range(low=1e-4, high=1e-2)}


def search(space: SearchSpace = SPACE, steps: int | None = 27, rungs: tuple[int, ...] = (), **tune: Any) -> Search:
    return Search(key="x", method="full", label="", space=space, tune=TuneSpec(**tune), steps=steps, rungs=list(rungs))


def results(*pairs: tuple[float, float | None], origin: str = "sampler") -> list[AskResult]:
    return [
        AskResult(
            Ask.model_validate({"number": number, "settings": {RATE: rate}, "origin": origin, "trial_ids": []}),
            value,
        )
        for number, (rate, value) in enumerate(pairs)
    ]


def following(of: Search, so_far: list[AskResult], used: float = 1.0) -> tuple[JsonDict, str] | None:
    return next_settings(of, [one.ask for one in so_far], so_far, used)


def test_a_grid_is_even_in_the_logarithm_and_holds_its_borders() -> None:
    assert [point[RATE] for point in grid(SPACE, 5)] == [1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2]
    assert grid(SPACE, 1) == [{RATE: 1e-3}]


def test_the_learning_rate_gets_most_points_of_a_larger_grid() -> None:
    space = {RATE: SPACE[RATE], "config.dropout": Range(low=0.0, high=0.2, log=False)}
    points = grid(space, 8)
    assert len(points) == 8
    assert len({point[RATE] for point in points}) == 4
    with_choices = grid({**SPACE, "config.init": Choices(values=("text", "normal"))}, 7)
    assert len(with_choices) == 6
    with pytest.raises(ValueError, match=r"takes at least 4 first trials; there are 3"):
        grid(space, 3)


def test_quasi_random_points_are_seeded_and_the_same_share_of_every_range() -> None:
    points = [quasi_random(SPACE, 7, number)[RATE] for number in range(8)]
    assert points == [quasi_random(SPACE, 7, number)[RATE] for number in range(8)]
    assert points != [quasi_random(SPACE, 8, number)[RATE] for number in range(8)]
    assert all(1e-4 <= point <= 1e-2 for point in points)
    halves = [point < 1e-3 for point in points]
    assert halves.count(True) == 4, "evenly spread, unlike random points"
    wide = quasi_random({RATE: Range(low=1e-3, high=1e-1)}, 7, 0)[RATE]
    assert wide == pytest.approx(10 * points[0], rel=1e-2)


@pytest.mark.parametrize(("trials", "kept_back"), [(1, 0), (3, 0), (4, 1), (5, 1), (6, 2), (7, 2), (12, 4)])
def test_the_last_third_of_a_budget_is_kept_back(trials: int, kept_back: int) -> None:
    assert reserved(trials) == kept_back
    assert len(first_settings(search(trials=trials))) == trials - kept_back


def test_a_best_value_on_the_border_extends_the_range_by_a_step() -> None:
    of = search(trials=6)
    low = results((1e-4, 1.0), (4.64e-4, 1.5), (2.15e-3, 2.0), (1e-2, 3.0))
    assert following(of, low) == ({RATE: 2.15e-5}, "border"), "one step of the grid, to the low side"
    again = low + results((2.15e-5, 0.5))
    assert following(of, again) == ({RATE: 4.63e-6}, "border"), "the new border may be extended again"
    high = results((1e-4, 3.0), (4.64e-4, 2.0), (2.15e-3, 1.5), (1e-2, None), (1.5e-2, 1.0))
    assert following(of, high) == ({RATE: 0.0696}, "border")
    fixed = search({RATE: Range(low=1e-4, high=1e-2, extend=False)}, trials=6)
    assert following(fixed, low) == ({RATE: 2.15e-4}, "refinement")


def test_an_inner_best_value_of_a_grid_is_refined_towards_its_better_neighbour() -> None:
    of = search(trials=7)
    so_far = results((1e-4, 3.0), (3.16e-4, 2.0), (1e-3, 1.0), (3.16e-3, 1.5), (1e-2, None))
    assert following(of, so_far) == ({RATE: 1.78e-3}, "refinement")
    ask = Ask(number=5, settings={RATE: 1.78e-3}, origin="refinement", trial_ids=[])
    assert following(of, [*so_far, AskResult(ask, 1.2)]) == ({RATE: 1.33e-3}, "refinement")


def test_a_grid_whose_first_trials_failed_goes_on_elsewhere() -> None:
    of = search(trials=6)
    failed = results((1e-4, None), (4.64e-4, None), (2.15e-3, None), (1e-2, None))
    next_point = following(of, failed)
    assert next_point is not None
    settings, origin = next_point
    assert origin == "refinement"
    assert 1e-4 < settings[RATE] < 1e-2 and settings not in [one.ask.settings for one in failed]
    choices = search({"config.init": Choices(values=("text", "normal"))}, trials=6)
    asks = [
        Ask(number=number, settings={"config.init": init}, origin="sampler", trial_ids=[])
        for number, init in enumerate(("text", "normal"))
    ]
    assert next_settings(choices, asks, [AskResult(ask, None) for ask in asks], 0.5) is None, "there is nothing else"


@pytest.mark.parametrize("sampler", ["quasi_random", "tpe", "grid"])
def test_nothing_is_asked_twice(sampler: str) -> None:
    space = {"config.init": Choices(values=("text", "normal")), "config.shared": Choices(values=(True, False))}
    of = search(space, trials=6, sampler=sampler)
    asks = [
        Ask(number=number, settings=settings, origin="sampler", trial_ids=[])
        for number, settings in enumerate(first_settings(of))
    ]
    while len(asks) < 6:
        so_far = [AskResult(ask, float(ask.number)) for ask in asks]
        if (found := next_settings(of, asks, so_far, len(asks) / 6)) is None:
            break
        asks.append(Ask(number=len(asks), settings=found[0], origin=found[1], trial_ids=[]))
    assert len(asks) == 4, "a space of four settings has four trainings, whatever the budget"
    assert len({str(ask.settings) for ask in asks}) == 4


@pytest.mark.parametrize(("sampler", "step"), [("quasi_random", 1 / 3), ("tpe", 1 / 2)])
def test_the_border_of_scattered_points_is_the_edge_of_the_range(sampler: str, step: float) -> None:
    of = search(trials=6, sampler=sampler)
    inside = results((2e-4, 1.0), (5e-4, 1.5), (2e-3, 2.0), (6e-3, 3.0))
    assert following(of, inside)[1] == "sampler", "the outermost one that was tried is not the border"  # type: ignore[index]
    at_edge = results((1.2e-4, 1.0), (5e-4, 1.5), (2e-3, 2.0), (6e-3, 3.0))
    next_point = following(of, at_edge)
    assert next_point is not None and next_point[1] == "border"
    assert next_point[0][RATE] == pytest.approx(1e-4 * 100**-step, rel=0.01), "a step beyond the edge, not the point"
    further = results((1.2e-4, 1.5), (5e-4, 1.0), (2e-3, 2.0), (1.1e-4, 3.0))
    assert following(of, further)[1] == "sampler"  # type: ignore[index]


def test_ties_go_to_the_earlier_ask_and_failures_are_never_chosen() -> None:
    chosen = best(results((1e-4, None), (1e-3, 1.0), (1e-2, 1.0)))
    assert chosen is not None
    assert chosen.ask.number == 1
    assert best(results((1e-4, None))) is None


def minimise(of: Search, loss: Any, asks: int) -> list[float]:
    so_far = [
        AskResult(Ask(number=number, settings=settings, origin="sampler", trial_ids=[]), loss(settings))
        for number, settings in enumerate(first_settings(of))
    ]
    while len(so_far) < asks:
        proposal = following(of, so_far, used=len(so_far) / asks)
        assert proposal is not None
        settings, origin = proposal
        ask = Ask.model_validate({"number": len(so_far), "settings": settings, "origin": origin, "trial_ids": []})
        so_far.append(AskResult(ask, loss(settings)))
    return [one.ask.settings[RATE] for one in so_far]


def test_tpe_learns_from_what_it_was_told_and_repeats_itself_exactly() -> None:
    space = {RATE: Range(low=1e-5, high=1e-1), "config.init": Choices(values=("text", "normal"))}
    of = search(space, trials=20, sampler="tpe")

    def loss(settings: JsonDict) -> float | None:
        if settings[RATE] > 3e-2:
            return None  # diverges
        return abs(math.log10(settings[RATE]) + 3.0) + (settings["config.init"] == "normal")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rates_in_order = minimise(of, loss, 20)
    assert rates_in_order == minimise(of, loss, 20)
    assert rates_in_order != minimise(search(space, trials=20, sampler="tpe", seed=5), loss, 20)

    def distance(sampler: str) -> float:
        """Mean distance of the later asks from the optimum, in decades."""
        found = [minimise(search(space, trials=20, sampler=sampler, seed=seed), loss, 20)[7:] for seed in range(6)]
        return sum(abs(math.log10(rate) + 3.0) for rates in found for rate in rates) / (6 * 13)

    assert distance("quasi_random") == pytest.approx(1.0, abs=0.15), "as uniform points of four decades"
    assert distance("tpe") < 0.85


def test_halving_keeps_the_better_and_audits_some_of_the_others() -> None:
    of = search(trials=12, rungs=(9,), halving=HalvingSpec(factor=3, audit_fraction=0.2))
    values: dict[int, float | None] = {0: 5.0, 1: None, 2: 1.0, 3: 4.0, 4: 2.0, 5: 3.0, 6: 6.0}
    made = cut(of, 0, values)
    assert made.kept == [2, 4, 5], "a third of seven, rounded up"
    assert len(made.audited) == 1
    assert set(made.audited) <= {0, 3, 6}, "the failed one cannot be trained to its end"
    assert cut(of, 0, values) == made
    assert cut(of, 0, {0: None, 1: None}).kept == []


def test_halving_asks_more_for_the_same_budget() -> None:
    plain = search(trials=12)
    halved = search(trials=12, rungs=(3, 9), halving=HalvingSpec(factor=3))
    assert plain.first_asks == 8
    assert halved.first_asks > 8
    assert halved.cost(halved.first_asks) <= 8 < halved.cost(halved.first_asks + 1)
    # 9 asks for 3 of 27 steps, 3 for 9 steps, 1 to the end, and one audit of the 6 and of the 2 that were cut.
    assert halved.cost(9) == pytest.approx(9 * 3 / 27 + 3 * 9 / 27 + 1 + 1 + 1)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_halving_keeps_to_a_small_budget(factor: int) -> None:
    rungs = [900]
    while (steps := math.ceil(rungs[0] / factor)) >= 100:
        rungs.insert(0, steps)
    for trials in range(3, 16):
        of = search(trials=trials, steps=900, rungs=tuple(rungs[:-1]), halving=HalvingSpec(factor=factor))
        budget = trials - reserved(trials)
        assert of.cost(of.first_asks) <= budget < of.cost(of.first_asks + 1)


def test_a_linear_range_begins_at_its_low_end() -> None:
    space: SearchSpace = {RATE: Range(low=2.0, high=6.0, log=False)}
    assert grid(space, 3) == [{RATE: 2.0}, {RATE: 4.0}, {RATE: 6.0}]


def test_one_value_shows_no_border() -> None:
    so_far = results((1e-2, 1.0))
    assert beyond_border(search(trials=9), [one.ask for one in so_far], so_far[0]) is None
    so_far = results((1e-3, 2.0), (1e-2, 1.0))
    assert beyond_border(search(trials=9), [one.ask for one in so_far], so_far[1]) is not None
