"""A results folder may come from somebody else: nothing is written through the links in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import completed, record, trial

from bench import report
from bench.driver.status import StatusBoard
from bench.store.files import created, make_folder, write_atomically
from bench.store.journal import Journal
from bench.store.lock import FolderLock
from bench.store.records import CorruptRecordError, Store, read_record


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("mine")
    return path


def test_a_file_takes_the_place_of_a_link(tmp_path: Path, victim: Path) -> None:
    (tmp_path / ".a.partial").symlink_to(victim)
    (tmp_path / "a").symlink_to(victim)
    write_atomically(tmp_path / "a", "text")
    assert victim.read_text() == "mine"
    assert (tmp_path / "a").read_text() == "text"
    assert not (tmp_path / "a").is_symlink()
    (tmp_path / "b").symlink_to(victim)
    with pytest.raises(FileExistsError):
        created(tmp_path / "b")
    (tmp_path / "c").symlink_to(tmp_path / "not there")
    with pytest.raises(FileExistsError):
        created(tmp_path / "c")


def test_what_fails_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="a"):
        write_atomically(tmp_path / "a", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_report_is_not_written_through_links(store: Store, tmp_path: Path, victim: Path) -> None:
    spec = trial()
    store.commit(record(spec, completed()), [])
    folder = store.root / "report"
    folder.mkdir()
    names = ["results.csv", "report.md", "report.json", "report.html", "report.tex", "results.parquet"]
    for name in names:
        (folder / name).symlink_to(victim)
        (folder / f".{name}.partial").symlink_to(victim)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / "figures").symlink_to(elsewhere)
    with pytest.raises(OSError, match="is a symbolic link; put a folder in its place"):
        report.write(store.root)
    (folder / "figures").unlink()
    report.write(store.root)
    assert victim.read_text() == "mine"
    assert list(elsewhere.iterdir()) == []
    assert not any((folder / name).is_symlink() for name in names)


def test_status_journal_lock_and_folders_follow_no_links(store: Store, tmp_path: Path, victim: Path) -> None:
    root = store.root
    root.mkdir(exist_ok=True)
    (root / "status.json").symlink_to(victim)
    StatusBoard(root, "demo").write()
    (root / "linked.jsonl").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        Journal(root / "linked.jsonl").append("event")
    (root / ".linked").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        FolderLock(root / ".linked").acquire()
    (root / "folder").symlink_to(tmp_path)
    with pytest.raises(OSError, match="is a symbolic link"):
        make_folder(root / "folder")
    assert victim.read_text() == "mine"


def test_a_commit_writes_no_file_through_a_link(store: Store, tmp_path: Path, victim: Path) -> None:
    spec = trial()
    folder = store.trials / spec.trial_id
    folder.mkdir(parents=True)
    for name in ("predictions.jsonl.gz", "log.txt", "result.json"):
        (folder / name).symlink_to(tmp_path / "not there" if name == "log.txt" else victim)
    (folder / "result.json").unlink()
    files = [tmp_path / "predictions.jsonl", tmp_path / "log.txt"]
    for path in files:
        path.write_text("{}\n")
    store.commit(record(spec, completed()), files)
    assert victim.read_text() == "mine"
    assert not (tmp_path / "not there").exists()


def test_a_record_nested_deeper_than_any_is_damaged_and_nothing_worse(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text('{"a":' * 200_000 + "1" + "}" * 200_000)
    with pytest.raises(CorruptRecordError, match="not a valid record"):
        read_record(path)
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("run", command="x")
    with journal.path.open("a") as file:
        file.write("[" * 200_000 + "]" * 200_000 + "\n" + json.dumps([1]) + "\n")
    assert [event["event"] for event in journal.events()] == ["run"]
