"""How long a sweep will take, learned from the trials that have ended, in units of what is expected of each.

What is expected need not be right, nor on the scale of this machine: only its proportions between trials count. Imports
neither torch nor ray.
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
    """Trials of one launch that run now."""

    specs: tuple[TrialSpec, ...]
    elapsed_seconds: float
    least_seconds: float = 0.0  # that its ranks say are still to come


@dataclass(frozen=True)
class Later:
    """Trials that may run at once, after all that comes before them has ended."""

    specs: Sequence[TrialSpec]
    seconds: float | None = None  # that all of them take together, where a budget says so; else as expected


class _Sum(NamedTuple):
    """Over trials that have ended."""

    taken: float
    expected: float


class _Known(NamedTuple):
    """What does not change of a trial."""

    spec: TrialSpec  # kept, so that no other one gets its identity
    keys: tuple[str, str, str]
    expected: float


class Pace:
    """Seconds of trials: what is expected, times what the trials that have ended took of it.

    A trial is judged by those of its own configuration, else by those of its method, else by all.

    Args:
        expected: Seconds of a trial on some machine.
        at_once: How many trials like this one can run at a time.
    """

    def __init__(self, expected: Callable[[TrialSpec], float], at_once: Callable[[TrialSpec], int]) -> None:
        self._expected = expected
        self._at_once = at_once
        self._learned: dict[str, _Sum] = defaultdict(lambda: _Sum(0.0, 0.0))
        self._known: dict[
            int, _Known
        ] = {}  # by the identity of specs, thousands of which are asked for again and again
        self._expected_alike: dict[tuple[object, ...], float] = {}

    def learn(self, result: TrialResult) -> None:
        """A trial has ended. One that failed says nothing of how long others take, nor does the rest of a training."""
        if isinstance(result.outcome, Failed) or result.continued:
            return
        company = 1 if result.fused is None else 1 + len(result.fused.trials)
        known = self._known_of(result.spec)
        for key in known.keys:
            taken, expected = self._learned[key]
            self._learned[key] = _Sum(taken + result.total_seconds / company, expected + known.expected)

    def seconds(self, spec: TrialSpec) -> float | None:
        """What a trial takes from its launch to its end; None before any has ended."""
        known = self._known_of(spec)
        for key in known.keys:
            if key in self._learned:
                taken, expected = self._learned[key]
                return known.expected * taken / expected
        return None

    def left_of(self, course: Course) -> float | None:
        """Seconds until a launch ends; None before any trial has ended."""
        whole = [self.seconds(spec) for spec in course.specs]
        known = [seconds for seconds in whole if seconds is not None]
        if not known:
            return None
        # Whatever takes longer than expected is taken to be nearly done.
        return max(sum(known) - course.elapsed_seconds, course.least_seconds, OVERDUE_FRACTION * sum(known))

    def left(self, running: Sequence[Course], waiting: Sequence[Later]) -> float | None:
        """Seconds until all is done; None before any trial has ended.

        Seats are filled with the longest trials first. A trial of which fewer can run at once takes more of the seats.
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
            taken = [(self.seconds(spec) or 0.0, seats // self._at_once(spec)) for spec in later.specs]
            for seconds, share in sorted(taken, reverse=True):
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
    """Occupy so many seats, as soon as they are free."""
    taken = [heapq.heappop(free_at) for _ in range(max(1, share))]
    end = max(taken) + seconds
    for _ in taken:
        heapq.heappush(free_at, end)
