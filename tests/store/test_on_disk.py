"""What has to survive a power cut is written to the disk before it is relied on; files hold what was given."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from fakes import completed, failed, provenance, record, trial

from bench.schema.record import RankReport
from bench.store import crash_points, owned_folder, predictions
from bench.store.files import created, new_folder, replacing, write_atomically
from bench.store.journal import Journal
from bench.store.outbox import (
    START_FILE,
    attempts,
    finished_ranks,
    new_attempt,
    open_attempt,
    payload,
    report_path,
    write_report,
)
from bench.store.records import Store, StoreError
from bench.task import Example


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files and folders as they are written to the disk, and of renames as ``-> name``, in order."""
    names: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def hear_sync(descriptor: int) -> None:
        names.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def hear_rename(path: Path, target: Path) -> Path:
        names.append(f"-> {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", hear_sync)
    monkeypatch.setattr(Path, "replace", hear_rename)
    return names


def test_a_file_is_on_the_disk_before_it_gets_its_name_and_its_name_afterwards(
    tmp_path: Path, synced: list[str]
) -> None:
    write_atomically(tmp_path / "x", "content")
    assert len(synced) == 3
    assert synced[0].startswith(".x.")
    assert synced[0].endswith(".partial")
    assert synced[1:] == ["-> x", tmp_path.name]
    synced.clear()
    with replacing(tmp_path / "y", durable=False) as file:
        file.write(b"quick")
    assert synced == ["-> y"], "what need not survive a power cut costs no time"


