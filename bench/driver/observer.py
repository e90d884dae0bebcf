"""Who wants to know what happens in a sweep while it runs: the terminal, the status file, trackers."""

from __future__ import annotations

from collections.abc import Sequence

from bench.launch.launcher import Progress
from bench.schema.record import TrialResult
from bench.store.outbox import StartedAttempt


class Observer:
    """Hears what happens in a sweep. A subclass overrides the events that concern it."""

    def started(self, attempt: StartedAttempt) -> None:
        """Ranks are being started."""

    def progressed(self, progress: Progress) -> None:
        """A rank has reported its progress."""

    def lost(self, result: TrialResult, again_in_seconds: float) -> None:
        """An attempt was lost, as far as one can tell through no fault of the trial. The trial will be tried again."""

    def committed(self, result: TrialResult) -> None:
        """A trial has its record."""

    def ticked(self, queued: int) -> None:
        """Some time has passed; so many trials wait."""


class Observers(Observer):
    """Several observers as one: each hears everything, in their order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = tuple(observers)

    def started(self, attempt: StartedAttempt) -> None:
        for observer in self.observers:
            observer.started(attempt)

    def progressed(self, progress: Progress) -> None:
        for observer in self.observers:
            observer.progressed(progress)

    def lost(self, result: TrialResult, again_in_seconds: float) -> None:
        for observer in self.observers:
            observer.lost(result, again_in_seconds)

    def committed(self, result: TrialResult) -> None:
        for observer in self.observers:
            observer.committed(result)

    def ticked(self, queued: int) -> None:
        for observer in self.observers:
            observer.ticked(queued)
