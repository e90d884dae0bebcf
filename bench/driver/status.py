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

from bench.driver.observer import Observer
from bench.driver.pace import Course, Later, Pace
from bench.launch.launcher import Progress
from bench.schema.record import Failed, TrialResult
from bench.schema.trial import JsonDict, Spec, TrialSpec
from bench.store.files import replacing, write_atomically
from bench.store.outbox import StartedAttempt
from bench.store.record_index import Known

STATUS_FILE = "status.json"
# The time that is left is estimated at most this often, since thousands of trials may wait.
ESTIMATE_SECONDS = 2.0


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
    remaining_seconds: float | None = Field(
        None, description="of the trial, once another has ended; before that, of its training"
    )
    decoded: int | None = None
    of: int | None = Field(None, description="sources to decode")
    downloaded_bytes: int | None = Field(None, description="of the base model, on rank 0's machine")
    download_bytes: int | None = Field(None, description="of all its files, where the hub says it")
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
    remaining_seconds: float | None = Field(
        None, description="until the end of the sweep, later stages included; None before a trial has ended"
    )

    @property
    def queued(self) -> int:
        return self.total - self.completed - self.failed - len(self.running)


class _SteadyClock:
    """Tells the time of day without following a machine's clock that is set meanwhile."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def time(self) -> float:
        return self._offset + time.monotonic()


class StatusBoard(Observer):
    """Keeps the status of a sweep.

    Args:
        root: ``<results>/<sweep>``.
        sweep: Its name.
        pace: Learns how long trials take; None: the status says nothing of the time that is left.
    """

    def __init__(self, root: Path, sweep: str, pace: Pace | None = None) -> None:
        self._clock = _SteadyClock()
        now = self._clock.time()
        self._path = root / STATUS_FILE
        self._status = SweepStatus(sweep=sweep, total=0, completed=0, failed=0, started_at=now, updated_at=now)
        self._pace = pace
        self._done: set[str] = set()
        self._running: dict[str, RunningTrial] = {}
        self._launches: dict[str, tuple[TrialSpec, ...]] = {}  # by trial: all that share its launch
        self._waiting: dict[str, TrialSpec] = {}
        self._later: tuple[Later, ...] = ()
        self._estimated_at = 0.0
        self._left: float | None = None
        self._memory: dict[str, dict[int, int]] = {}

    def begin_round(self, present: Sequence[Known], pending: Sequence[TrialSpec], later: Sequence[Later] = ()) -> None:
        """Add the trials of a round.

        Args:
            present: Those that have a record already.
            pending: The others.
            later: Trials of later rounds, as far as they are known.
        """
        for known in present:
            self._count(known.trial_id, known.failed)
        self._waiting = {spec.trial_id: spec for spec in pending}
        self._later = tuple(later)
        self._set_total(len(pending))
        self.write()

    def now(self) -> SweepStatus:
        """The status at this moment."""
        running = [self._with_time_left(trial) for trial in self._running.values()]
        now, left = self._clock.time(), self.remaining_seconds()
        update = {"running": running, "updated_at": now, "remaining_seconds": left}
        return self._status.model_copy(update=update)

    def remaining_seconds(self) -> float | None:
        """Seconds until the sweep ends, later stages included; None before a trial has ended."""
        if self._pace is None:
            return None
        if self._left is None or self._clock.time() - self._estimated_at > ESTIMATE_SECONDS:
            self._estimated_at, self._left = self._clock.time(), self._estimated()
        return self._left

    def _estimated(self) -> float | None:
        if self._pace is None:
            return None
        launches = {id(specs): self._course(trial_id) for trial_id, specs in self._launches.items()}
        return self._pace.left(list(launches.values()), [Later(tuple(self._waiting.values())), *self._later])

    def _course(self, trial_id: str) -> Course:
        specs = self._launches[trial_id]
        trials = [self._running[spec.trial_id] for spec in specs if spec.trial_id in self._running]
        elapsed = max((self._clock.time() - trial.started_at for trial in trials), default=0.0)
        return Course(specs, elapsed, max((_training_left(trial) for trial in trials), default=0.0))

    def _with_time_left(self, trial: RunningTrial) -> RunningTrial:
        left = None if self._pace is None else self._pace.left_of(self._course(trial.trial_id))
        return trial if left is None else trial.model_copy(update={"remaining_seconds": left})

    def started(self, attempt: StartedAttempt) -> None:
        trial_id = attempt.spec.trial_id
        self._memory[trial_id] = {}
        self._waiting.pop(trial_id, None)
        others = attempt.other_members
        known = next((self._launches[spec.trial_id] for spec in others if spec.trial_id in self._launches), None)
        self._launches[trial_id] = known or (attempt.spec, *others)
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
        if progress.rank == 0:  # the rank that reports steps and losses
            known = RunningTrial.model_fields.keys() - {"trial_id", "attempt", "started_at", "memory_bytes"}
            update |= {key: value for key, value in progress.data.items() if key in known}
        self._running[progress.trial_id] = trial.model_copy(update=update)

    def lost(self, result: TrialResult, again_in_seconds: float) -> None:
        self._forget(result.trial_id)
        self._waiting[result.trial_id] = result.spec
        self._status = self._status.model_copy(update={"lost_attempts": self._status.lost_attempts + 1})

    def committed(self, result: TrialResult) -> None:
        self._forget(result.trial_id)
        self._waiting.pop(result.trial_id, None)
        if self._pace is not None:
            self._pace.learn(result)
        self._count(result.trial_id, isinstance(result.outcome, Failed))

    def ticked(self, queued: int) -> None:
        self._set_total(queued)
        self.write()

    def write(self) -> None:
        """Write the file anew. It need not survive a power cut, but is never seen half written.

        An error is ignored: if the disk is full, the next record cannot be written, and that ends the sweep.
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
        self._launches.pop(trial_id, None)
        self._memory.pop(trial_id, None)


def _training_left(trial: RunningTrial) -> float:
    return (trial.remaining_seconds or 0.0) if trial.phase == "train" else 0.0


def read_status(root: Path) -> SweepStatus | None:
    """The status that the last driver wrote; None if there is none, or none that can be read."""
    try:
        return SweepStatus.model_validate_json((root / STATUS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def restore_status(root: Path, status: SweepStatus | None) -> None:
    """Write the status that was there before a command that ran other trials than the sweep's; None writes nothing."""
    if status is not None:
        write_atomically(root / STATUS_FILE, status.model_dump_json())
