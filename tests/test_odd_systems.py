"""Clocks that are set, file systems without locks, homes that take no files; chaos.odd_systems tries them for real."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import time
from pathlib import Path

import pytest
from fakes import completed, provenance, record, trial

from bench.capacity import Cluster, Machine
from bench.launch import Running
from bench.lock import FolderLock, is_alive, read_holder
from bench.outbox import new_attempt, open_attempt, write_report
from bench.record import RankReport
from bench.recover import recover
from bench.report.figures.fonts import VARIABLE, fonts_folder
from bench.status import StatusBoard
from bench.store import Store


@pytest.mark.parametrize("days", [-400, -1, 1, 400])
def test_durations_do_not_follow_a_clock_that_is_set(
    days: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, other = trial(cpus_per_rank=1), trial(seed=1, cpus_per_rank=1)
    need = Cluster([Machine(1, 0)]).need(spec)
    board = StatusBoard(tmp_path, "demo")
    board.begin_round([], 2)
    attempt = new_attempt(spec, "demo", "fake", [])
    run = Running(attempt, tmp_path, need, [])
    board.started(attempt)
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + days * 86_400)
    assert 0 <= run.seconds < 60
    board.started(new_attempt(other, "demo", "fake", []))
    board.committed(record(spec, completed()))
    now = board.now()
    assert 0 <= now.updated_at - now.started_at < 60
    assert 0 <= now.updated_at - now.running[0].started_at < 60
    left = board.remaining_seconds()
    assert left is not None
    assert 0 <= left < 60


def test_an_attempt_that_ended_before_it_began_took_no_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = trial()
    attempt = new_attempt(spec, "demo", "fake", [])
    store.log("started", trial_id=spec.trial_id, attempt=attempt.attempt.attempt_id, number=1)
    folder = open_attempt(store.outbox, attempt)
    monkeypatch.setattr(time, "time", lambda: attempt.started_at - 3600)
    write_report(folder, 0, RankReport(outcome=completed(), provenance=provenance()), [])
    (found,) = recover(store).committed
    assert found.total_seconds == 0


def test_where_there_are_no_locks_nobody_says_that_a_driver_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".lock"
    lock = FolderLock(path)
    lock.acquire()
    holder = read_holder(path)
    assert holder is not None
    assert is_alive(holder, path) is True

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert is_alive(holder, path) is None
    lock.release()


def test_a_home_that_takes_no_files_leaves_no_folder_of_fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("a file")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in (VARIABLE, "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "matplotlib", raising=False)
    with fonts_folder():
        assert Path(os.environ[VARIABLE]).is_dir()
    assert VARIABLE not in os.environ
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "good")
    with fonts_folder():
        assert VARIABLE not in os.environ, "the user's own list of fonts is used"
