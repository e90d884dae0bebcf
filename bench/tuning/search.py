"""How a search goes: which settings it asks first and next, which trials it cuts, and which settings it chooses.

All functions depend only on the search and on the values of its asks, so that a search that was interrupted asks the
same again. Values are losses here: lower is better. Imports no torch, and Optuna only when it samples.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from bench.schema.record import Probed, TrialResult
from bench.schema.search_space import Choices, Range, SearchSpace
from bench.schema.sweep import TuneSpec
from bench.schema.trial import JsonDict, Spec

# How many asks come before results count, of a sampler that learns from results or has no fixed number of asks.
FIRST_ASKS = 3
# The best value lies on the border of its range if no value further out was tried, and if its distance from the edge is
# at most this share of the range.
BORDER_TOLERANCE = 0.05
# How many points of a sequence are tried to find settings that were not asked before.
MOST_LOOKED_AT = 200
# A range grows by one of its steps, but by no more than this share of its width at a time.
LARGEST_EXTENSION = 0.5
# This last share of the budget is kept for ranges whose border holds the best value, and for refining a grid.
RESERVED_SHARE = 1 / 3

Origin = Literal["sampler", "border", "refinement"]
# Whether a trial can have some settings: a step beyond a range may leave what a setting can be.
Allowed = Callable[[JsonDict], bool]
_SAMPLER: Origin = "sampler"
_REFINEMENT: Origin = "refinement"


class Ask(Spec):
    """One choice of settings that a search tries: a row of the store, written before its trial runs."""

    number: int
    settings: JsonDict = Field(description="dotted key to value")
    origin: Origin = Field(description="border: beyond the range, because its border held the best value")
    trial_ids: list[str] = Field(description="one for each length of training, the full length last")


class Cut(Spec):
    """A rung of successive halving: which asks go on. A row of the store."""

    rung: int
    kept: list[int]
    audited: list[int] = Field(description="cut but trained to the end, to see what the rule costs")


class Search(Spec):
    """The search for one method's settings: the row of the store that its asks and cuts belong to."""

    key: str
    method: str
    label: str = Field(description="choice of the sweep's own grid, for people")
    space: SearchSpace
    tune: TuneSpec
    steps: int | None = Field(description="of a training of full length; None where the sweep counts epochs")
    rungs: list[int] = Field(description="steps after which trials are cut, in ascending order")

    def cost(self, asks: int) -> float:
        """The cost of so many asks over all rungs, audits included, in trainings of full length."""
        total, alive = 0.0, asks
        for steps in self.rungs:
            total += alive * steps / (self.steps or steps)
            kept = self.num_kept(alive)
            total += self.num_audited(alive - kept)
            alive = kept
        return total + alive

    def num_kept(self, alive: int) -> int:
        """How many of so many asks go on after a cut."""
        return math.ceil(alive / self.tune.halving.factor) if self.tune.halving else alive

    def num_audited(self, cut: int) -> int:
        """How many of so many asks that are cut are trained to the end."""
        return math.ceil(cut * self.tune.halving.audit_fraction) if self.tune.halving else 0

    @property
    def asked_at_once(self) -> int:
        """How many asks are made together: one if the budget is in seconds, because trials take unknown time."""
        return self.first_asks if self.tune.trials is not None else 1

    @property
    def first_asks(self) -> int:
        """How many asks are made before any result counts."""
        if self.tune.trials is None:
            return FIRST_ASKS
        if self.tune.sampler == "tpe":
            return min(self.tune.trials, max(FIRST_ASKS, math.ceil(self.tune.trials / 3)))
        budget = self.tune.trials - reserved(self.tune.trials)
        # Where audits take much of a small budget, fewer asks fit than it has trials.
        return next(n for n in itertools.count(1) if self.cost(n + 1) > budget) if self.rungs else budget


