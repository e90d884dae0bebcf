"""Whether a trial that failed is tried again, and when: one rule for the driver that saw it and for the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.schema.record import REASONS, Failed, Outcome, Reason


@dataclass(frozen=True)
class RetryPolicy:
    """Symptoms of other faults are tried again, a while later; so is, alone, whatever failed in company."""

    attempts: int = 3
    uncounted_attempts: int = 20
    """The machine's failures do not count, but a trial that is always there when nodes die has an end too."""
    backoff_seconds: float = 1.0
    """Before a trial is tried again after the first symptom of a kind."""
    backoff_factor: float = 4.0
    max_backoff_seconds: float = 60.0

    def tries_again(self, outcome: Outcome, earlier: Sequence[Reason], in_company: bool) -> bool:
        """Whether the trial is run once more instead of getting this outcome.

        Args:
            outcome: Of its latest attempt.
            earlier: Why the attempts before it were lost.
            in_company: Whether other trials shared the launch, which might be to blame.
        """
        if not isinstance(outcome, Failed) or not (in_company or outcome.is_symptom):
            return False
        counted = [REASONS[reason].counts for reason in (*earlier, outcome.reason)]
        return counted.count(True) < self.attempts and counted.count(False) < self.uncounted_attempts

    def wait_seconds(self, lost: Sequence[Reason]) -> float:
        """How long to wait before the next attempt, after attempts that were lost for these reasons."""
        latest = lost[-1]
        if not REASONS[latest].is_symptom:
            return 0.0
        wait = self.backoff_seconds * self.backoff_factor ** (lost.count(latest) - 1)
        return min(wait, self.max_backoff_seconds)
