"""What an earlier command has done is found again: answers under other ids, the sweep as it was, attempts, entries."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import completed, failed, provenance, record, trial, varied

from bench.schema.record import RankReport, TrialResult
from bench.schema.sweep import Sweep
from bench.schema.trial import TrialSpec
from bench.store import record_index
from bench.store.earlier import EarlierAnswers
from bench.store.kept_sweep import divided, keep_asked, keep_beside, keep_only, keep_sweep, read_kept
from bench.store.outbox import new_attempt, open_attempt, write_report
from bench.store.records import Store, StoreError
from bench.store.recover import recover


def trains(spec: TrialSpec) -> bool:
    return spec.method.name != "none"


def test_an_answer_is_found_under_another_readable_part_and_without_training_under_another_hash(store: Store) -> None:
    answered, labelled = trial(seed=1), trial(seed=1, label="rank=4")
    assert answered.trial_id != labelled.trial_id
    untrained = trial("none")
    longer = varied(untrained, train={"steps": 20})
    for spec in (answered, untrained):
        store.commit(record(spec, completed(train=trains(spec))), [])
    store.commit(record(trial(seed=2), failed("error")), [])
    earlier = EarlierAnswers(store, trains)
    stored_result = earlier.find(labelled)
    assert stored_result is not None
    assert (stored_result.trial_id, stored_result.status) == (answered.trial_id, "completed")
    assert earlier.find(trial(seed=2, label="rank=4")) is None, "a failure answers nothing"
    assert earlier.find(trial(seed=3)) is None
    assert earlier.find(varied(answered, train={"steps": 20})) is None, "another length is another answer"
    known = earlier.find(longer)
    assert known is not None, "what trains nothing does not depend on settings of training"
    assert known.trial_id == untrained.trial_id
    assert earlier.find(varied(longer, decode={"beams": 2})) is None


def sweep(name: str) -> Sweep:
    return Sweep.model_validate(
        {
            "name": name,
            "model": "m",
            "task": {"name": "facts"},
            "train": {"steps": 1, "learning_rate": 1e-3},
            "methods": ["full"],
        }
    )


def test_a_changed_sweep_forgets_its_trials_and_keeps_those_beside(tmp_path: Path) -> None:
    root = tmp_path / "results" / "demo"
    assert read_kept(root) is None
    keep_only(root, ["a"])
    assert not root.exists(), "a folder from before stays without a sweep"
    keep_sweep(root, sweep("one"), "text", ["train.steps=1"], ["search"])
    kept = read_kept(root)
    assert kept is not None
    assert (kept.source, kept.settings, kept.searches) == ("text", ["train.steps=1"], ["search"])
    keep_asked(root, ["a", "b", "a"])
    keep_beside(root, ["c"])
    keep_asked(root, ["b", "d"])
    kept = read_kept(root)
    assert kept is not None
    assert (kept.trial_ids, kept.beside) == (["a", "b", "d"], ["c"])
    assert kept.asks == {"a", "b", "c", "d"}
    keep_sweep(root, sweep("one"), None, [], [])
    kept = read_kept(root)
    assert kept is not None
    assert (kept.trial_ids, kept.beside, kept.source) == (["a", "b", "d"], ["c"], None)
    keep_only(root, ["d", "b", "d"])
    kept = read_kept(root)
    assert kept is not None
    assert kept.trial_ids == ["d", "b"]
    keep_sweep(root, sweep("two"), None, [], [])
    kept = read_kept(root)
    assert kept is not None
    assert (kept.trial_ids, kept.beside) == ([], ["c"])


def test_a_sweep_with_one_more_search_shows_what_the_others_found(tmp_path: Path) -> None:
    """Until the new search has ended, nobody knows which final trials the sweep asks for."""
    keep_sweep(tmp_path, sweep("one"), None, [], ["of-full"])
    keep_asked(tmp_path, ["a", "b"])
    keep_sweep(tmp_path, sweep("two"), None, [], ["of-full", "of-lora"])
    kept = read_kept(tmp_path)
    assert kept is not None
    assert kept.trial_ids == ["a", "b"]
    keep_sweep(tmp_path, sweep("three"), None, [], ["of-lora"])
    kept = read_kept(tmp_path)
    assert kept is not None
    assert kept.trial_ids == [], "what is no longer searched is no longer shown"


def test_trials_beside_a_folder_without_a_sweep_hide_nothing(tmp_path: Path) -> None:
    keep_beside(tmp_path / "above" / "demo", ["c"])
    kept = read_kept(tmp_path / "above" / "demo")
    assert kept is not None
    assert kept.beside == ["c"]
    assert kept.asks is None


def test_records_are_divided_by_what_is_asked_for() -> None:
    records = [record(trial(seed=seed), completed()) for seed in range(3)]
    assert divided(records, None) == (records, [])
    assert divided(records, {records[1].trial_id}) == ([records[1]], [records[0], records[2]])


def test_a_commit_that_is_made_again_gives_the_record_that_is_there(store: Store) -> None:
    first = store.commit(record(trial(), completed(bleu=50.0)), [])
    assert store.commit(record(trial(), completed(bleu=60.0)), []) == first
    other = record(trial(), completed())
    other = other.model_copy(update={"attempt": other.attempt.model_copy(update={"attempt_id": "other"})})
    with pytest.raises(StoreError, match="has a record of another attempt, which stays"):
        store.commit(other, [])
    assert store.read(first.trial_id) == first


def test_what_is_known_of_a_record_is_known_without_the_index(store: Store) -> None:
    assert store.known(trial().trial_id) is None
    store.commit(record(trial(), failed("error")), [])
    store.index.forget(trial().trial_id)
    known = store.known(trial().trial_id)
    assert known is not None
    assert (known.status, known.reason) == ("failed", "error")


def test_records_that_are_set_aside_are_counted_and_none_replaces_another(store: Store) -> None:
    names = []
    for _ in range(3):
        store.commit(record(trial(), completed()), [])
        names.append(store.set_aside(trial().trial_id, "torn").name)
    assert names == [f"{trial().trial_id}.{number}" for number in (1, 2, 3)]
    assert sorted(path.name for path in (store.root / "set-aside").iterdir()) == names


@pytest.mark.parametrize(("finished_at", "seconds"), [(1007.5, 7.5), (900.0, 0.0)])
def test_a_finished_attempt_took_the_time_between_two_clocks_and_never_less_than_none(
    finished_at: float, seconds: float, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.store.outbox.time.time", lambda: 1000.0)
    started = new_attempt(trial(), "demo", "fake", [])
    folder = open_attempt(store.outbox, started)
    store.log("started", trial_id=trial().trial_id, attempt=started.attempt.attempt_id, number=1)
    monkeypatch.setattr("bench.store.outbox.time.time", lambda: finished_at)
    write_report(folder, 0, RankReport(outcome=completed(), provenance=provenance()), [])
    (result,) = recover(store).committed
    assert result.total_seconds == seconds


def entry(number: int, changed: int = 0) -> record_index._Entry:
    known = record_index.Known(f"trial-{number}", "completed", "final", None, ())
    return record_index._Entry(known, (("result.json", 1, changed, 0),), settled=True)


@pytest.mark.parametrize(("entries", "most"), [(0, 256), (1024, 256), (1200, 300)])
def test_an_index_is_behind_when_a_quarter_of_its_entries_is_unsaved(entries: int, most: int, store: Store) -> None:
    index = store.index
    index._entries = {f"trial-{number}": entry(number) for number in range(entries)}
    index._changed = most - 1
    assert not index.is_behind
    index._changed = most
    assert index.is_behind


@pytest.mark.parametrize("changed", [10**9, 10**9 + 1])
def test_a_file_counts_as_settled_after_more_than_one_tick_of_its_clock(changed: int) -> None:
    tick = int(1e9 * record_index._tick(changed))
    assert not record_index._is_old(entry(0, changed), changed + tick)
    assert record_index._is_old(entry(0, changed), changed + tick + 1)


def test_records_are_read_in_order(store: Store) -> None:
    results: list[TrialResult] = [store.commit(record(trial(seed=seed), completed()), []) for seed in (2, 0, 1)]
    assert store.read_all() == sorted(results, key=lambda result: result.trial_id)
