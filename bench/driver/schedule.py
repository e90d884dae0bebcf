"""Starts waiting trials on the launcher as seats get free, and commits a record when each has ended. Knows no Ray."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.driver.observer import Observer, Observers
from bench.launch.capacity import Need, Seat
from bench.launch.launcher import Ended, Launcher, Progress
from bench.schema.record import Failed, Outcome, Reason, TrialResult
from bench.schema.trial import TrialSpec
from bench.store.crash_points import reached
from bench.store.outbox import StartedAttempt, member_files, member_prefix, new_attempt
from bench.store.records import Store
from bench.store.requests import Answer, CancelRequest, Requests
from bench.store.retry import RetryPolicy

# So many smaller trials may start before one that does not fit now; then they wait until it has run.
MAX_OVERTAKEN = 8
POLL_SECONDS = 0.2
REQUEST_SECONDS = 1.0


@dataclass(frozen=True)
class Fusion:
    """Trials with equal keys may share a launch and train in one pass; ``most`` of them at a time."""

    key: str
    most: int


@dataclass(eq=False)
class _Pending:
    spec: TrialSpec
    need: Need
    earlier: list[Reason] = field(default_factory=list)
    fusion: Fusion | None = None  # None: it gets a launch to itself
    cancelled: bool = False


@dataclass
class _Group:
    """Trials of the same priority that need the same resources, in the order in which they came."""

    waiting: deque[_Pending] = field(default_factory=deque)
    overtaken: int = 0


class Schedule:
    """Runs trials until each has a record.

    Args:
        store: Where records go.
        launcher: What runs a trial.
        sweep: Name of the sweep.
        observers: They hear what happens.
        fusion_of: Tells which trials may share a launch, see :mod:`bench.driver.fusable`. Its arguments are a trial and
            whether the trial takes a GPU.
        retries: Which failures are tried again, and when.
    """

    def __init__(
        self,
        store: Store,
        launcher: Launcher,
        sweep: str,
        observers: Sequence[Observer] = (),
        fusion_of: Callable[[TrialSpec, bool], Fusion | None] = lambda spec, on_gpu: None,
        retries: RetryPolicy = RetryPolicy(),  # noqa: B008 - it never changes
    ) -> None:
        self.store = store
        self.launcher = launcher
        self.sweep = sweep
        self.observers = Observers(observers)
        self.fusion_of = fusion_of
        self.retries = retries
        self.draining = False
        self.cancelled = False  # as a whole: no later round follows
        self._requests = Requests(store.root)
        self._groups: dict[tuple[int, Need], _Group] = {}
        self._later: list[tuple[float, _Pending]] = []
        self._running: dict[str, tuple[list[_Pending], StartedAttempt]] = {}  # by the first trial of a launch
        self._deadlines: dict[str, float] = {}
        self._next_requests = 0.0
        self._earlier = store.lost_attempts()

    def submit(self, trials: Iterable[TrialSpec]) -> None:
        """Add trials without a record. May be called while :meth:`run` runs, from an observer."""
        for spec in trials:
            need, earlier = self.launcher.cluster.need(spec), self._earlier.get(spec.trial_id, [])
            # A trial that was lost once is tried again alone: another member of its launch may have been to blame.
            fusion = None if earlier else self.fusion_of(spec, need.gpus_per_rank > 0)
            self._wait(_Pending(spec, need, list(earlier), fusion))

    def drain(self) -> None:
        """Start no more trials: :meth:`run` returns when those that run now have ended."""
        self.draining = True

    @property
    def queued(self) -> int:
        """How many trials wait for a seat or to be tried again."""
        return sum(len(group.waiting) for group in self._groups.values()) + len(self._later)

    def run(self, trials: Iterable[TrialSpec] = ()) -> None:
        """Run trials until each has a record: several at a time, by priority, and within a priority the largest first.

        Raises:
            StoreError: The results folder cannot be written to. Finished trials stay in the outbox.
            NoMachinesError: There is no machine to run on. Waiting trials get no record then.
        """
        self.submit(trials)
        while self._running or (self.queued and not self.draining):
            self._return_from_backoff()
            if not self.draining:
                self._start_what_fits()
                self._await_machines()
            for event in self.launcher.poll(POLL_SECONDS):
                if isinstance(event, Progress):
                    self.observers.progressed(event)
                else:
                    self._ended(event)
            now = time.monotonic()
            for trial_id in [trial_id for trial_id, deadline in self._deadlines.items() if now > deadline]:
                del self._deadlines[trial_id]
                self.launcher.stop(trial_id, "timed_out")
            if now >= self._next_requests:
                self._next_requests = now + REQUEST_SECONDS
                self._requests.serve(self._cancel)
                self.observers.ticked(self.queued)

    def _wait(self, pending: _Pending) -> None:
        self._groups.setdefault((pending.spec.resources.priority, pending.need), _Group()).waiting.append(pending)

    def _return_from_backoff(self) -> None:
        now = time.monotonic()
        for entry in [entry for entry in self._later if entry[0] <= now]:
            self._later.remove(entry)
            self._wait(entry[1])

    def _start_what_fits(self) -> None:
        passed: list[_Group] = []
        for _, group in sorted(self._groups.items(), key=lambda item: (item[0][0], item[0][1].size), reverse=True):
            while group.waiting and (seats := self._seats(group.waiting[0])) is not None:
                pending = group.waiting.popleft()
                group.overtaken = 0
                for larger in passed:
                    larger.overtaken += 1
                if isinstance(seats, str):
                    failed = Failed(reason="infeasible", phase=None, rank=None, message=seats)
                    self._settle(pending, failed)
                else:
                    self._start([pending, *self._other_members(pending, group)], seats)
            if group.waiting:
                if group.overtaken >= MAX_OVERTAKEN:
                    return
                passed.append(group)
        self._groups = {key: group for key, group in self._groups.items() if group.waiting}

    def _await_machines(self) -> None:
        waiting = next((group.waiting[0] for group in self._groups.values() if group.waiting), None)
        if waiting is not None and not self._running:
            self.launcher.await_machines(waiting.spec)

    def _seats(self, pending: _Pending) -> list[Seat] | str | None:
        """Reserve seats for all ranks. A text says why there can never be any; None says that the trial has to wait."""
        if (shortage := self.launcher.shortage(pending.spec)) is not None:
            return shortage
        return self.launcher.reserve(pending.spec)

    def _other_members(self, first: _Pending, group: _Group) -> list[_Pending]:
        """Waiting trials that join the launch of this one, which has its seat. Some are left for other free seats."""
        if first.fusion is None:
            return []
        alike = [pending for pending in group.waiting if pending.fusion == first.fusion]
        share = math.ceil((1 + len(alike)) / (1 + self.launcher.cluster.room(first.need)))
        chosen = alike[: min(share, first.fusion.most) - 1]
        group.waiting = deque(pending for pending in group.waiting if pending not in chosen)
        return chosen

    def _start(self, launch: list[_Pending], seats: list[Seat]) -> None:
        first, *rest = launch
        spec = first.spec
        others = [pending.spec for pending in rest]
        started = new_attempt(spec, self.sweep, self.launcher.name, first.earlier, others)
        self._running[spec.trial_id] = launch, started
        if spec.resources.timeout_seconds is not None:
            self._deadlines[spec.trial_id] = time.monotonic() + spec.resources.timeout_seconds * len(launch)
        reached("start.before_journal")
        attempt = started.attempt
        for pending in launch:
            trial_id = pending.spec.trial_id
            self.store.log("started", trial_id=trial_id, attempt=attempt.attempt_id, number=attempt.number)
        reached("start.after_journal")
        self.launcher.start(started, seats)
        for member in started.members:
            self.observers.started(member)

    def _ended(self, event: Ended) -> None:
        """Commit the records of a launch, or try its trials again. An event of an earlier attempt is only logged."""
        launch, started = self._running.get(event.trial_id, ([], None))
        if started is None or started.attempt.attempt_id != event.attempt_id:
            self.store.log("stale", trial_id=event.trial_id, attempt=event.attempt_id)
            return
        del self._running[event.trial_id]
        self._deadlines.pop(event.trial_id, None)
        settled: list[TrialResult] = []
        for number, (pending, member) in enumerate(zip(launch, started.members, strict=True)):
            result = member.result(
                event.member_outcome(number), event.provenance, event.seconds, event.placement, event.shared_seconds
            )
            files = member_files(event.files, number)
            if self._is_unanswered(pending, result.outcome):
                self.store.keep_lost(result, files)
            elif self._goes_on(pending, result.outcome, len(launch) > 1):
                self._try_again(pending, result, files)
            else:
                settled.append(self.store.commit(result, files, member_prefix(number)))
        self._clear(event.trial_id, event.attempt_id)
        reached("commit.after_outbox")
        for result in settled:
            self.observers.committed(result)

    def _is_unanswered(self, pending: _Pending, outcome: Outcome) -> bool:
        """Whether a trial of a search ended with its sweep.

        A record would say of its settings that they do not work, and the search would cut others by it.
        """
        ended = isinstance(outcome, Failed) and (outcome.reason == "cancelled" or outcome.is_symptom)
        return self.cancelled and pending.cancelled and pending.spec.stage == "tune" and ended

    def _goes_on(self, pending: _Pending, outcome: Outcome, was_fused: bool) -> bool:
        """Whether a trial is tried again, see :class:`RetryPolicy`. From now on it is never fused."""
        pending.fusion = None
        if pending.cancelled or not self.retries.tries_again(outcome, pending.earlier, was_fused):
            return False
        assert isinstance(outcome, Failed)
        pending.earlier.append(outcome.reason)
        return True

    def _try_again(self, pending: _Pending, result: TrialResult, files: Sequence[Path]) -> None:
        self.store.keep_lost(result, files)
        wait = self.retries.wait_seconds(pending.earlier)
        self._later.append((time.monotonic() + wait, pending))
        self.observers.lost(result, wait)

    def _settle(self, pending: _Pending, outcome: Failed) -> None:
        """Commit the record of a trial that was never started."""
        started = new_attempt(pending.spec, self.sweep, self.launcher.name, pending.earlier)
        result = started.result(outcome, None, 0.0, None)
        self.observers.committed(self.store.commit(result, []))

    def _clear(self, trial_id: str, attempt_id: str) -> None:
        folder = self.store.outbox / trial_id
        shutil.rmtree(folder / attempt_id, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()

    def _cancel(self, request: CancelRequest) -> Answer:
        self.store.log("cancel", trial_id=request.trial_id)
        cancelled = Failed(reason="cancelled", phase=None, rank=None, message="cancelled")
        self.cancelled |= request.trial_id is None
        waiting = [pending for group in self._groups.values() for pending in group.waiting]
        waiting += [pending for _, pending in self._later]
        for group in self._groups.values():
            group.waiting = deque(pending for pending in group.waiting if not _means(request, pending.spec))
        self._later = [entry for entry in self._later if not _means(request, entry[1].spec)]
        meant = [pending for pending in waiting if _means(request, pending.spec)]
        for pending in meant:
            if request.trial_id is not None or pending.spec.stage != "tune":  # see _is_unanswered
                self._settle(pending, cancelled)
        for trial_id, (launch, _) in self._running.items():
            running = [pending for pending in launch if _means(request, pending.spec)]
            for pending in running:
                pending.cancelled = True
            if running:
                self.launcher.stop(trial_id, "cancelled")
            meant += running
        return Answer(cancelled=len(meant))


def _means(request: CancelRequest, spec: TrialSpec) -> bool:
    return request.trial_id in (None, spec.trial_id)
