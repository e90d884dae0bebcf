"""One driver at a time has a folder, even where the system's locks do not reach other hosts."""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.store import lock as locks
from bench.store.lock import SILENT_BEATS, FolderLock, Holder, LockError, boot_id, is_alive, read_holder

BEAT = 0.02


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def elsewhere(beat: int = 0) -> Holder:
    return Holder(host="far", pid=77, boot_id="another machine", token="t", beat=beat)


def write(path: Path, holder: Holder) -> None:
    path.write_text(holder.model_dump_json().ljust(300) + "\n")


@pytest.fixture
def counting(path: Path) -> Iterator[None]:
    """A holder on another machine that lives."""
    ended = threading.Event()
    write(path, elsewhere())

    def count() -> None:
        beat = 0
        while not ended.wait(BEAT / 4):
            beat += 1
            temporary = path.with_suffix(".new")
            write(temporary, elsewhere(beat))
            temporary.replace(path)

    thread = threading.Thread(target=count)
    thread.start()
    yield
    ended.set()
    thread.join()


@pytest.fixture(params=[False, True])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Once with locks and once in a file system that has none."""
    if request.param:

        def refuse(*_: object) -> None:
            raise OSError("no locks available")

        monkeypatch.setattr(locks.fcntl, "flock", refuse)
    return bool(request.param)


def until(condition: object, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(BEAT / 10)


def test_a_free_folder_is_taken_at_once_counted_for_and_given_back(path: Path, no_locks: bool) -> None:
    lock = FolderLock(path, BEAT)
    lock.acquire()
    first = read_holder(path)
    assert first is not None
    assert first.boot_id == boot_id()
    until(lambda: (now := read_holder(path)) is not None and now.beat >= first.beat + 3)
    lock.check()
    lock.release()
    assert read_holder(path) is None
    assert path.read_bytes() == b""


def test_a_holder_elsewhere_that_is_silent_is_dead(path: Path, no_locks: bool) -> None:
    write(path, elsewhere())
    lock = FolderLock(path, BEAT)
    begun = time.monotonic()
    lock.acquire()
    assert time.monotonic() - begun >= SILENT_BEATS * BEAT
    lock.check()
    lock.release()


def test_a_holder_elsewhere_that_counts_lives(path: Path, counting: None, no_locks: bool) -> None:
    with pytest.raises(LockError, match="process 77 on far is running this sweep; wait for it, or stop it"):
        FolderLock(path, 25 * BEAT).acquire()  # sees the first count, and gives a busy machine two seconds for it
    holder = read_holder(path)
    assert holder is not None
    assert holder.token == "t"


def test_a_holder_of_this_machine_that_has_lost_its_lock_is_dead(path: Path) -> None:
    write(path, elsewhere().model_copy(update={"boot_id": boot_id()}))
    lock = FolderLock(path, 3600.0)  # nobody waits for a beat
    lock.acquire()
    lock.check()
    lock.release()


def test_who_was_silent_for_too_long_hears_that_another_took_over_and_leaves_its_file_alone(path: Path) -> None:
    lock = FolderLock(path, BEAT)
    lock.acquire()
    write(path, elsewhere(5))
    lock._counting.join(10)
    assert not lock._counting.is_alive(), "it counts no more"
    with pytest.raises(LockError, match="process 77 on far has taken over, because this one was silent"):
        lock.check()
    lock.release()
    assert read_holder(path) == elsewhere(5)


def test_who_loses_a_race_for_a_folder_without_locks_is_refused(
    path: Path, no_locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, elsewhere())
    monkeypatch.setattr(FolderLock, "_write", lambda self: write(path, elsewhere(9)))
    with pytest.raises(LockError, match="process 77 on far is running this sweep"):
        FolderLock(path, BEAT).acquire()


def test_a_file_that_is_being_written_is_read_again_and_one_that_stays_torn_holds_nobody(path: Path) -> None:
    assert read_holder(path) is None
    path.write_text('{"host": "f')
    assert read_holder(path) is None
    reads = 0
    read = Path.read_text

    def finish(self: Path, *arguments: object, **options: object) -> str:
        nonlocal reads
        reads += 1
        if reads == 2:
            write(path, elsewhere())
        return read(self)

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(Path, "read_text", finish)
        assert read_holder(path) == elsewhere()
    assert reads == 2


def test_only_its_own_machine_can_tell_whether_a_holder_lives(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = elsewhere().model_copy(update={"boot_id": boot_id()})
    write(path, here)
    assert is_alive(elsewhere(), path) is None
    assert is_alive(here, path) is False
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert is_alive(here, path) is True
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # asking has not kept it

    def refuse(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    assert is_alive(here, path) is None
