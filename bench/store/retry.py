"""Whether and when a failed trial is tried again: one rule for the driver that saw the failure and for the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.schema.record import REASONS, Failed, Outcome, Reason


@dataclass(frozen=True)
class RetryPolicy:
    """Tries a trial again if its failure is the symptom of another fault, or if it was fused: then alone, at once."""

    attempts: int = 3
    uncounted_attempts: int = 20
    """Failures of machines do not count as attempts. This limit ends a trial whose nodes die again and again.

    A lost driver does not count here either: each further attempt is a command that somebody gave again, as the jobs of
    a batch system do.
    """
    backoff_seconds: float = 1.0
    """The wait after the first symptom of a kind; ``backoff_factor`` prolongs it after each further one."""
    backoff_factor: float = 4.0
    max_backoff_seconds: float = 60.0

    def tries_again(self, outcome: Outcome, earlier: Sequence[Reason], was_fused: bool) -> bool:
        """Whether a trial is tried again instead of getting this outcome.

        Args:
            outcome: Of its latest attempt.
            earlier: Why the attempts before it were lost.
            was_fused: Whether the launch had other members, which may be to blame.
        """
        if not isinstance(outcome, Failed) or not (was_fused or outcome.is_symptom):
            return False
        counted = [REASONS[reason].counts for reason in (*earlier, outcome.reason) if reason != "driver_lost"]
        return counted.count(True) < self.attempts and counted.count(False) < self.uncounted_attempts

    def wait_seconds(self, lost: Sequence[Reason]) -> float:
        """Seconds to wait before the next attempt, after attempts that were lost for these reasons."""
        latest = lost[-1]
        if not REASONS[latest].is_symptom:
            return 0.0
        wait = self.backoff_seconds * self.backoff_factor ** (lost.count(latest) - 1)
        return min(wait, self.max_backoff_seconds)