@dataclass(frozen=True)
class AskResult:
    """The value of an ask that was trained at full length."""

    ask: Ask
    value: float | None  # None: the trial failed

    @property
    def loss(self) -> float:
        """The value for comparisons: a trial that failed is worse than all others."""
        return math.inf if self.value is None else self.value


def value_of(record: TrialResult, metric: str) -> float | None:
    """The value of a trial as a loss: a score that is better when higher changes its sign.

    None if the trial failed, or if the score could not be had of its texts or is not finite, so that it cannot be
    compared.

    Raises:
        ValueError: The trial has no such score.
    """
    outcome = record.outcome
    if not isinstance(outcome, Probed):
        return None
    if metric == "dev_loss":
        return _if_finite(outcome.dev_loss)
    scores = outcome.dev_scores
    if scores is not None and metric in scores.absent:
        return None
    if scores is None or metric not in scores.values:
        known = ", ".join(["dev_loss", *(scores.values if scores is not None else ())])
        raise ValueError(f"stages.tune.metric: there is no score {metric!r}; known: {known}")
    return _if_finite(-scores.values[metric] if scores.higher_is_better[metric] else scores.values[metric])


def _if_finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def reserved(trials: int) -> int:
    """How many trials of a budget are kept for borders and refinements. At least three first points remain."""
    return max(0, min(int(trials * RESERVED_SHARE), trials - 3))


def best(results: Sequence[AskResult]) -> AskResult | None:
    """The ask with the lowest loss, and of equals the earliest; None if all failed."""
    return min(
        (one for one in results if one.value is not None), key=lambda one: (one.loss, one.ask.number), default=None
    )


def first_settings(search: Search) -> list[JsonDict]:
    """The settings that are asked first, all together."""
    if search.tune.sampler == "grid":
        return grid(search.space, search.first_asks)
    points: list[JsonDict] = []
    while len(points) < search.asked_at_once and (point := unasked(search, points)) is not None:
        points.append(point)
    return points


def anything(_: JsonDict) -> bool:
    """Allows all settings."""
    return True


def next_settings(
    search: Search,
    asks: Sequence[Ask],
    results: Sequence[AskResult],
    used_fraction: float,
    allowed: Allowed = anything,
) -> tuple[JsonDict, Origin] | None:
    """Settings that were not asked before; None if there are none left to try.

    Args:
        search: The search.
        asks: All asks so far.
        results: Values of the asks that were trained to the end.
        used_fraction: Share of the budget that is used up. In the last third, a range whose border holds the best value
            comes first.
        allowed: Settings that it refuses are passed over. It says the same of the same settings, always.
    """
    chosen = best(results)
    if chosen is not None and used_fraction >= 1 - RESERVED_SHARE - 1e-9:
        beyond = beyond_border(search, asks, chosen, allowed)
        if beyond is not None:
            return beyond, "border"
    earlier_settings = [ask.settings for ask in asks]
    if search.tune.sampler == "quasi_random" or (search.tune.sampler == "tpe" and len(asks) < search.first_asks):
        proposed, origin = unasked(search, earlier_settings, allowed), _SAMPLER
    elif search.tune.sampler == "tpe":
        proposed, origin = tree_parzen(search.space, results, search.tune.seed + len(asks)), _SAMPLER
        if proposed in earlier_settings or not allowed(proposed):
            proposed = unasked(search, earlier_settings, allowed)
    else:
        # If every trial of a grid failed, other points of its ranges are tried.
        proposed = (
            unasked(search, earlier_settings, allowed)
            if chosen is None
            else refinement(search, asks, results, chosen, allowed)
        )
        origin = _REFINEMENT
    return None if proposed is None else (proposed, origin)


def unasked(search: Search, earlier_settings: Sequence[JsonDict], allowed: Allowed = anything) -> JsonDict | None:
    """The next point of the quasi-random sequence that was not asked and can be; None if all choices were."""
    for number in range(len(earlier_settings), len(earlier_settings) + MOST_LOOKED_AT):
        point = quasi_random(search.space, search.tune.seed, number)
        if point not in earlier_settings and allowed(point):
            return point
    left = (point for point in _choices(search.space) if point not in earlier_settings)
    return next((point for point in left if allowed(point)), None)


