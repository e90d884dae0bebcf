"""What is known of a sweep's records without opening them: ``<results>/<sweep>/.index``.

The records are the truth; the index is made from them and may be deleted at any time. What it says of a record holds as
long as the record and the files beside it are the ones that were read, by size, time of change and time of the inode's
change. Whatever else there is, is read again: records that are new, were edited or came from elsewhere, all of them
where the index is absent or damaged.

One file, which the driver that holds the sweep's lock replaces as a whole; readers need no lock, and a file system
without locks will do. Instead of SQLite, whose locks and shared memory are what network file systems lack. Imports
neither torch nor ray.
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
# Raised when entries come to hold something else, so that an old index is made again.
VERSION = 1
# A file that was written this shortly ago might change again within one tick of the file system's clock, and look the
# same. Where times have no fraction, the clock ticks in seconds, of which FAT counts every second one.
TICK_SECONDS = 0.1
COARSE_TICK_SECONDS = 2.0

# Name of a file, its size in bytes, its time of change and that of its inode, in nanoseconds.
Stamp = tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class Known:
    """What commands need of a record when they do not read it."""

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
    """Whether the times of the inodes count: not while files still have a second name in the outbox."""


def known_of(record: TrialResult) -> Known:
    """What the index keeps of a record."""
    outcome = record.outcome
    reason = outcome.reason if isinstance(outcome, Failed) else None
    return Known(record.trial_id, outcome.status, record.spec.stage, reason, record.hub_commits)


class RecordIndex:
    """The index of one sweep, read when it is first asked.

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
        """What is known of a trial's record; None where it has to be read, or is not there."""
        entry = self._loaded().get(trial_id)
        return None if entry is None or not self._is_as_read(trial_id, entry) else entry.known

    def holds(self, trial_id: str) -> tuple[Stamp, ...] | None:
        """The stamps of a record and its files that are as they were when they were read; None for all others."""
        entry = self._loaded().get(trial_id)
        settled = None if entry is None else self._settled(entry)
        return None if settled is None or not self._is_as_read(trial_id, settled) else settled.stamps

    def stamps(self, trial_id: str, names: Sequence[str] = ()) -> tuple[Stamp, ...]:
        """To be taken before a record and its files are read: what changes after that will be noticed.

        Raises:
            OSError: One of the files is not there.
        """
        return tuple(_stamp(self._trials / trial_id, name) for name in (self._record_name, *names))

    def add(self, record: TrialResult, stamps: tuple[Stamp, ...], settled: bool = True) -> None:
        """Remember a record that was read and whose files were found to be those that were committed.

        Args:
            record: The record.
            stamps: Of the record and its files.
            settled: False for what has just been committed, whose files still have other names elsewhere.
        """
        self._loaded()[record.trial_id] = _Entry(known_of(record), stamps, settled)
        self._changed += 1

    def forget(self, trial_id: str) -> None:
        """Its record is no longer there."""
        self._changed += self._loaded().pop(trial_id, None) is not None

    def keep_only(self, trial_ids: Sequence[str]) -> None:
        """Forget what has no record any more."""
        for trial_id in self._loaded().keys() - set(trial_ids):
            self.forget(trial_id)

    @property
    def is_behind(self) -> bool:
        """Whether so much is new that a driver which died now would leave much to be read again."""
        return self._changed >= max(256, len(self._loaded()) // 4)

    def save(self) -> None:
        """Replace the file, if anything is new. That it cannot be written costs time, and must not end a sweep."""
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
        """The same with the inodes' times of now, if nothing was changed since."""
        if entry.settled:
            return entry
        trial_id = entry.known.trial_id
        if not self._is_as_read(trial_id, entry):
            return None
        return _Entry(entry.known, self.stamps(trial_id, [name for name, *_ in entry.stamps[1:]]), settled=True)


def _stamp(folder: Path, name: str) -> Stamp:
    found = (folder / name).stat()
    return name, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _equal(now: Stamp, then: Stamp, settled: bool) -> bool:
    return now == then if settled else now[:3] == then[:3]


def _is_old(entry: _Entry, now: int) -> bool:
    """Whether a further change of any file would show in its times."""
    return all(now - max(changed, of_inode) > 1e9 * _tick(changed) for _, _, changed, of_inode in entry.stamps)


def _tick(changed: int) -> float:
    return COARSE_TICK_SECONDS if changed % 10**9 == 0 else TICK_SECONDS


def _head(body: bytes) -> bytes:
    return f"{json.dumps({'index': VERSION, 'sha256': hashlib.sha256(body).hexdigest()})}\n".encode()


def _line(entry: _Entry) -> str:
    return json.dumps([*(getattr(entry.known, name) for name in _FIELDS), entry.stamps]) + "\n"


def _read(path: Path) -> Iterator[_Entry]:
    """All entries; none where the file is absent, damaged or of another version."""
    try:
        if path.is_symlink() or not path.is_file():
            return
        head, _, body = path.read_bytes().partition(b"\n")
        if head + b"\n" != _head(body):
            return
        # Most names are the same in all entries, and so are the commits.
        commits: dict[Any, Any] = {}
        entries = [_entry(json.loads(line), commits) for line in body.splitlines()]
    except (OSError, ValueError, TypeError, RecursionError):
        return
    yield from entries


def _entry(values: list[Any], commits: dict[Any, Any]) -> _Entry:
    *of_known, stamps = values
    content: JsonDict = dict(zip(_FIELDS, of_known, strict=True))
    found = tuple(map(tuple, content["hub_commits"]))
    content["hub_commits"] = commits.setdefault(found, found)
    for name in ("status", "stage"):
        content[name] = sys.intern(content[name])
    made = tuple((sys.intern(name), int(size), int(changed), int(inode)) for name, size, changed, inode in stamps)
    return _Entry(Known(**content), made, settled=True)
