"""Rounds of trials on one launcher, which starts when the first trial needs it and outlives the rounds."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console

from bench.driver.mirror import Mirror
from bench.driver.observer import Observer
from bench.driver.pace import Later, Pace
from bench.driver.status import StatusBoard
from bench.driver.trackers.tracking import Tracking
from bench.schema.trial import JsonDict, TrialSpec
from bench.store.earlier import EarlierAnswers
from bench.store.kept_sweep import keep_asked
from bench.store.record_index import Known
from bench.store.records import Store

if TYPE_CHECKING:
    from bench.driver.stages import Round
    from bench.launch.launcher import Launcher, LauncherOptions

# Assumed of a trial whose cost cannot be forecast, until a similar one has ended.
UNKNOWN_SECONDS = 60.0
METHODS_NAMED = 8  # of those that are about to run


class RoundRunner:
    """Runs the trials that have no record yet, round by round.

    Args:
        store: Of the sweep, locked by this process.
        sweep: Its name.
        launcher: Makes the launcher, when the first trial needs it.
        console: Messages for people go there.
        targets: The classes of all methods, tasks and metrics of plugins. Sources of plugins travel to the ranks.
        retry_failed: Whether trials that failed in an earlier run are run again.
        trackers: Names of the trackers that hear of the trials, with their settings.
        mirror: URL of a copy of the results; None: no copy is kept.
        metrics: Scores that settings are chosen by. A sweep that lacks one is refused.
        trains: Tells whether the method of a trial trains anything.
        keep: Writes down which records the sweep asks for, before the missing ones are made.
    """

    def __init__(
        self,
        store: Store,
        sweep: str,
        launcher: LauncherOptions,
        console: Console,
        targets: Sequence[str],
        retry_failed: bool,
        trackers: Mapping[str, JsonDict] | None = None,
        mirror: str | None = None,
        metrics: Sequence[str] = (),
        trains: Callable[[TrialSpec], bool] = lambda trial: True,
        keep: Callable[[Path, Iterable[str]], None] = keep_asked,
    ) -> None:
        self.store = store
        self.sweep = sweep
        self.console = console
        self.launcher, self.targets = launcher, targets
        self.retry_failed = retry_failed
        self.metrics, self.trains, self.keep = metrics, trains, keep
        self.found: dict[str, Known] = {}
        self.cancelled = False  # by somebody, as a whole
        self._launcher: Launcher | None = None
        self._board = StatusBoard(store.root, sweep, Pace(self._expected_seconds, self._at_once))
        warn = partial(self.console.print, style="yellow", highlight=False, markup=False, soft_wrap=True)
        self._tracking = Tracking(trackers or {}, store.root.absolute(), sweep, warn)
        self._mirror = None if mirror is None else Mirror(mirror, store, warn)

    def __enter__(self) -> RoundRunner:
        # Batch systems stop a job by SIGTERM, and a job that a shell started in the background would ignore SIGINT.
        for stop in (signal.SIGINT, signal.SIGTERM):
            signal.signal(stop, signal.default_int_handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.console.print("stopped: finished trials are kept, and the same command goes on", highlight=False)
        if self._launcher is not None:
            self._launcher.close()
        self._tracking.close()
        self._board.write()

    def recover(self) -> None:
        """Commit, or set aside, what an earlier driver left behind."""
        from bench.store.recover import recover

        recovered = recover(self.store)
        for why in recovered.set_aside.values():
            self.console.print(f"set aside: {why}", style="yellow", highlight=False, markup=False, soft_wrap=True)
        for result in recovered.committed:
            self.console.print(f"committed {result.trial_id}, which had finished when the driver died", highlight=False)
        if self._mirror is not None and (fetched := self._mirror.fetch()):
            self.console.print(f"fetched {len(fetched)} records from {self._mirror.url}", highlight=False)

    def tell_moved(self, trials: Sequence[TrialSpec]) -> None:
        """Warn of finished trials whose model or data came from another commit of the hub than these trials take."""
        from bench.driver.moved import moved_commits

        finished = map(self.store.known, self.store.trial_ids())
        for sentence in moved_commits(filter(None, finished), trials):
            self.console.print(sentence, style="yellow", highlight=False, markup=False, soft_wrap=True)

    def tell_strays(self, trials: Iterable[TrialSpec]) -> None:
        """Name the checkpoints that no trial of the sweep continues from.

        Args:
            trials: All of the sweep, those of later stages too.
        """
        for folder in self.store.stray_checkpoints({trial.trial_id for trial in trials}):
            self.console.print(
                f"{folder} has checkpoints of settings that this sweep no longer has, such as another number of ranks; "
                "training starts from zero. Remove it if you will not go back to them",
                style="yellow",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

    def complete_mirror(self) -> bool:
        """Copy the report, and the records that the mirror lacks. Returns whether the mirror is complete now."""
        if self._mirror is None or (why := self._mirror.push()) is None:
            return True
        self.console.print(f"{self._mirror.url} is not complete; the same command tries again: {why}", style="red")
        return False

    def run(self, trials: Round, title: str, later: Sequence[Later] = ()) -> None:
        """Run the trials of a round that have no record.

        Args:
            trials: The round.
            title: The line that announces the round begins with it.
            later: Trials of later rounds, as far as they are known.
        """
        earlier = EarlierAnswers(self.store, self.trains)
        present = {
            trial.trial_id: found for trial in trials.trials if (found := self._present(trial, earlier)) is not None
        }
        trial_ids = [
            present[trial.trial_id].trial_id if trial.trial_id in present else trial.trial_id for trial in trials.trials
        ]
        self.keep(self.store.root, trial_ids)
        pending = [trial for trial in trials.trials if trial.trial_id not in present]
        done = len(trials.trials) - len(pending)
        counts = f"{title}: {len(trials.trials)} trials, {done} done, {len(pending)} to run"
        self.console.print(f"{counts}{_what(pending)}", highlight=False, markup=False, soft_wrap=True)
        self._board.begin_round(list(present.values()), pending, later if pending else ())
        if pending:
            self._run(pending)
        self._board.write()
        for trial in trials.trials:
            known = present.get(trial.trial_id) or self.store.known(trial.trial_id)
            if known is not None:
                self.found[trial.trial_id] = known

    def tuning_seconds(self) -> float:
        """Device-seconds that the trials of the stage tune have taken so far."""
        records = (self.store.read(known.trial_id) for known in self.found.values() if known.stage == "tune")
        return sum(record.device_seconds for record in records if record is not None)

    def _present(self, trial: TrialSpec, earlier: EarlierAnswers) -> Known | None:
        """The record of a trial, or another one of the same answer. None where the trial has to run."""
        known = self.store.known(trial.trial_id)
        if known is None:  # A search knows its trials by their ids alone.
            return None if trial.stage == "tune" else earlier.find(trial)
        if known.failed and self.retry_failed and trial.trial_id not in self.found:
            self.store.discard(trial.trial_id)
            return None
        return known

    def _run(self, pending: Sequence[TrialSpec]) -> None:
        from bench.driver.display import Display
        from bench.driver.fusable import fusion_of
        from bench.driver.prepare import prepare
        from bench.driver.schedule import Schedule
        from bench.driver.stopping import stoppable

        if self._launcher is None:
            self._launcher = self._start_launcher()
            self._launcher.warm(pending[0])
        self._launcher.check(pending)
        say = partial(self.console.print, style="dim", highlight=False, markup=False, soft_wrap=True)
        prepare(pending, say, self.metrics)
        with Display(self.console, self._board) as display:
            observers: list[Observer] = [self._board, display, self._tracking]
            if self._mirror is not None:
                observers.append(self._mirror)
            schedule = Schedule(self.store, self._launcher, self.sweep, observers, fusion_of)
            with stoppable(schedule.drain, lambda message: self.console.print(message, highlight=False)):
                schedule.run(pending)
        if schedule.draining:
            raise KeyboardInterrupt
        self.cancelled |= schedule.cancelled

    def _expected_seconds(self, trial: TrialSpec) -> float:
        from bench.plan.expected_time import expected_seconds

        try:
            return expected_seconds(trial)
        except Exception:  # noqa: BLE001 - no forecast, say for a method of a plugin, is no reason to end a sweep
            return UNKNOWN_SECONDS

    def _at_once(self, trial: TrialSpec) -> int:
        if self._launcher is None:
            return 1
        cluster = self._launcher.cluster
        return cluster.at_once(cluster.need(trial))

    def _start_launcher(self) -> Launcher:
        from bench.launch.choose import make_launcher
        from bench.plugins.source import sources_of

        return make_launcher(self.launcher, self.store.outbox, sources_of(self.targets))


def _what(pending: Sequence[TrialSpec]) -> str:
    """The methods that are about to run, in their order, with how many trials each has."""
    counts = Counter(trial.method.name for trial in pending)
    names = [name if count == 1 else f"{name} ({count})" for name, count in counts.items()]
    if len(names) > METHODS_NAMED:
        names[METHODS_NAMED:] = [f"{len(names) - METHODS_NAMED} more methods"]
    return f": {', '.join(names)}" if names else ""
