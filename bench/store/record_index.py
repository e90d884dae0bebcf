"""What is known of a sweep's records without opening them: ``<results>/<sweep>/.index``.

The records are the truth; the index is made from them and may be deleted at any time. An entry holds as long as the
record and the files beside it have the size, the time of change and the inode's time of change that they had when they
were read. All other records are read again: new ones, edited ones, those that came from elsewhere, and all of them if
the index is absent or damaged.

The index is one file. The driver that holds the sweep's lock replaces it as a whole, so that readers need no lock. It
is no SQLite, whose locks and shared memory network file systems lack. Imports neither torch nor ray.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bench.schema.record import Failed, TrialResult
from bench.schema.trial import JsonDict, Stage
from bench.store.files import write_atomically

INDEX_FILE = ".index"
# Raise it when entries change, so that an old index is made anew.
VERSION = 1
# A file that was written within this time might change again without a change of its times, because the clock of the
# file system ticks this slowly. If times have no fraction, the clock ticks in seconds, and that of FAT in two.
TICK_SECONDS = 0.1
COARSE_TICK_SECONDS = 2.0

# Name of a file, its size in bytes, its time of change and that of its inode in nanoseconds.
Stamp = tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class Known:
    """What commands need to know of a record without reading it."""

    trial_id: str
    status: str
    stage: Stage
    reason: str | None
    """Why it failed."""
    hub_commits: tuple[tuple[str, str, str], ...]
    """See :func:`bench.schema.record.hub_commits`."""

    @property
    def failed(self) -> bool:
        return self.status == "failed"


_FIELDS = tuple(field.name for field in fields(Known))


@dataclass(frozen=True, slots=True)
class _Entry:
    known: Known
    stamps: tuple[Stamp, ...]
    settled: bool
    """Whether the times of the inodes count. They do not while files still have a second name in the outbox."""


def known_of(record: TrialResult) -> Known:
    """The part of a record that the index keeps."""
    outcome = record.outcome
    reason = outcome.reason if isinstance(outcome, Failed) else None
    return Known(record.trial_id, outcome.status, record.spec.stage, reason, record.hub_commits)


class RecordIndex:
    """The index of one sweep. Its file is read when it is first needed.

    Args:
        path: Its file.
        trials: Folder of the trials.
        record_name: File name of a record in the folder of its trial.
    """

    def __init__(self, path: Path, trials: Path, record_name: str) -> None:
        self.path = path
        self._trials = trials
        self._record_name = record_name
        self._entries: dict[str, _Entry] | None = None
        self._changed = 0

    def known(self, trial_id: str) -> Known | None:
        """The entry of a trial's record; None if the record has to be read, or if there is none."""
        entry = self._loaded().get(trial_id)
        return None if entry is None or not self._is_as_read(trial_id, entry) else entry.known

    def holds(self, trial_id: str) -> tuple[Stamp, ...] | None:
        """The stamps of a record and its files, if none has changed since they were read; else None."""
        entry = self._loaded().get(trial_id)
        settled = None if entry is None else self._settled(entry)
        return None if settled is None or not self._is_as_read(trial_id, settled) else settled.stamps

    def stamps(self, trial_id: str, names: Sequence[str] = ()) -> tuple[Stamp, ...]:
        """The stamps of a record and its files. Take them before reading the files, so that a later change is noticed.

        Raises:
            OSError: One of the files is not there.
        """
        return tuple(_stamp(self._trials / trial_id, name) for name in (self._record_name, *names))

    def add(self, record: TrialResult, stamps: tuple[Stamp, ...], settled: bool = True) -> None:
        """Remember a record that is intact, as are its files.

        Args:
            record: The record.
            stamps: Of the record and its files.
            settled: False for a record that has just been committed, whose files still have other names in the outbox.
        """
        self._loaded()[record.trial_id] = _Entry(known_of(record), stamps, settled)
        self._changed += 1

    def forget(self, trial_id: str) -> None:
        """Remove the entry of a trial whose record is no longer there."""
        self._changed += self._loaded().pop(trial_id, None) is not None

    def keep_only(self, trial_ids: Sequence[str]) -> None:
        """Remove the entries of all other trials, which have no record any more."""
        for trial_id in self._loaded().keys() - set(trial_ids):
            self.forget(trial_id)

    @property
    def is_behind(self) -> bool:
        """Whether so many entries are unsaved that reading their records again would take the next driver long."""
        return self._changed >= max(256, len(self._loaded()) // 4)

    def save(self) -> None:
        """Replace the file if an entry has changed. An error is ignored, because commands work without the index."""
        if not self._changed:
            return
        now = time.time_ns()
        lines = [_line(entry) for entry in map(self._settled, self._loaded().values()) if entry and _is_old(entry, now)]
        body = "".join(lines).encode()
        with contextlib.suppress(OSError):
            write_atomically(self.path, _head(body) + body, "index.before_rename")
            self._changed = 0

    def _loaded(self) -> dict[str, _Entry]:
        if self._entries is None:
            self._entries = {entry.known.trial_id: entry for entry in _read(self.path)}
        return self._entries

    def _is_as_read(self, trial_id: str, entry: _Entry) -> bool:
        folder = self._trials / trial_id
        try:
            return all(_equal(_stamp(folder, stamp[0]), stamp, entry.settled) for stamp in entry.stamps)
        except OSError:
            return False

    def _settled(self, entry: _Entry) -> _Entry | None:
        """The entry with the present times of the inodes; None if a file has changed."""
        if entry.settled:
            return entry
        trial_id = entry.known.trial_id
        if not self._is_as_read(trial_id, entry):
            return None
        return _Entry(entry.known, self.stamps(trial_id, [name for name, *_ in entry.stamps[1:]]), settled=True)


def _stamp(folder: Path, name: str) -> Stamp:
    status = (folder / name).stat()
    return name, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _equal(now: Stamp, then: Stamp, settled: bool) -> bool:
    return now == then if settled else now[:3] == then[:3]


def _is_old(entry: _Entry, now: int) -> bool:
    """Whether the files are so old that a further change would show in their times."""
    return all(now - max(changed, of_inode) > 1e9 * _tick(changed) for _, _, changed, of_inode in entry.stamps)


def _tick(changed: int) -> float:
    return COARSE_TICK_SECONDS if changed % 10**9 == 0 else TICK_SECONDS


def _head(body: bytes) -> bytes:
    return f"{json.dumps({'index': VERSION, 'sha256': hashlib.sha256(body).hexdigest()})}\n".encode()


def _line(entry: _Entry) -> str:
    return json.dumps([*(getattr(entry.known, name) for name in _FIELDS), entry.stamps]) + "\n"


def _read(path: Path) -> Iterator[_Entry]:
    """All entries; none if the file is absent, damaged or of another version."""
    try:
        if path.is_symlink() or not path.is_file():
            return
        head, _, body = path.read_bytes().partition(b"\n")
        if head + b"\n" != _head(body):
            return
        # Most entries share names and commits, which take memory once.
        commits: dict[Any, Any] = {}
        entries = [_entry(json.loads(line), commits) for line in body.splitlines()]
    except (OSError, ValueError, TypeError, RecursionError):
        return
    yield from entries


def _entry(values: list[Any], commits: dict[Any, Any]) -> _Entry:
    *of_known, stamps = values
    content: JsonDict = dict(zip(_FIELDS, of_known, strict=True))
    hub_commits = tuple(map(tuple, content["hub_commits"]))
    content["hub_commits"] = commits.setdefault(hub_commits, hub_commits)
    for name in ("status", "stage"):
        content[name] = sys.intern(content[name])
    made = tuple((sys.intern(name), int(size), int(changed), int(inode)) for name, size, changed, inode in stamps)
    return _Entry(Known(**content), made, settled=True)
