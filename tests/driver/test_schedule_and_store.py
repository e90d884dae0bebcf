"""Scheduling on a fake launcher; the store tells finished trials from all others."""

from __future__ import annotations

import gzip
import hashlib
import multiprocessing
import threading
from pathlib import Path

import pytest
from fakes import FakeLauncher, completed, failed, provenance, record, trial

from bench.driver.schedule import MAX_OVERTAKEN, Schedule
from bench.launch.capacity import Cluster, Machine
from bench.launch.launcher import Ended, Running, StopReason
from bench.schema.record import Completed, Failed, RankReport, Reason
from bench.store.files import write_atomically
from bench.store.outbox import new_attempt, open_attempt, write_report
from bench.store.records import CorruptRecordError, Store, StoreError
from bench.store.recover import recover
from bench.store.requests import ANSWER_SUFFIX, REQUESTS_FOLDER, Answer, CancelRequest
from bench.store.retry import RetryPolicy


def run(store: Store, launcher: FakeLauncher, *trials: object) -> None:
    Schedule(store, launcher, "demo", retries=RetryPolicy(backoff_seconds=0.01)).run(list(trials))  # type: ignore[arg-type]


def test_every_trial_gets_a_record_with_hashed_files(store: Store) -> None:
    launcher = FakeLauncher(store.outbox)
    specs = [trial(seed=seed) for seed in range(5)]
    run(store, launcher, *specs)
    assert [result.trial_id for result in store.read_all()] == sorted(spec.trial_id for spec in specs)
    result = store.read(specs[0].trial_id)
    assert result is not None
    packed = (store.trials / result.trial_id / "predictions.jsonl.gz").read_bytes()
    assert gzip.decompress(packed) == b'{"id": "a"}\n'
    assert result.files == {"predictions.jsonl.gz": hashlib.sha256(packed).hexdigest()}
    assert list(store.outbox.iterdir()) == [], "what has its record waits no more"


def test_trials_run_at_once_where_there_is_room(store: Store) -> None:
    launcher = FakeLauncher(store.outbox, Machine(cpus=4, gpus=0))
    run(store, launcher, *(trial(seed=seed, cpus_per_rank=2) for seed in range(6)))
    assert launcher.most_at_once == 2
    launcher = FakeLauncher(store.outbox, Machine(cpus=4, gpus=0))
    run(store, launcher, *(trial(seed=seed) for seed in range(6, 9)))
    assert launcher.most_at_once == 1, "without cpus_per_rank a trial takes all cores"


def test_lost_workers_are_retried_and_remembered(store: Store) -> None:
    launcher, spec = FakeLauncher(store.outbox), trial()
    launcher.plans[spec.trial_id] = [failed(), failed("node_lost"), completed()]
    run(store, launcher, spec)
    result = store.read(spec.trial_id)
    assert result is not None
    assert result.outcome.status == "completed"
    assert result.attempt.number == 3
    assert result.attempt.earlier_reasons == ["worker_lost", "node_lost"]


def test_a_late_result_of_an_attempt_that_was_given_up_is_not_taken(store: Store) -> None:
    launcher, spec = FakeLauncher(store.outbox), trial()
    launcher.plans[spec.trial_id] = [failed("hung"), completed(bleu=50.0)]

    def zombie_speaks(run: Running) -> None:
        if run.attempt.number == 2:
            launcher.events.put(Ended(run.trial_id, "zombie", completed(bleu=99.0), provenance(), 1.0))

    launcher.on_launch = zombie_speaks
    run(store, launcher, spec)
    result = store.read(spec.trial_id)
    assert result is not None
    assert isinstance(result.outcome, Completed)
    assert result.outcome.scores.values["bleu"] == 50.0
    assert [event["attempt"] for event in store.journal.events() if event["event"] == "stale"] == ["zombie"]


def test_what_an_attempt_left_that_is_not_the_current_one_is_not_committed(store: Store) -> None:
    spec = trial()
    attempts = [new_attempt(spec, "demo", "fake", []) for _ in range(2)]
    for number, started in enumerate(attempts):
        folder = open_attempt(store.outbox, started)
        if number == 0:
            write_report(folder, 0, RankReport(outcome=completed(bleu=99.0), provenance=provenance()), [])
        store.log("started", trial_id=spec.trial_id, attempt=started.attempt.attempt_id, number=number + 1)
    assert recover(store).committed == []
    assert not store.has(spec.trial_id)
    stale = [event["attempt"] for event in store.journal.events() if event["event"] == "stale"]
    assert stale == [attempts[0].attempt.attempt_id]
    assert store.lost_attempts() == {spec.trial_id: ["driver_lost"]}


