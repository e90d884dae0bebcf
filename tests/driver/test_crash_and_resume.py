"""Random interleavings of commits, crashes and resumptions, as a property: nothing is lost, nothing is done twice.

A driver is cut off at any passing of any named point, or in the middle of a line of the journal, and started again, on
a launcher whose trials complete, fail, get lost, or finish at the moment the driver dies. No processes: hundreds of
drivers die in a second or two. What kill -9 does to real ones is tried in test_chaos.py.
"""

from __future__ import annotations

import os
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from chaos.ground import trained_again
from fakes import FakeLauncher, completed, provenance, trial
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.driver.schedule import Schedule
from bench.launch.launcher import Running
from bench.schema.record import Failed, RankReport
from bench.store.outbox import write_report
from bench.store.records import Store, damaged_files
from bench.store.recover import recover
from bench.store.retry import RetryPolicy

OUTCOMES = ("completed", "error", "worker_lost", "node_lost", "hung")
TORN = "in the middle of a line"


class Crash(BaseException):
    """The driver is gone. Nothing catches it."""


class Crashes:
    """Cuts the driver off at its n-th passing of any point.

    Args:
        after: How many points it passes; None: all of them.
    """

    def __init__(self, after: int | None) -> None:
        self.left = after

    def reached(self, point: str) -> None:
        if self.left is None:
            return
        self.left -= 1
        if self.left < 0:
            raise Crash(point)

    def write(self, descriptor: int, data: bytes) -> int:
        """``os.write`` of the journal, which may stop in the middle of a line."""
        try:
            self.reached(TORN)
        except Crash:
            os.write(descriptor, data[: len(data) // 2])
            raise
        return os.write(descriptor, data)


@contextmanager
def crashing(crashes: Crashes) -> Iterator[None]:
    """The crash points of the driver, and its journal, end it."""
    slippery = types.SimpleNamespace(**{**vars(os), "write": crashes.write})
    with (
        mock.patch("bench.store.records.reached", crashes.reached),
        mock.patch("bench.driver.schedule.reached", crashes.reached),
        mock.patch("bench.store.files.reached", crashes.reached),
        mock.patch("bench.store.journal.os", slippery),
        mock.patch("os.fsync", lambda descriptor: None),  # no power is cut here
    ):
        yield


class Finishing(FakeLauncher):
    """Its trials are done, and have reported, before the driver hears of it.

    Args:
        outbox: Where attempts wait for the store.
        plans: What comes of the attempts at each trial; further ones complete. Lost ones leave no report.
        finished: Trials that have reported, over all drivers.
    """

    def __init__(self, outbox: Path, plans: dict[str, list[str]], finished: set[str]) -> None:
        super().__init__(outbox)
        self.reasons, self.finished = plans, finished

    def launch(self, run: Running) -> None:
        assert run.trial_id not in self.finished, f"{run.trial_id} had finished, and was trained again"
        reasons = self.reasons[run.trial_id]
        reason = reasons.pop(0) if reasons else "completed"
        failed = {"status": "failed", "reason": reason, "phase": "train", "rank": 0, "message": reason}
        outcome = completed() if reason == "completed" else Failed.model_validate(failed)
        if reason in ("completed", "error"):
            (run.outbox / "curve.txt").write_text(run.trial_id)
            (run.outbox / "predictions.jsonl").write_text('{"id": "a"}\n')
            report = RankReport(outcome=outcome, provenance=provenance())
            write_report(run.outbox, 0, report, ["curve.txt", "predictions.jsonl"])
            self.finished.add(run.trial_id)
        self.end(run, outcome)


class Life:
    """A sweep's folder through the lives of its drivers.

    Args:
        root: Empty.
        plans: What comes of the attempts at each trial.
    """

    def __init__(self, root: Path, plans: list[list[str]]) -> None:
        self.store = Store(root)
        self.specs = [trial(seed=seed, cpus_per_rank=1) for seed in range(len(plans))]
        self.plans = {spec.trial_id: list(plan) for spec, plan in zip(self.specs, plans, strict=True)}
        self.finished: set[str] = set()
        self.records: dict[str, bytes] = {}

    def drive(self, crash_after: int | None) -> bool:
        """One driver; returns whether it came to its end."""
        launcher = Finishing(self.store.outbox, self.plans, self.finished)
        try:
            with crashing(Crashes(crash_after)):
                recover(self.store)
                pending = [spec for spec in self.specs if not self.store.has(spec.trial_id)]
                Schedule(self.store, launcher, "life", retries=RetryPolicy(backoff_seconds=0.0)).run(pending)
        except Crash:
            return False
        else:
            return True
        finally:
            self._look()

    def _look(self) -> None:
        """No record that was there once is gone or changed; each is whole."""
        now = {path.parent.name: path.read_bytes() for path in self.store.trials.glob("*/result.json")}
        for trial_id, content in self.records.items():
            assert now.get(trial_id) == content, f"the record of {trial_id} was touched"
        for trial_id in now:
            record = self.store.read(trial_id)
            assert record is not None
            assert not damaged_files(self.store.trials / trial_id, record, list(record.files))
        self.records = now


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    plans=st.lists(st.lists(st.sampled_from(OUTCOMES), max_size=3), min_size=1, max_size=4),
    crashes=st.lists(st.integers(0, 45), max_size=8),
)
def test_whatever_crashes_when_each_trial_gets_one_record(plans: list[list[str]], crashes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        life = Life(Path(folder), plans)
        for crash_after in crashes:
            life.drive(crash_after)
        assert life.drive(None)
        assert set(life.records) == {spec.trial_id for spec in life.specs}
        assert not trained_again(life.store)
        assert not list(life.store.outbox.rglob("*"))
        before = dict(life.records)
        assert life.drive(None)
        assert life.records == before
