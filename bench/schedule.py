"""Pending trials -> launcher -> records as they finish. Knows no Ray."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from bench.launch import Ended, Launcher, Progress
from bench.record import RETRYABLE, Attempt, Failed, Reason, TrialResult
from bench.spec import TrialSpec
from bench.store import Store

MAX_ATTEMPTS = 3


@dataclass
class _Pending:
    spec: TrialSpec
    earlier: list[Reason] = field(default_factory=list)


class Schedule:
    """Runs the trials of a sweep that have no record yet.

    Args:
        store: Where records go.
        launcher: What runs a trial.
        sweep: Name of the sweep.
        on_start: Called with each trial that starts.
        on_progress: Called with every progress of a rank.
        on_result: Called with each record once it is committed.
    """

    def __init__(
        self,
        store: Store,
        launcher: Launcher,
        sweep: str,
        on_start: Callable[[TrialSpec], None] = lambda spec: None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        on_result: Callable[[TrialResult], None] = lambda result: None,
    ) -> None:
        self.store = store
        self.launcher = launcher
        self.sweep = sweep
        self.on_start = on_start
        self.on_progress = on_progress
        self.on_result = on_result
        self._running: dict[str, _Pending] = {}
        self._deadlines: dict[str, float] = {}

    def run(self, trials: Sequence[TrialSpec]) -> None:
        """Run trials in order, several at a time where there is room, until each has a record."""
        queue = deque(_Pending(spec) for spec in trials)
        while queue or self._running:
            while queue and self._start(queue[0]):
                queue.popleft()
            for event in self.launcher.poll(0.2):
                if isinstance(event, Progress):
                    self.on_progress(event)
                elif (again := self._ended(event)) is not None:
                    queue.appendleft(again)
            for trial_id in [trial_id for trial_id, deadline in self._deadlines.items() if time.time() > deadline]:
                del self._deadlines[trial_id]
                self.launcher.stop(trial_id, "timed_out")

    def _start(self, pending: _Pending) -> bool:
        """True if the trial was started or settled; False if it has to wait for room."""
        spec = pending.spec
        if (shortage := self.launcher.machine.shortage(spec)) is not None:
            outcome = Failed(reason="infeasible", phase=None, rank=None, message=shortage)
            self._commit(pending, Ended(spec.trial_id, outcome, None, time.time(), 0.0))
            return True
        if not self.launcher.has_room(spec):
            return False
        self._running[spec.trial_id] = pending
        if spec.resources.timeout_seconds is not None:
            self._deadlines[spec.trial_id] = time.time() + spec.resources.timeout_seconds
        self.store.log("started", trial_id=spec.trial_id, attempt=len(pending.earlier) + 1)
        self.launcher.start(spec)
        self.on_start(spec)
        return True

    def _ended(self, event: Ended) -> _Pending | None:
        """Commit the record, or hand the trial back to be tried again."""
        pending = self._running.pop(event.trial_id)
        self._deadlines.pop(event.trial_id, None)
        outcome = event.outcome
        if isinstance(outcome, Failed) and outcome.reason in RETRYABLE and len(pending.earlier) + 1 < MAX_ATTEMPTS:
            self.store.log("lost", trial_id=event.trial_id, reason=outcome.reason, message=outcome.message)
            pending.earlier.append(outcome.reason)
            return pending
        self._commit(pending, event)
        return None

    def _commit(self, pending: _Pending, event: Ended) -> None:
        attempt = Attempt(attempt_id=uuid.uuid4().hex, number=len(pending.earlier) + 1, earlier_reasons=pending.earlier)
        result = TrialResult(
            trial_id=event.trial_id,
            sweep=self.sweep,
            spec=pending.spec,
            outcome=event.outcome,
            attempt=attempt,
            launcher=self.launcher.name,
            started_at=datetime.fromtimestamp(event.started_at, UTC).isoformat(timespec="seconds"),
            total_seconds=event.seconds,
            provenance=event.provenance,
        )
        self.on_result(self.store.commit(result, event.files))
