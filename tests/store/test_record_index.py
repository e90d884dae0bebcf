"""The index beside the records saves reading them, and never overrides them."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import completed, failed, record, trial
from rich.console import Console

from bench.driver.rounds import RoundRunner
from bench.driver.stages import Round
from bench.launch.local import LocalOptions
from bench.store import record_index
from bench.store.crash_points import CrashPoint
from bench.store.record_index import INDEX_FILE
from bench.store.records import RECORD_FILE, Store
from bench.store.recover import recover

SPECS = tuple(trial(seed=seed) for seed in range(4))
_opened: Counter[str] | None = None


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str | os.PathLike):
        path = Path(arguments[0])
        if path.name == RECORD_FILE:
            _opened[path.parent.name] += 1


@contextmanager
def opened() -> Iterator[Counter[str]]:
    """How often the record of each trial was opened, whoever did it."""
    global _opened
    if _opened is None:
        sys.addaudithook(_hear)
    _opened = Counter()
    yield _opened
    _opened = Counter()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four finished trials, one of them failed, which the index holds."""
    monkeypatch.setattr(record_index, "TICK_SECONDS", -1.0)
    files = [tmp_path / "curve.txt"]
    files[0].write_text("1 2 3\n")
    store = Store(tmp_path / "demo")
    with store.locked():
        for spec in SPECS:
            store.commit(record(spec, failed() if spec is SPECS[3] else completed()), files)
    return store.root


def take_up(root: Path) -> tuple[list[str], Counter[str]]:
    """A driver takes the sweep up and finds nothing to run. Returns what it set aside, and what it opened."""
    with opened() as count:
        store = Store(root)
        with store.locked():
            aside = recover(store).set_aside
            runner = RoundRunner(store, "demo", LocalOptions(), Console(), [], retry_failed=False)
            present = [spec for spec in SPECS if store.has(spec.trial_id)]
            runner.tell_moved(SPECS)
            runner.run(Round("final", tuple(present)), "demo")
            assert [known.status for known in runner.found.values()] == [
                "failed" if spec is SPECS[3] else "completed" for spec in present
            ]
        return list(aside), Counter(count)


def test_what_the_index_holds_is_not_opened(root: Path) -> None:
    assert take_up(root) == ([], Counter())


@pytest.mark.parametrize("damage", ["absent", "torn", "changed", "other_version", "no_text", "nested", "a_link"])
def test_without_a_usable_index_each_record_is_opened_once_and_it_is_made_again(root: Path, damage: str) -> None:
    path = root / INDEX_FILE
    whole = path.read_bytes()
    contents = {
        "torn": whole[: len(whole) // 2],
        "changed": whole.replace(b"completed", b"probed"),
        "other_version": whole.replace(b'"index": 1', b'"index": 0'),
        "no_text": b"\xff\x00" * 99,
        "nested": b"[" * 200_000,
    }
    path.unlink()
    if damage in contents:
        path.write_bytes(contents[damage])
    elif damage == "a_link":
        path.symlink_to("/dev/zero")
    assert take_up(root) == ([], Counter({spec.trial_id: 1 for spec in SPECS}))
    assert path.read_bytes() == whole
    assert take_up(root) == ([], Counter())


def test_a_record_that_was_edited_by_hand_is_noticed_whatever_its_size_and_time(root: Path) -> None:
    path = root / "trials" / SPECS[1].trial_id / RECORD_FILE
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"1.6", b"1.5"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    aside, count = take_up(root)
    assert aside == [SPECS[1].trial_id]
    assert count == {SPECS[1].trial_id: 1}


def test_files_beside_a_record_that_are_gone_or_changed_are_noticed(root: Path) -> None:
    (root / "trials" / SPECS[0].trial_id / "curve.txt").unlink()
    changed = root / "trials" / SPECS[2].trial_id / "curve.txt"
    changed.unlink()  # The four have one inode: a commit links what it is given.
    changed.write_text("1 2 4\n")
    assert sorted(take_up(root)[0]) == sorted([SPECS[0].trial_id, SPECS[2].trial_id])


def test_records_that_are_deleted_or_put_there_by_hand_are_noticed(root: Path, tmp_path: Path) -> None:
    gone = root / "trials" / SPECS[0].trial_id
    gone.rename(tmp_path / "elsewhere")
    assert take_up(root)[0] == []
    assert SPECS[0].trial_id not in (root / INDEX_FILE).read_text()
    (tmp_path / "elsewhere").rename(gone)
    assert take_up(root) == ([], Counter({SPECS[0].trial_id: 1}))
    assert take_up(root) == ([], Counter())


def test_a_file_that_might_change_within_the_same_tick_of_the_clock_is_read_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / INDEX_FILE).unlink()
    monkeypatch.setattr(record_index, "TICK_SECONDS", 3600.0)
    take_up(root)
    assert take_up(root)[1] == {spec.trial_id: 1 for spec in SPECS}


POINTS: tuple[CrashPoint, ...] = (
    "commit.before_files",
    "commit.before_rename",
    "commit.after_rename",
    "commit.after_journal",
    "index.before_rename",
)


class CrashError(BaseException):
    """Stands for the kill at a planted point."""


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_between_record_and_index_loses_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, point: CrashPoint
) -> None:
    new = trial(seed=9)
    before = {path.parent.name: path.read_bytes() for path in root.glob("trials/*/result.json")}

    def crash(reached: str) -> None:
        if reached == point:
            raise CrashError

    with monkeypatch.context() as patch:
        for module in ("bench.store.records", "bench.store.files"):
            patch.setattr(f"{module}.reached", crash)
        patch.setattr(record_index.RecordIndex, "is_behind", property(lambda self: True))
        store = Store(root)
        recover(store)
        with pytest.raises(CrashError):
            store.commit(record(new, completed()), [])
    now = {path.parent.name: path.read_bytes() for path in root.glob("trials/*/result.json")}
    assert before.items() <= now.items()
    has_record = point not in ("commit.before_files", "commit.before_rename")
    assert (new.trial_id in now) == has_record
    assert take_up(root) == ([], Counter({new.trial_id: 1} if has_record else {}))
    assert {record.trial_id for record in Store(root).read_all()} == set(now)
    assert take_up(root) == ([], Counter())
