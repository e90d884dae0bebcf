"""Where a sweep stands: which trials run, their phase, step, loss, speed and memory, and the totals.

The driver keeps it up to date in memory, for the terminal, and in ``status.json``, for other terminals and for after a
crash. Imports neither torch nor ray.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from bench.files import replacing
from bench.launch import Progress
from bench.observe import Observer
from bench.outbox import StartedAttempt
from bench.record import Failed, TrialResult
from bench.record_index import Known
from bench.spec import JsonDict, Spec

STATUS_FILE = "status.json"


class RunningTrial(Spec):
    """A trial whose ranks run."""

    trial_id: str
    attempt: int
    started_at: float
    phase: str = "start"
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    remaining_seconds: float | None = Field(None, description="of the training")
    decoded: int | None = None
    of: int | None = Field(None, description="sources to decode")
    memory_bytes: int | None = Field(None, description="of the largest rank, now")


class SweepStatus(Spec):
    """A whole sweep at one moment."""

    sweep: str
    total: int
    completed: int
    failed: int
    lost_attempts: int = Field(0, description="that were or will be made again")
    running: list[RunningTrial] = Field(default_factory=list)
    started_at: float
    updated_at: float

    @property
    def queued(self) -> int:
        return self.total - self.completed - self.failed - len(self.running)


class _SteadyClock:
    """The time of day as it was when this was made, and the seconds since then, whoever sets the machine's clock."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def time(self) -> float:
        return self._offset + time.monotonic()


class StatusBoard(Observer):
    """Keeps the status of a sweep.

    Args:
        root: ``<results>/<sweep>``.
        sweep: Its name.
    """

    def __init__(self, root: Path, sweep: str) -> None:
        self._clock = _SteadyClock()
        now = self._clock.time()
        self._path = root / STATUS_FILE
        self._status = SweepStatus(sweep=sweep, total=0, completed=0, failed=0, started_at=now, updated_at=now)
        self._done: set[str] = set()
        self._done_here = 0
        self._running: dict[str, RunningTrial] = {}
        self._memory: dict[str, dict[int, int]] = {}

    def begin_round(self, present: Sequence[Known], pending: int) -> None:
        """More trials of the sweep: those that have a record already, and how many others."""
        for known in present:
            self._count(known.trial_id, known.failed)
        self._set_total(pending)
        self.write()

    def now(self) -> SweepStatus:
        """The status at this moment."""
        now = self._clock.time()
        return self._status.model_copy(update={"running": list(self._running.values()), "updated_at": now})

    def remaining_seconds(self) -> float | None:
        """Until the end of the sweep, if the others take as long as those of this run; None before the first one."""
        status = self._status
        if not self._done_here:
            return None
        waiting = status.total - status.completed - status.failed
        return (self._clock.time() - status.started_at) / self._done_here * waiting

    def started(self, attempt: StartedAttempt) -> None:
        trial_id = attempt.spec.trial_id
        self._memory[trial_id] = {}
        self._running[trial_id] = RunningTrial(
            trial_id=trial_id, attempt=attempt.attempt.number, started_at=self._clock.time()
        )

    def progressed(self, progress: Progress) -> None:
        trial = self._running.get(progress.trial_id)
        if trial is None:
            return
        update: JsonDict = {}
        if "memory_bytes" in progress.data:
            memory = self._memory[progress.trial_id]
            memory[progress.rank] = progress.data["memory_bytes"]
            update["memory_bytes"] = max(memory.values())
        if progress.rank == 0:  # It speaks for the trial.
            known = RunningTrial.model_fields.keys() - {"trial_id", "attempt", "started_at", "memory_bytes"}
            update |= {key: value for key, value in progress.data.items() if key in known}
        self._running[progress.trial_id] = trial.model_copy(update=update)

    def lost(self, result: TrialResult, again_in_seconds: float) -> None:
        self._forget(result.trial_id)
        self._status = self._status.model_copy(update={"lost_attempts": self._status.lost_attempts + 1})

    def committed(self, result: TrialResult) -> None:
        self._forget(result.trial_id)
        self._done_here += 1
        self._count(result.trial_id, isinstance(result.outcome, Failed))

    def ticked(self, queued: int) -> None:
        self._set_total(queued)
        self.write()

    def write(self) -> None:
        """Bring the file up to date. It need not survive a power cut, but is never seen half written.

        That it cannot be written must not end a sweep: should the disk be full, the next commit tells.
        """
        with contextlib.suppress(OSError), replacing(self._path, durable=False) as file:
            file.write(self.now().model_dump_json().encode())

    def _count(self, trial_id: str, failed: bool) -> None:
        if trial_id not in self._done:
            self._done.add(trial_id)
            which = "failed" if failed else "completed"
            self._status = self._status.model_copy(update={which: getattr(self._status, which) + 1})

    def _set_total(self, queued: int) -> None:
        total = self._status.completed + self._status.failed + len(self._running) + queued
        self._status = self._status.model_copy(update={"total": total})

    def _forget(self, trial_id: str) -> None:
        self._running.pop(trial_id, None)
        self._memory.pop(trial_id, None)


def read_status(root: Path) -> SweepStatus | None:
    """What the last driver wrote; None if there is nothing to be read."""
    try:
        return SweepStatus.model_validate_json((root / STATUS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
