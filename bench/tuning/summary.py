"""What a search tried, how much of its budget it used, and what it chose, computed from rows and records.

``tunings(read_searches(root), Store(root).read_all())`` gives one :class:`Tuning` for each search, with everything that
reports print or draw. Imports neither torch nor ray.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from bench.schema.labels import labels
from bench.schema.record import Failed, Probed, TrialResult
from bench.schema.trial import JsonDict, titled
from bench.tuning.rows import SearchRows
from bench.tuning.search import Origin, Search, value_of

LEARNING_RATE = "train.learning_rate"


@dataclass(frozen=True)
class Tried:
    """One trial of a search."""

    number: int  # of its ask; with halving an ask has a trial for each rung that it reached
    settings: JsonDict  # dotted key to value
    origin: Origin
    trial_id: str
    stop_after_steps: int | None  # None: trained to the end
    audited: bool  # cut by halving, and trained to the end all the same
    value: float | None  # of the metric that settings are chosen by; None: failed
    reason: str | None  # why it failed
    device_seconds: float
    devices: tuple[str, ...] = ()  # of its ranks, each once


@dataclass(frozen=True)
class ExpectedBest:
    """The value on the dev split that the best of so many random trials is expected to reach."""

    trials: int
    device_seconds: float
    value: float


@dataclass(frozen=True)
class Audit:
    """What halving cost: the best of the audited trials compared with the best of those that were kept."""

    audited: int
    best_kept: float
    best_audited: float
    regret: float  # by how much the best audited trial was better; 0 if none was


@dataclass(frozen=True)
class Tuning:
    """One search, as far as it has come."""

    search: Search
    higher_is_better: bool  # of the metric that settings are chosen by
    tried: tuple[Tried, ...]  # in order of asks, then of length
    label: str = ""  # what tells it from the other searches of its method

    @property
    def name(self) -> str:
        """Method and label."""
        return titled(self.search.method, self.label)

    @property
    def metric(self) -> str:
        return self.search.tune.metric

    @cached_property
    def finished_trials(self) -> tuple[Tried, ...]:
        """Trials of full length, failed ones included."""
        return tuple(one for one in self.tried if one.stop_after_steps is None)

    @cached_property
    def chosen_trial(self) -> Tried | None:
        """The trial whose settings the final stage takes, by the same rule; None if all failed."""
        return min((one for one in self.finished_trials if one.value is not None), key=self._loss, default=None)

    @property
    def trained_trials(self) -> tuple[Tried, ...]:
        """What was really trained: two asks of the same settings are one training."""
        return tuple({one.trial_id: one for one in reversed(self.tried)}.values())

    @property
    def trials_used(self) -> float:
        """Budget used, in trainings of full length."""
        return sum(
            (one.stop_after_steps or full) / full for full in [self.search.steps or 1] for one in self.trained_trials
        )

    @property
    def device_seconds_used(self) -> float:
        """Budget used, in seconds that ranks worked."""
        return math.fsum(one.device_seconds for one in self.trained_trials)

    @property
    def failed(self) -> int:
        return sum(one.value is None for one in self.trained_trials)

    @property
    def extensions(self) -> int:
        """How often a range was extended because its border held the best value."""
        return len({one.number for one in self.tried if one.origin == "border"})

    @cached_property
    def learning_rate_curve(self) -> tuple[tuple[float, float | None], ...]:
        """Learning rate and value of each trial of full length, by learning rate; the value is None if it failed.

        Empty where the search does not vary the learning rate. Where it varies more, the other settings differ from
        point to point.
        """
        if LEARNING_RATE not in self.search.space:
            return ()
        return tuple(
            sorted(((float(one.settings[LEARNING_RATE]), one.value) for one in self.finished_trials), key=_first)
        )

    @cached_property
    def expected_best(self) -> tuple[ExpectedBest, ...]:
        """What the best of 1, 2, ... trials is expected to reach on the dev split: methods compare at any budget.

        Over the trials whose settings did not depend on results, taken as a sample of the ranges: borders, refinements
        and what TPE asked are left out. Empty with halving, where cut trials have no value at full length. A failed
        trial counts as the worst of the others, and its time not at all: it ended early.
        """
        search = self.search
        fixed = [one for one in self.finished_trials if one.origin == "sampler"]
        if search.tune.sampler == "tpe":
            fixed = [one for one in fixed if one.number < search.first_asks]
        known = [one.value for one in fixed if one.value is not None]
        if search.rungs or not known:
            return ()
        worst = min(known) if self.higher_is_better else max(known)
        values = [worst if one.value is None else one.value for one in fixed]
        seconds = math.fsum(one.device_seconds for one in fixed if one.value is not None) / len(known)
        return tuple(
            ExpectedBest(trials, trials * seconds, value)
            for trials, value in enumerate(expected_best(values, self.higher_is_better), start=1)
        )

    @cached_property
    def audit(self) -> Audit | None:
        """What halving would have missed; None where nothing was audited to its end."""
        kept = [self._loss(one)[0] for one in self.finished_trials if one.origin == "sampler" and not one.audited]
        audited = [self._loss(one)[0] for one in self.finished_trials if one.audited]
        if not self.search.rungs or not audited or min(kept, default=math.inf) == math.inf:
            return None
        sign = -1.0 if self.higher_is_better else 1.0
        return Audit(len(audited), sign * min(kept), sign * min(audited), max(0.0, min(kept) - min(audited)))

    def _loss(self, one: Tried) -> tuple[float, int]:
        """What trials are ordered by: the better first, the earlier of equals."""
        value = math.inf if one.value is None else -one.value if self.higher_is_better else one.value
        return value, one.number


def tunings(searches: Iterable[SearchRows], results: Iterable[TrialResult]) -> list[Tuning]:
    """What each search tried. Trials without a record, which an unfinished sweep has, are left out."""
    records = {result.trial_id: result for result in results}
    return _labelled([_tuning(rows, records) for rows in searches], records)


def _labelled(made: Sequence[Tuning], records: Mapping[str, TrialResult]) -> list[Tuning]:
    """The same with labels: of the settings that are not searched, those that tell apart."""
    begun = [tuning for tuning in made if tuning.tried]
    specs = [records[tuning.tried[0].trial_id].spec for tuning in begun]
    found = labels(specs, ignored=[{*tuning.search.space, "stop_after_steps"} for tuning in begun])
    texts = {tuning.search.key: label.text for tuning, label in zip(begun, found, strict=True)}
    named = [replace(tuning, label=texts.get(tuning.search.key, tuning.search.label)) for tuning in made]
    counts = Counter(tuning.name for tuning in named)
    return [
        tuning
        if counts[tuning.name] == 1
        else replace(tuning, label=", ".join(filter(None, [tuning.label, f"search {tuning.search.key[-8:]}"])))
        for tuning in named
    ]


def _tuning(rows: SearchRows, records: Mapping[str, TrialResult]) -> Tuning:
    search, audited = rows.search, {number for cut in rows.cuts for number in cut.audited}
    lengths: list[int | None] = [*search.rungs, None]
    tried: list[Tried] = []
    higher_is_better = False
    for ask in rows.asks:
        for steps, trial_id in zip(lengths, ask.trial_ids, strict=True):
            if (record := records.get(trial_id)) is None:
                continue
            outcome = record.outcome
            if isinstance(outcome, Probed) and outcome.dev_scores is not None and search.tune.metric != "dev_loss":
                higher_is_better = outcome.dev_scores.higher_is_better.get(search.tune.metric, higher_is_better)
            loss = value_of(record, search.tune.metric)
            tried.append(
                Tried(
                    number=ask.number,
                    settings=ask.settings,
                    origin=ask.origin,
                    trial_id=trial_id,
                    stop_after_steps=steps,
                    audited=steps is None and ask.number in audited,
                    value=-loss if higher_is_better and loss is not None else loss,
                    reason=outcome.reason if isinstance(outcome, Failed) else None,
                    device_seconds=record.device_seconds,
                    devices=record.devices,
                )
            )
    return Tuning(search, higher_is_better, tuple(tried))


def expected_best(values: Sequence[float], higher_is_better: bool) -> list[float]:
    """Expected best of 1 to N trials drawn without replacement from N: the unbiased estimator.

    Source: Tang et al. 2020, "Showing Your Work Doesn't Always Work", arXiv:2004.13705. The estimator of Dodge et
    al. 2019 draws with replacement, which is biased.
    """
    order = sorted(values, reverse=not higher_is_better)  # from the worst to the best
    total = len(order)
    return [
        math.fsum(
            math.comb(rank - 1, trials - 1) / math.comb(total, trials) * order[rank - 1]
            for rank in range(trials, total + 1)
        )
        for trials in range(1, total + 1)
    ]


def _first(pair: tuple[float, float | None]) -> float:
    return pair[0]