def test_retries_end(store: Store) -> None:
    launcher, spec = FakeLauncher(store.outbox), trial()
    launcher.plans[spec.trial_id] = [failed()] * 9
    run(store, launcher, spec)
    assert len(launcher.launched) == RetryPolicy().attempts
    result = store.read(spec.trial_id)
    assert isinstance(result.outcome if result else None, Failed)


@pytest.mark.parametrize("reason", ["out_of_memory", "diverged", "error"])
def test_results_are_not_retried_and_others_go_on(reason: Reason, store: Store) -> None:
    launcher, first, second = FakeLauncher(store.outbox), trial(seed=1), trial(seed=2)
    launcher.plans[first.trial_id] = [failed(reason)]
    run(store, launcher, first, second)
    assert launcher.launched == [first.trial_id, second.trial_id]
    assert [result.outcome.status for result in store.read_all()].count("failed") == 1


def test_what_can_never_fit_is_infeasible_at_once(store: Store) -> None:
    launcher = FakeLauncher(store.outbox, Machine(cpus=2, gpus=0))
    spec = trial(ranks=4)
    run(store, launcher, spec, trial(seed=1))
    result = store.read(spec.trial_id)
    assert result is not None
    assert isinstance(result.outcome, Failed)
    assert result.outcome.reason == "infeasible"
    assert result.outcome.message.startswith("4 ranks need 4 CPU cores and 0 GPUs; there are 2 CPU cores and 0 GPUs.")
    assert len(launcher.launched) == 1


def test_a_trial_beyond_its_time_is_stopped(store: Store) -> None:
    launcher, spec = FakeLauncher(store.outbox), trial(timeout_seconds=0.3)
    launcher.hangs.add(spec.trial_id)
    run(store, launcher, spec)
    result = store.read(spec.trial_id)
    assert isinstance(result.outcome if result else None, Failed)
    assert "timed_out" in (store.trials / spec.trial_id / "result.json").read_text()


def test_the_deadline_of_a_trial_that_has_ended_stops_nothing(store: Store) -> None:
    launcher = FakeLauncher(store.outbox)
    soon, late = trial(seed=1, timeout_seconds=0.1), trial(seed=2, timeout_seconds=0.6)
    launcher.hangs.add(late.trial_id)
    run(store, launcher, soon, late)
    assert [store.read(spec.trial_id).outcome.status for spec in (soon, late)] == ["completed", "failed"]  # type: ignore[union-attr]


def test_a_trial_that_takes_long_to_stop_is_told_once(store: Store) -> None:
    class Slow(FakeLauncher):
        stops = 0

        def stop(self, trial_id: str, reason: StopReason) -> None:
            self.stops += 1
            threading.Timer(0.5, super().stop, (trial_id, reason)).start()

    launcher, spec = Slow(store.outbox), trial(timeout_seconds=0.1)
    launcher.hangs.add(spec.trial_id)
    run(store, launcher, spec)
    assert launcher.stops == 1


def test_what_is_cancelled_is_not_tried_again_however_it_ends(store: Store) -> None:
    class Killed(FakeLauncher):
        def stop(self, trial_id: str, reason: StopReason) -> None:
            self.end(self.running[trial_id], failed("worker_lost"))

    def ask(run: Running) -> None:
        folder = store.root / REQUESTS_FOLDER
        folder.mkdir()
        (folder / "all.json").write_text(CancelRequest(trial_id=None).model_dump_json())

    launcher, runs, waits = Killed(store.outbox), trial(seed=1, timeout_seconds=20.0), trial(seed=2)
    launcher.hangs.add(runs.trial_id)
    launcher.on_launch = ask
    run(store, launcher, runs, waits)
    assert launcher.launched == [runs.trial_id]
    outcomes = [store.read(spec.trial_id).outcome for spec in (runs, waits)]  # type: ignore[union-attr]
    assert [outcome.reason for outcome in outcomes if isinstance(outcome, Failed)] == ["worker_lost", "cancelled"]
    answer = (store.root / REQUESTS_FOLDER / f"all{ANSWER_SUFFIX}").read_text()
    assert Answer.model_validate_json(answer).cancelled == 2


