"""Which trials of a round run, and how often a record is read for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from fakes import completed, record, trial
from rich.console import Console

from bench.driver.rounds import METHODS_NAMED, RoundRunner
from bench.driver.stages import Round
from bench.launch.local import LocalOptions
from bench.schema.record import Failed, TrialResult
from bench.schema.trial import TrialSpec
from bench.store.outbox import checkpoints_beside
from bench.store.records import Store


class Runner(RoundRunner):
    """Commits a record for every trial that is to run."""

    ran: tuple[str, ...] = ()

    def _run(self, pending: Sequence[TrialSpec]) -> None:
        self.ran = (*self.ran, *(spec.trial_id for spec in pending))
        for spec in pending:
            self.store.commit(record(spec, completed()), [])


@pytest.mark.parametrize("retry_failed", [False, True])
def test_a_round_runs_what_has_no_record_and_reads_no_record_that_the_index_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retry_failed: bool
) -> None:
    done, failed, new = trials = tuple(trial(seed=seed) for seed in range(3))
    reads: Counter[str] = Counter()
    store = Store(tmp_path / "sweep")
    with store.locked():
        store.commit(record(done, completed()), [])
        store.commit(record(failed, Failed(reason="out_of_memory", phase=None, rank=None, message="no")), [])
        runner = Runner(store, "sweep", LocalOptions(), Console(), [], retry_failed)
        read = Store.read

        def counted(self: Store, trial_id: str) -> TrialResult | None:
            reads[trial_id] += 1
            return read(self, trial_id)

        monkeypatch.setattr(Store, "read", counted)
        runner.run(Round("final", trials), "sweep")

    assert reads[done.trial_id] == 0
    assert runner.ran == tuple(spec.trial_id for spec in ((failed, new) if retry_failed else (new,)))
    assert list(runner.found) == [spec.trial_id for spec in trials]
    assert runner.found[failed.trial_id].status == ("completed" if retry_failed else "failed")


def test_a_round_begins_by_saying_what_will_run(tmp_path: Path) -> None:
    out = StringIO()
    store = Store(tmp_path / "sweep")
    specs = [trial("none"), *(trial("lora", seed=seed) for seed in range(2))]
    more = [trial(f"plugin_{number}") for number in range(METHODS_NAMED + 2)]
    with store.locked():
        runner = Runner(store, "sweep", LocalOptions(), Console(file=out, width=40), [], retry_failed=False)
        for trials in (specs, specs, more):
            runner.run(Round("final", trials), "sweep")
    first, again, many = out.getvalue().splitlines()
    assert first == "sweep: 3 trials, 0 done, 3 to run: none, lora (2)"
    assert again == "sweep: 3 trials, 3 done, 0 to run"
    named = ", ".join(spec.method.name for spec in more[:METHODS_NAMED])
    assert many == f"sweep: 10 trials, 0 done, 10 to run: {named}, 2 more methods"


def test_checkpoints_that_no_trial_continues_from_are_named(tmp_path: Path) -> None:
    out = StringIO()
    store = Store(tmp_path / "sweep")
    two_ranks, one_rank, empty = trial(ranks=2), trial(ranks=1), trial(seed=9)
    for spec in (two_ranks, one_rank, empty):
        checkpoints_beside(store.outbox, spec.trial_id).mkdir(parents=True)
    left = checkpoints_beside(store.outbox, two_ranks.trial_id)
    for spec in (two_ranks, one_rank):
        (checkpoints_beside(store.outbox, spec.trial_id) / "step-2.safetensors").touch()
    with store.locked():
        runner = Runner(store, "sweep", LocalOptions(), Console(file=out, width=40), [], retry_failed=False)
        runner.tell_strays([two_ranks, one_rank])
        assert out.getvalue() == ""
        runner.tell_strays([one_rank])
    (line,) = out.getvalue().splitlines()
    assert line.startswith(f"{left} has checkpoints of settings that this sweep no longer has")
