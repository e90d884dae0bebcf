"""Rounds of trials on one launcher, which starts when the first trial needs it and outlives the rounds."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from bench.commands.options import LauncherName, console
from bench.record import Failed, TrialResult
from bench.spec import TrialSpec
from bench.stages import Round
from bench.status import StatusBoard
from bench.store import Store
from bench.trackers.tracking import Tracking

if TYPE_CHECKING:
    from bench.launch import Launcher


class RoundRunner:
    """Runs what has no record yet, round by round.

    Args:
        store: Of the sweep, locked by this process.
        sweep: Its name.
        launcher: Which one to start.
        address: Of a Ray cluster to join.
        targets: The classes of all methods and tasks, whose sources travel where they are plugins.
        retry_failed: Whether trials that failed in an earlier run are run again.
        trackers: Names of the trackers that hear of the trials.
    """

    def __init__(
        self,
        store: Store,
        sweep: str,
        launcher: LauncherName,
        address: str | None,
        targets: Sequence[str],
        retry_failed: bool,
        trackers: Sequence[str] = (),
    ) -> None:
        self.store = store
        self.sweep = sweep
        self.launcher_name, self.address, self.targets = launcher, address, targets
        self.retry_failed = retry_failed
        self.found: dict[str, TrialResult] = {}
        self._launcher: Launcher | None = None
        self._board = StatusBoard(store.root, sweep)
        self._tracking = Tracking(
            trackers,
            store.root,
            sweep,
            lambda message: console.print(message, style="yellow", highlight=False, markup=False, soft_wrap=True),
        )

    def __enter__(self) -> RoundRunner:
        # Batch systems ask with SIGTERM, and a job that a shell started in the background would ignore SIGINT.
        for stop in (signal.SIGINT, signal.SIGTERM):
            signal.signal(stop, signal.default_int_handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            console.print("stopped: finished trials are kept, and the same command goes on", highlight=False)
        if self._launcher is not None:
            self._launcher.close()
        self._tracking.close()
        self._board.write()

    def recover(self) -> None:
        """Put in order what an earlier driver left."""
        from bench.recover import recover

        recovered = recover(self.store)
        for why in recovered.set_aside.values():
            console.print(f"set aside: {why}", style="yellow", highlight=False, markup=False)
        for result in recovered.committed:
            console.print(f"committed {result.trial_id}, which had finished when the driver died", highlight=False)

    def run(self, trials: Round, title: str) -> None:
        """Run the trials of a round that have no record."""
        pending = [trial for trial in trials.trials if not self._is_done(trial)]
        done = len(trials.trials) - len(pending)
        console.print(f"{title}: {len(trials.trials)} trials, {done} done, {len(pending)} to run", highlight=False)
        present = [record for trial in trials.trials if (record := self.store.read(trial.trial_id)) is not None]
        self._board.begin_round(present, len(pending))
        if pending:
            self._run(pending)
        for trial in trials.trials:
            if (record := self.store.read(trial.trial_id)) is not None:
                self.found[trial.trial_id] = record

    def _is_done(self, trial: TrialSpec) -> bool:
        record = self.store.read(trial.trial_id)
        if record is None:
            return False
        if self.retry_failed and isinstance(record.outcome, Failed) and trial.trial_id not in self.found:
            self.store.discard(trial.trial_id)
            return False
        return True

    def _run(self, pending: Sequence[TrialSpec]) -> None:
        from bench.display import Display
        from bench.prepare import prepare
        from bench.schedule import Schedule
        from bench.stopping import stoppable

        if self._launcher is None:
            self._launcher = self._start_launcher()
            self._launcher.warm(pending[0])
        prepare(pending, lambda message: console.print(message, style="dim", highlight=False))
        with Display(console, self._board) as display:
            schedule = Schedule(self.store, self._launcher, self.sweep, [self._board, display, self._tracking])
            with stoppable(schedule.drain, lambda message: console.print(message, highlight=False)):
                schedule.run(pending)
        if schedule.draining:
            raise KeyboardInterrupt

    def _start_launcher(self) -> Launcher:
        from bench.plugin_source import sources_of
        from bench.prepare import make_launcher

        return make_launcher(self.launcher_name.value, self.store.outbox, self.address, sources_of(self.targets))