def test_a_search_that_is_cancelled_as_a_whole_has_no_records_to_decide_by(store: Store) -> None:
    def ask(run: Running) -> None:
        folder = store.root / REQUESTS_FOLDER
        folder.mkdir()
        (folder / "all.json").write_text(CancelRequest(trial_id=None).model_dump_json())

    launcher = FakeLauncher(store.outbox)
    asked = [trial(seed=seed, timeout_seconds=20.0).model_copy(update={"stage": "tune"}) for seed in (1, 2)]
    launcher.hangs.add(asked[0].trial_id)
    launcher.on_launch = ask
    schedule = Schedule(store, launcher, "demo")
    schedule.run(asked)
    assert schedule.cancelled, "which ends the rounds"
    assert launcher.launched == [asked[0].trial_id]
    assert list(store.read_all()) == []
    run(store, FakeLauncher(store.outbox), *asked)
    assert [result.outcome.status for result in store.read_all()] == ["completed"] * 2


def test_smaller_trials_overtake_a_larger_one_eight_times(store: Store) -> None:
    """Then they wait until there is room for it."""
    launcher = FakeLauncher(store.outbox, Machine(cpus=2, gpus=0))
    held = trial(label="held", cpus_per_rank=1, priority=1, timeout_seconds=1.0)
    launcher.hangs.add(held.trial_id)
    larger = trial(label="larger", cpus_per_rank=2)
    smaller = [trial(seed=seed, cpus_per_rank=1) for seed in range(20)]
    run(store, launcher, held, *smaller, larger)
    assert launcher.launched.index(larger.trial_id) == 1 + MAX_OVERTAKEN == 9
    assert len(launcher.launched) == 22


def test_who_starts_is_overtaken_eight_times_anew(store: Store) -> None:
    launcher = FakeLauncher(store.outbox, Machine(cpus=2, gpus=0))
    held = [trial(label=f"held {n}", cpus_per_rank=1, priority=1, timeout_seconds=2.0) for n in range(2)]
    larger = [trial(label=f"larger {n}", cpus_per_rank=2) for n in range(2)]
    smaller = [trial(seed=seed, cpus_per_rank=1) for seed in range(20)]
    launcher.hangs |= {spec.trial_id for spec in held}
    schedule = Schedule(store, launcher, "demo")

    def hold_again(run: Running) -> None:
        if run.trial_id == larger[0].trial_id:
            schedule.submit([held[1]])
        if len(launcher.launched) in (MAX_OVERTAKEN, 2 + 2 * MAX_OVERTAKEN):  # this launch is the eighth since the last
            of_hold = [spec.trial_id for spec in held if spec.trial_id in launcher.running]
            launcher.end(launcher.running[of_hold[0]], completed())

    launcher.on_launch = hold_again
    schedule.run([held[0], *smaller, *larger])
    places = [launcher.launched.index(spec.trial_id) for spec in (held[0], larger[0], held[1], larger[1])]
    assert places == [0, 9, 10, 19]


def test_shares_of_a_machine() -> None:
    machine = Cluster([Machine(cpus=16, gpus=4)])
    assert machine.need(trial(ranks=2)).size == (2, 8)
    assert machine.need(trial(device="cpu", ranks=2)).size == (0, 16)
    assert "5 ranks need 15 CPU cores and 5 GPUs" in str(machine.shortage(trial(ranks=5)))
    assert Cluster([Machine(cpus=3, gpus=0)]).need(trial(ranks=2, cpus_per_rank=1)).size == (0, 2)


def test_a_torn_record_is_named_and_not_used(store: Store) -> None:
    spec = trial()
    store.commit(record(spec, completed()), [])
    path = store.trials / spec.trial_id / "result.json"
    path.write_text(path.read_text()[:200])
    with pytest.raises(CorruptRecordError, match=r"result.json is not a valid record; 'tuneoff run' sets it aside"):
        store.read(spec.trial_id)


def test_a_crash_before_the_record_leaves_no_record(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt("power cut")

    spec = trial()
    monkeypatch.setattr("bench.store.records.write_atomically", power_cut)
    with pytest.raises(KeyboardInterrupt, match="power cut"):
        store.commit(record(spec, completed()), [])
    assert store.read(spec.trial_id) is None
    monkeypatch.undo()
    assert store.commit(record(spec, completed()), []) == store.read(spec.trial_id)


def test_writing_atomically_leaves_no_partial_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "x", "first")
    write_atomically(tmp_path / "x", "second")
    assert (tmp_path / "x").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def _hold(root: Path, held: object, release: object) -> None:
    with Store(root).locked():
        held.set()  # type: ignore[attr-defined]
        release.wait(30)  # type: ignore[attr-defined]


def test_a_second_driver_is_refused_until_the_first_is_dead(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    first = context.Process(target=_hold, args=(store.root, held, release))
    first.start()
    assert held.wait(30)
    with pytest.raises(StoreError, match=rf"process {first.pid} on .* is running this sweep"), store.locked():
        pass
    first.kill()
    first.join()
    with store.locked():
        pass