def _choices(space: SearchSpace) -> list[JsonDict]:
    """All settings of a space that has only choices; none if it has a range."""
    if any(isinstance(dimension, Range) for dimension in space.values()):
        return []
    axes = [dimension.values for dimension in space.values() if isinstance(dimension, Choices)]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]


def grid(space: SearchSpace, most: int) -> list[JsonDict]:
    """At most ``most`` points, evenly spaced in each range, borders included; the first range gets the most points.

    Raises:
        ValueError: ``most`` is too few for every choice together with both ends of every range.
    """
    ranges = [key for key, dimension in space.items() if isinstance(dimension, Range)]
    choices = math.prod(len(dimension.values) for dimension in space.values() if isinstance(dimension, Choices))
    single = len(ranges) == 1 and choices == 1
    points = dict.fromkeys(ranges, 1 if single else 2)
    if choices * math.prod(points.values()) > most:
        needed = choices * math.prod(points.values())
        raise ValueError(f"a grid over {', '.join(space)} takes at least {needed} first trials; there are {most}")
    while ranges:
        for key in sorted(ranges, key=lambda key: points[key]):
            if choices * math.prod(points.values()) // points[key] * (points[key] + 1) <= most:
                points[key] += 1
                break
        else:
            break
    axes = [
        [_from_unit(dimension, _spread(index, points[key])) for index in range(points[key])]
        if isinstance(dimension, Range)
        else list(dimension.values)
        for key, dimension in space.items()
    ]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]


def quasi_random(space: SearchSpace, seed: int, number: int) -> JsonDict:
    """A point of the scrambled Halton sequence. With equal seeds, all methods try the same places of their ranges."""
    from scipy.stats.qmc import Halton

    point = Halton(d=len(space), scramble=True, rng=seed).random(number + 1)[number]
    return {
        key: _from_unit(dimension, float(share))
        if isinstance(dimension, Range)
        else dimension.values[int(share * len(dimension.values))]
        for (key, dimension), share in zip(space.items(), point, strict=True)
    }


