"""How long a sweep will take: the forecast of each trial, corrected by how long finished trials took.

A forecast need not be right, nor made for this machine: only the proportions between trials count. Imports neither
torch nor ray.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.schema.record import Failed, TrialResult
from bench.schema.trial import TrialSpec

OVERDUE_FRACTION = 0.05


@dataclass(frozen=True)
class Course:
    """A launch that runs now, with its trials."""

    specs: tuple[TrialSpec, ...]
    elapsed_seconds: float
    least_seconds: float = 0.0  # what its ranks say that the rest of the training takes


@dataclass(frozen=True)
class Later:
    """Trials that may run side by side, once all earlier ones have ended."""

    specs: Sequence[TrialSpec]
    seconds: float | None = None  # for all of them together, where a budget says so; None: as forecast


class _Sum(NamedTuple):
    """Seconds of trials that have ended, taken and forecast."""

    taken_seconds: float
    expected_seconds: float


class _Known(NamedTuple):
    """What stays the same of a trial, so that it is computed once."""

    spec: TrialSpec  # kept alive, so that no other object gets its id()
    keys: tuple[str, str, str]
    expected_seconds: float


class Pace:
    """Learns from finished trials how long others will take.

    The forecast of a trial is corrected by the finished trials of its own configuration; if there are none, by those of
    its method; else by all.

    Args:
        expected: Forecasts the seconds of a trial, on whatever machine.
        at_once: Tells how many trials like this one can run at a time.
    """

    def __init__(self, expected: Callable[[TrialSpec], float], at_once: Callable[[TrialSpec], int]) -> None:
        self._expected = expected
        self._at_once = at_once
        self._learned: dict[str, _Sum] = defaultdict(lambda: _Sum(0.0, 0.0))
        # By id() of the specification, because thousands of them are asked for again and again.
        self._known: dict[int, _Known] = {}
        self._expected_alike: dict[tuple[object, ...], float] = {}

    def learn(self, result: TrialResult) -> None:
        """Learn from a trial that has ended, unless it failed or only trained the rest of an earlier attempt."""
        if isinstance(result.outcome, Failed) or result.continued:
            return
        members = 1 if result.fused is None else 1 + len(result.fused.trials)
        known = self._known_of(result.spec)
        for key in known.keys:
            taken, expected = self._learned[key]
            total = taken + (result.total_seconds - result.download_seconds) / members
            self._learned[key] = _Sum(total, expected + known.expected_seconds)

    def seconds(self, spec: TrialSpec) -> float | None:
        """Seconds of a trial from its launch to its end; None before any trial has ended."""
        known = self._known_of(spec)
        for key in known.keys:
            if key in self._learned:
                taken, expected = self._learned[key]
                return known.expected_seconds * taken / expected
        return None

    def left_of(self, course: Course) -> float | None:
        """Seconds until a launch ends; None before any trial has ended."""
        whole = [self.seconds(spec) for spec in course.specs]
        known = [seconds for seconds in whole if seconds is not None]
        if not known:
            return None
        # A launch that takes longer than expected is supposed to end soon.
        return max(sum(known) - course.elapsed_seconds, course.least_seconds, OVERDUE_FRACTION * sum(known))

    def left(self, running: Sequence[Course], waiting: Sequence[Later]) -> float | None:
        """Seconds until all trials have ended; None before any has ended.

        The longest trials take seats first. A trial that leaves room for fewer others counts as several seats.
        """
        specs = [
            spec for one in (*(course.specs for course in running), *(later.specs for later in waiting)) for spec in one
        ]
        if not self._learned:
            return None
        seats = max((self._at_once(spec) for spec in specs), default=1)
        free_at = [0.0] * seats
        for course in running:
            _take(free_at, seats // self._at_once(course.specs[0]), self.left_of(course) or 0.0)
        for number, later in enumerate(waiting):
            if number:
                free_at = [max(free_at)] * seats
            if later.seconds is not None:
                _take(free_at, 1, later.seconds)
                continue
            shares = [(self.seconds(spec) or 0.0, seats // self._at_once(spec)) for spec in later.specs]
            for seconds, share in sorted(shares, reverse=True):
                _take(free_at, share, seconds)
        return max(free_at)

    def _known_of(self, spec: TrialSpec) -> _Known:
        if (known := self._known.get(id(spec))) is None:
            alike = spec.configuration_class
            lengths = (spec.train.steps, spec.train.epochs, spec.train.evaluate_every_steps, spec.stop_after_steps)
            kind = (alike, *lengths, spec.stage, spec.scores_dev)
            if kind not in self._expected_alike:
                self._expected_alike[kind] = self._expected(spec)
            keys = (alike, f"method {spec.method.name}", "")
            known = self._known[id(spec)] = _Known(spec, keys, self._expected_alike[kind])
        return known


def _take(free_at: list[float], share: int, seconds: float) -> None:
    """Occupy ``share`` seats for so long, as soon as they are free."""
    free_seats = [heapq.heappop(free_at) for _ in range(max(1, share))]
    end = max(free_seats) + seconds
    for _ in free_seats:
        heapq.heappush(free_at, end)
