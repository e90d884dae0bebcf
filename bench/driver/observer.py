"""Who wants to know what happens in a sweep while it runs: the terminal, the status file, trackers."""

from __future__ import annotations

from bench.launch.launcher import Progress
from bench.schema.record import TrialResult
from bench.store.outbox import StartedAttempt


class Observer:
    """Hears what happens in a sweep. What it does not care about is inherited."""

    def started(self, attempt: StartedAttempt) -> None:
        """Ranks are being started."""

    def progressed(self, progress: Progress) -> None:
        """A rank has told where it is."""

    def lost(self, result: TrialResult, again_in_seconds: float) -> None:
        """An attempt was lost through no fault of the trial, which will be tried again."""

    def committed(self, result: TrialResult) -> None:
        """A trial has its record."""

    def ticked(self, queued: int) -> None:
        """Some time has passed; so many trials wait."""