def tree_parzen(space: SearchSpace, results: Sequence[AskResult], seed: int) -> JsonDict:
    """The settings that Optuna's tree-structured Parzen estimator asks after these values (Bergstra et al. 2011).

    Each ask makes a new study, so that it depends only on the seed and the values. Failed trials count as infinitely
    bad. Ranges reach as far as they were extended.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions: dict[str, optuna.distributions.BaseDistribution] = {}
    for key, dimension in space.items():
        if isinstance(dimension, Range):
            tried = [one.ask.settings[key] for one in results]
            low, high = min([dimension.low, *tried]), max([dimension.high, *tried])
            distributions[key] = optuna.distributions.FloatDistribution(low, high, log=dimension.log)
        else:
            # Optuna takes choices of plain types only, so that it gets their numbers.
            distributions[key] = optuna.distributions.CategoricalDistribution(range(len(dimension.values)))
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=0))
    for one in results:
        parameters = {key: _for_optuna(space[key], value) for key, value in one.ask.settings.items()}
        study.add_trial(optuna.trial.create_trial(params=parameters, distributions=distributions, value=one.loss))
    proposal = study.ask(distributions).params
    return {
        key: _rounded(proposal[key]) if isinstance(dimension, Range) else dimension.values[proposal[key]]
        for key, dimension in space.items()
    }


def beyond_border(
    search: Search, asks: Sequence[Ask], chosen: AskResult, allowed: Allowed = anything
) -> JsonDict | None:
    """The best settings with one value a step beyond its range; None if no range has the best value on its border.

    A value is on the border if it is close to the edge (:data:`BORDER_TOLERANCE`) of the declared range, or of one that
    was extended before, and if no value beyond it was tried. A step that leads out of what a setting can be is none.
    """
    for key, dimension in search.space.items():
        if not isinstance(dimension, Range) or not dimension.extend:
            continue
        places = [_to_unit(dimension, float(ask.settings[key])) for ask in asks]
        extended = [place for place, ask in zip(places, asks, strict=True) if ask.origin == "border"]
        low, high = min([0.0, *extended]), max([1.0, *extended])
        place = _to_unit(dimension, float(chosen.ask.settings[key]))
        step = min(LARGEST_EXTENSION, 1 / max(1, len(set(places[: search.first_asks])) - 1))
        if place == min(places) < max(places) and place <= low + BORDER_TOLERANCE:
            beyond = min(place, low) - step
        elif place == max(places) > min(places) and place >= high - BORDER_TOLERANCE:
            beyond = max(place, high) + step
        else:
            continue
        settings = {**chosen.ask.settings, key: _from_unit(dimension, beyond)}
        if all(settings != ask.settings for ask in asks) and allowed(settings):
            return settings
    return None


def refinement(
    search: Search,
    asks: Sequence[Ask],
    results: Sequence[AskResult],
    chosen: AskResult,
    allowed: Allowed = anything,
) -> JsonDict | None:
    """The best settings with one value halfway to the better of its neighbours. Ranges take turns."""
    ranges = [(key, dimension) for key, dimension in search.space.items() if isinstance(dimension, Range)]
    turn = sum(ask.origin == "refinement" for ask in asks) % max(1, len(ranges))
    for key, dimension in ranges[turn:] + ranges[:turn]:
        losses = {float(ask.settings[key]): math.inf for ask in asks}
        for one in results:
            value = float(one.ask.settings[key])
            losses[value] = min(one.loss, losses[value])
        tried = sorted(losses)
        at = tried.index(float(chosen.ask.settings[key]))
        neighbours = [tried[index] for index in (at - 1, at + 1) if 0 <= index < len(tried)]
        for neighbour in sorted(neighbours, key=lambda value: losses[value]):
            place = (_to_unit(dimension, tried[at]) + _to_unit(dimension, neighbour)) / 2
            settings = {**chosen.ask.settings, key: _from_unit(dimension, place)}
            if all(settings != ask.settings for ask in asks) and allowed(settings):
                return settings
    return None


def cut(search: Search, rung: int, values: Mapping[int, float | None]) -> Cut:
    """Which asks go on after a rung: the better ones, and as an audit a random sample of the others.

    Args:
        search: The search.
        rung: Index into ``search.rungs``.
        values: Number of each ask that reached the rung, to its value there; None if its trial failed.
    """
    order = sorted(values, key=lambda number: (math.inf if (value := values[number]) is None else value, number))
    alive = [number for number in order if values[number] is not None]
    kept = alive[: search.num_kept(len(order))]
    lost = [number for number in alive if number not in kept]
    audited = random.Random(f"audit {search.tune.seed} {rung}").sample(
        lost, min(len(lost), search.num_audited(len(lost)))
    )
    return Cut(rung=rung, kept=sorted(kept), audited=sorted(audited))


def _spread(index: int, points: int) -> float:
    return index / (points - 1) if points > 1 else 0.5


def _to_unit(dimension: Range, value: float) -> float:
    """The place of a value in its range: 0 at the low end, 1 at the high end."""
    if dimension.log:
        return math.log(value / dimension.low) / math.log(dimension.high / dimension.low)
    return (value - dimension.low) / (dimension.high - dimension.low)


def _from_unit(dimension: Range, place: float) -> float:
    if dimension.log:
        return _rounded(dimension.low * (dimension.high / dimension.low) ** place)
    return _rounded(dimension.low + (dimension.high - dimension.low) * place)


def _rounded(value: float) -> float:
    """Three significant digits, which people can type."""
    return float(f"{value:.3g}")


def _for_optuna(dimension: Range | Choices, value: object) -> object:
    return value if isinstance(dimension, Range) else dimension.values.index(value)