def test_others_may_read_results_and_not_change_them(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        created(tmp_path / "x").close()
        Journal(tmp_path / "journal.jsonl").append("run")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_a_folder_that_somebody_made_meanwhile_stays(tmp_path: Path) -> None:
    target = tmp_path / "above" / "entry"
    with new_folder(target) as partial:
        (partial / "mine").touch()
    assert [path.name for path in target.iterdir()] == ["mine"]
    assert list(target.parent.iterdir()) == [target]
    with pytest.raises(FileExistsError, match="entry"), new_folder(target) as partial:
        (partial / "late").touch()
    assert [path.name for path in target.iterdir()] == ["mine"]
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("place", ["above", "above/sweep", "above/sweep/trials", "above/sweep/report"])
@pytest.mark.parametrize("what", ["file", "dangling link"])
def test_results_go_where_a_folder_can_be(place: str, what: str, tmp_path: Path) -> None:
    taken = tmp_path / place
    taken.parent.mkdir(parents=True, exist_ok=True)
    if what == "file":
        taken.touch()
    else:
        taken.symlink_to(tmp_path / "nowhere" / "at all")
    refusal = pytest.raises(StoreError, match=r"no folder can be made here, because .* another folder with --results")
    with refusal, Store(tmp_path / "above" / "sweep").locked():
        pass


def test_an_event_is_on_the_disk_with_the_time_to_the_millisecond(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    monkeypatch.setattr("bench.store.journal.time.time", lambda: 1.23456)
    journal.append("run", command="x")
    assert synced == ["journal.jsonl"]
    assert list(journal.events()) == [{"time": 1.235, "event": "run", "command": "x"}]


def test_a_torn_line_of_the_journal_stays_on_a_line_of_its_own(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for number in range(2):
        journal.append("started", number=number)
    assert len(journal.path.read_bytes().splitlines()) == 2, "no empty lines"
    with journal.path.open("ab") as file:
        file.write(b'{"time": 1.0, "event": "comm')
    journal.append("started", number=2)
    assert len(journal.path.read_bytes().splitlines()) == 4
    assert [event["number"] for event in journal.events()] == [0, 1, 2]


def test_what_a_rank_reports_is_on_the_disk_before_its_report(tmp_path: Path, synced: list[str]) -> None:
    folder = open_attempt(tmp_path, new_attempt(trial(), "demo", "fake", []))
    (folder / "rank-0.log").write_text("log")
    report = RankReport(outcome=completed(), provenance=provenance())
    write_report(folder, 0, report, ["rank-0.log"])
    names = [name for name in synced if not name.startswith(".")]
    assert names[:3] == ["rank-0.log", START_FILE, folder.parent.name]
    assert names[3:] == [f"-> {report_path(folder, 0).name}", folder.name]


def test_files_of_a_record_are_on_the_disk_before_the_record(store: Store, tmp_path: Path, synced: list[str]) -> None:
    files = [tmp_path / name for name in ("curve.txt", "predictions.jsonl")]
    for file in files:
        file.write_text("{}\n")
    store.commit(record(trial(), completed()), files)
    place = synced.index("-> result.json")
    assert {"curve.txt", "predictions.jsonl.gz"} <= set(synced[:place])


def test_what_an_attempt_left_is_found_and_what_is_no_result_is_not(tmp_path: Path) -> None:
    folders = [open_attempt(tmp_path, new_attempt(trial(seed=seed), "demo", "fake", [])) for seed in range(3)]
    folders.sort()
    (folders[0] / START_FILE).write_text("{torn")
    (folders[1] / "inner").mkdir()
    for name in ("curve.txt", ".hidden", "report-0.json", "report-1.json"):
        (folders[1] / name).touch()
    assert [folder for folder, _ in attempts(tmp_path)] == folders[1:], "a damaged description hides no other attempt"
    assert [path.name for path in payload(folders[1])] == ["curve.txt"]


def test_an_attempt_has_ended_when_all_ranks_reported_or_one_failed_by_itself(tmp_path: Path) -> None:
    folder = open_attempt(tmp_path, new_attempt(trial(ranks=3), "demo", "fake", []))
    fine = RankReport(outcome=completed(), provenance=provenance())
    for rank in (0, 2):
        write_report(folder, rank, fine, [])
    assert finished_ranks(folder, 3) is None, "rank 1 has not reported"
    write_report(folder, 1, RankReport(outcome=failed("worker_lost"), provenance=None), [])
    assert finished_ranks(folder, 3) is None, "a symptom of another fault ends nothing"
    write_report(folder, 1, fine, [])
    assert sorted(finished_ranks(folder, 3) or {}) == [0, 1, 2]
    report_path(folder, 0).write_text("{torn")
    assert finished_ranks(folder, 3) is None
    write_report(folder, 2, RankReport(outcome=failed("diverged"), provenance=None), [])
    assert sorted(finished_ranks(folder, 3) or {}) == [1, 2], "the trial's own fault"
    (folder / "curve.txt").write_text("1")
    write_report(folder, 1, fine, ["curve.txt"])
    (folder / "curve.txt").write_text("2")
    assert sorted(finished_ranks(folder, 3) or {}) == [2], "a file of rank 1 was changed"


def test_predictions_and_answers_are_read_as_they_were_written(store: Store, tmp_path: Path) -> None:
    examples = [Example(f"id-{n}", (("Zoë", "knows", "Anđela"),), f"sóurce {n}", ("ref",), ("seen",)) for n in range(2)]
    scores = [{"bleu": 1.0}, {"bleu": 2.0}]
    spec, likelihoods = trial(), [{"yes": -1.0}, {"yes": -2.0}]
    predictions.write_predictions(tmp_path, examples, ["Zoë.", "a\nb"], [False, True], scores, likelihoods)
    written = (tmp_path / predictions.WRITTEN_FILE).read_text(encoding="utf-8")
    assert "Zoë" in written, "people search the file, so letters stay as they are"
    assert not predictions.has_predictions(store.root, spec.trial_id)
    assert predictions.read_predictions(store.root, spec.trial_id) is None
    store.commit(record(spec, completed()), [tmp_path / predictions.WRITTEN_FILE])
    assert predictions.has_predictions(store.root, spec.trial_id)
    rows = predictions.read_predictions(store.root, spec.trial_id)
    assert rows is not None
    assert [row["prediction"] for row in rows] == ["Zoë.", "a\nb"]
    assert [row["truncated"] for row in rows] == [False, True]
    assert [row["scores"] for row in rows] == scores
    assert [row["log_likelihoods"] for row in rows] == likelihoods
    assert rows[0]["facts"] == [["Zoë", "knows", "Anđela"]]
    assert rows[1]["source"] == "sóurce 1"
    predictions.write_predictions(tmp_path, examples, ["a", "b"], [False, True], scores)
    assert "log_likelihoods" not in (tmp_path / predictions.WRITTEN_FILE).read_text(encoding="utf-8")
    predictions.write_samples(tmp_path, [{"doc": "é"}, {"doc": 2}])
    text = (tmp_path / predictions.SAMPLES_FILE).read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == [{"doc": "é"}, {"doc": 2}]
    assert text.startswith('{"doc": "é"}\n')
    assert text.endswith("\n")


@pytest.mark.parametrize(
    ("wanted", "killed"),
    [(None, []), ("commit.before_files", [1]), ("commit.before_files:3", [3]), ("commit.after_rename", [])],
)
def test_a_process_dies_at_the_named_point_as_often_as_was_said(
    wanted: str | None, killed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths: list[int] = []
    passed = 0
    monkeypatch.setattr(crash_points, "_times", Counter())
    monkeypatch.delenv("TUNEOFF_CRASH_AT", raising=False)
    if wanted is not None:
        monkeypatch.setenv("TUNEOFF_CRASH_AT", wanted)

    def kill(process: int, number: int) -> None:
        assert (process, number) == (os.getpid(), signal.SIGKILL)
        deaths.append(passed)

    monkeypatch.setattr(os, "kill", kill)
    for passed in range(1, 5):  # noqa: B007 - kill reads it
        crash_points.reached("commit.before_files")
    assert deaths == killed


def test_the_folder_of_an_owner_that_ended_is_removed_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    owner_file = owned_folder.OWNER_FILE
    for name in ("x-dead", "x-alive", "x-strange", "x-new", "y-other"):
        (tmp_path / name).mkdir()
    for name in ("x-dead", "x-alive", "y-other"):
        (tmp_path / name / owner_file).touch()
    (tmp_path / "x-new" / f"{owner_file}.new").touch()
    (tmp_path / "x-link").symlink_to(tmp_path / "y-other")
    with (tmp_path / "x-alive" / owner_file).open() as alive:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = owned_folder.owned_folder("x-")
        left = {path.name for path in tmp_path.iterdir()} - {mine.name}
        assert left == {"x-alive", "x-strange", "x-new", "x-link", "y-other"}
    assert [path.name for path in mine.iterdir()] == [owner_file]
    assert (tmp_path / "y-other" / owner_file).exists(), "a link is not followed"
    with (mine / owner_file).open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_folders_of_other_users_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "x-dead").mkdir()
    (tmp_path / "x-dead" / owned_folder.OWNER_FILE).touch()
    monkeypatch.setattr("bench.store.owned_folder.os.geteuid", lambda: os.getuid() + 1)
    owned_folder.owned_folder("x-")
    assert (tmp_path / "x-dead").is_dir()


def test_without_locks_folders_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "x-dead").mkdir()
    (tmp_path / "x-dead" / owned_folder.OWNER_FILE).touch()

    def no_locks(*_: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr("bench.store.owned_folder.fcntl.flock", no_locks)
    mine = owned_folder.owned_folder("x-")
    assert [path.name for path in mine.iterdir()] == [f"{owned_folder.OWNER_FILE}.new"]
    assert (tmp_path / "x-dead").is_dir()
