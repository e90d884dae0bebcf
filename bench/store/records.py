"""Results on disk: ``<results>/<sweep>/trials/<trial_id>/result.json``, written last and atomically.

A trial is done when its record exists. Only the driver writes here, and it never changes or deletes a record. Attempts
that were lost, and failures that are run again, are kept under ``attempts/``. A damaged record is set aside, and its
trial runs again. Imports neither torch nor ray.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from bench.schema.digests import sha256_of, sha256_of_json
from bench.schema.record import Failed, Reason, TrialResult
from bench.schema.trial import JsonDict
from bench.store.crash_points import reached
from bench.store.files import created, make_folder, sync_folder, write_atomically
from bench.store.journal import Journal
from bench.store.lock import FolderLock, LockError
from bench.store.outbox import CHECKPOINTS_FOLDER, checkpoints_beside
from bench.store.record_index import INDEX_FILE, Known, RecordIndex, known_of

RECORD_FILE = "result.json"
ATTEMPTS_FOLDER = "attempts"
LOCK_FILE = ".lock"
# Failures of a training that would fail again if it went on from its last checkpoint.
FAILS_AGAIN: tuple[Reason, ...] = ("diverged", "infeasible")


class StoreError(RuntimeError):
    """The results folder cannot be used as it is."""


class StorageError(StoreError):
    """The system refuses to write into the results folder: no room, no rights, or storage that is gone."""


class CorruptRecordError(StoreError):
    """A record is not what was written."""


def _no_folder(path: Path) -> StoreError:
    return StoreError(
        f"{path}: no folder can be made here, because a file or a dangling link is in its place; move that away, or "
        "name another folder with --results"
    )


class Store:
    """The results of one sweep.

    Args:
        root: ``<results>/<sweep>``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.trials = root / "trials"
        self.journal = Journal(root / "journal.jsonl")
        self.index = RecordIndex(root / INDEX_FILE, self.trials, RECORD_FILE)
        self._lock = FolderLock(root / LOCK_FILE)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other drivers out. The lock is gone when the process that holds it ends, even by a crash.

        Raises:
            StoreError: Another driver works on this folder.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise _no_folder(self.root) from error
        for folder in (self.trials, self.outbox, self.root / "report"):
            if os.path.lexists(folder) and not folder.is_dir():
                raise _no_folder(folder)
        try:
            self._lock.acquire()
        except LockError as error:
            raise StoreError(f"{self.root}: {error}") from error
        try:
            yield
        finally:
            self.save_index()
            self._lock.release()

    @property
    def outbox(self) -> Path:
        """Folder of attempts that have no record yet, on the same file system as the records."""
        return self.root / ".outbox"

    def read(self, trial_id: str) -> TrialResult | None:
        """The record of a trial; None if there is none.

        Raises:
            CorruptRecordError: The file is no record, or was changed since it was written.
        """
        path = self.trials / trial_id / RECORD_FILE
        if not path.is_file():
            return None
        return read_record(path)

    def read_all(self) -> list[TrialResult]:
        """All records, in order of their trial ids.

        Raises:
            CorruptRecordError: One of them is damaged.
        """
        return list(self.records())

    def records(self) -> Iterator[TrialResult]:
        """All records, one after the other, in order of their trial ids.

        Raises:
            CorruptRecordError: One of them is damaged. Those that the index holds are not checked again.
        """
        for trial_id in self.trial_ids():
            path = self.trials / trial_id / RECORD_FILE
            yield read_record(path) if self.index.known(trial_id) is None else _read_checked(path)

    def known(self, trial_id: str) -> Known | None:
        """What a driver needs of a trial's record; None if there is none. The record is read if the index lacks it.

        Raises:
            CorruptRecordError: The file is no record, or was changed since it was written.
        """
        if (known := self.index.known(trial_id)) is not None:
            return known
        record = self.read(trial_id)
        return None if record is None else known_of(record)

    def save_index(self) -> None:
        """Write the index, unless another driver has taken over the lock, which the caller holds."""
        with contextlib.suppress(LockError):
            self._lock.check()
            self.index.save()

    def trial_ids(self) -> list[str]:
        """The trials that have a record, in order."""
        if not self.trials.is_dir():
            return []
        return sorted(path.name for path in self.trials.iterdir() if (path / RECORD_FILE).is_file())

    def has(self, trial_id: str) -> bool:
        """Whether a trial has a record."""
        return (self.trials / trial_id / RECORD_FILE).is_file()

    def commit(self, result: TrialResult, files: Sequence[Path], prefix: str = "") -> TrialResult:
        """Write a trial's files and then its record. Files that a crashed commit left in the folder are replaced.

        Args:
            result: The record.
            files: They stay where they are, so that a commit that a crash has cut short can be made again.
            prefix: Of the names of some files; the store leaves it out.

        Returns:
            The record as written, with the hashes of its files. If this attempt has its record already, that one.

        Raises:
            StoreError: There is a record of another attempt, which stays.
            StorageError: It cannot be written, say because the disk is full.
        """
        present = self.read(result.trial_id)
        if present is not None:
            if present.attempt.attempt_id == result.attempt.attempt_id:
                return present
            raise StoreError(f"{result.trial_id} has a record of another attempt, which stays")
        try:
            self._lock.check()
        except LockError as error:
            raise StoreError(f"{self.root}: {error}") from error
        reached("commit.before_files")
        try:
            result = self._write(self.trials / result.trial_id, result, files, prefix)
        except OSError as error:
            raise StorageError(
                f"{self.root}: the record of {result.trial_id} cannot be written: {error}. Nothing is lost: "
                "it waits in .outbox, and the same command goes on"
            ) from error
        reached("commit.after_rename")
        self.log("committed", trial_id=result.trial_id, attempt=result.attempt.attempt_id, status=result.outcome.status)
        reached("commit.after_journal")
        self._index(result)
        self.drop_checkpoints(result)
        return result

    def drop_checkpoints(self, result: TrialResult) -> None:
        """Remove the checkpoints of a trial that has its record. Those that were set aside as damaged stay.

        What lies beside them in folders, pickles among it, goes with them. A trial that has failed keeps all, because
        ``--retry-failed`` continues from them; only one that would fail again does not.
        """
        folder = checkpoints_beside(self.outbox, result.trial_id)
        if isinstance(result.outcome, Failed) and result.outcome.reason not in FAILS_AGAIN:
            with contextlib.suppress(OSError):  # There are none, or they stay.
                folder.rmdir()
            return
        with contextlib.suppress(OSError):  # There are none, or a damaged one stays.
            for path in list(folder.iterdir()):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.suffix != ".damaged":
                    path.unlink(missing_ok=True)
            folder.rmdir()
            folder.parent.rmdir()

    def stray_checkpoints(self, trial_ids: Collection[str]) -> list[Path]:
        """Folders with checkpoints, in order of names, that belong to none of these trials."""
        folder = self.outbox.with_name(CHECKPOINTS_FOLDER)
        trials = sorted(folder.iterdir()) if folder.is_dir() else []
        return [path for path in trials if path.name not in trial_ids and path.is_dir() and any(path.iterdir())]

    def keep_lost(self, result: TrialResult, files: Sequence[Path]) -> None:
        """Write the record of a lost attempt. Its trial is not done and will be tried again."""
        reached("lost.before_record")
        folder = self.trials / result.trial_id / ATTEMPTS_FOLDER / result.attempt.attempt_id
        if not (folder / RECORD_FILE).is_file():
            self._write(folder, result, files)
        reached("lost.after_record")
        reason = result.outcome.reason if isinstance(result.outcome, Failed) else None
        self.log("lost", trial_id=result.trial_id, attempt=result.attempt.attempt_id, reason=reason)

    def lost_attempts(self) -> dict[str, list[Reason]]:
        """Why earlier attempts at trials without a record were lost, by trial."""
        lost: dict[str, list[Reason]] = {}
        for event in self.journal.events():
            if event["event"] == "lost":
                lost.setdefault(event["trial_id"], []).append(event["reason"])
            elif event["event"] in ("committed", "discarded", "set_aside"):
                lost.pop(event["trial_id"], None)
        return lost

    def current_attempts(self) -> dict[str, str]:
        """The attempt that was started last, by trial."""
        started = (event for event in self.journal.events() if event["event"] == "started")
        return {event["trial_id"]: event["attempt"] for event in started}

    def command(self) -> str | None:
        """The command that ran the sweep last; None where the journal does not tell, as with old results."""
        commands = [event["command"] for event in self.journal.events() if event["event"] == "run"]
        return commands[-1] if commands else None

    def discard(self, trial_id: str) -> None:
        """Put a trial's record among its attempts, so that it runs again.

        Raises:
            CorruptRecordError: It is damaged.
        """
        folder = self.trials / trial_id
        attempt_id = read_record(folder / RECORD_FILE).attempt.attempt_id
        kept = folder / ATTEMPTS_FOLDER / attempt_id
        make_folder(kept)
        for path in _files_in(folder):
            _link(path, kept / path.name)
        sync_folder(kept)
        (folder / RECORD_FILE).unlink()
        self.index.forget(trial_id)
        sync_folder(folder)
        self.log("discarded", trial_id=trial_id, attempt=attempt_id)

    def set_aside(self, trial_id: str, why: str) -> Path:
        """Move a trial's folder out of the way, so that the trial runs again. Returns where the folder is now."""
        aside = self.root / "set-aside"
        make_folder(aside)
        number = 1 + sum(path.name.startswith(f"{trial_id}.") for path in aside.iterdir())
        target = aside / f"{trial_id}.{number}"
        (self.trials / trial_id).rename(target)
        self.index.forget(trial_id)
        sync_folder(self.trials)
        self.log("set_aside", trial_id=trial_id, why=why, folder=str(target.relative_to(self.root)))
        return target

    def log(self, event: str, **details: object) -> None:
        """Append to the sweep's journal.

        Raises:
            StorageError: It cannot be written.
        """
        try:
            self.journal.append(event, **details)
        except OSError as error:
            raise StorageError(f"{self.journal.path} cannot be written: {error.strerror}") from error

    def _index(self, committed: TrialResult) -> None:
        with contextlib.suppress(OSError):  # The record is then read again next time.
            self.index.add(committed, self.index.stamps(committed.trial_id, list(committed.files)), settled=False)
        if self.index.is_behind:
            self.save_index()

    def _write(self, folder: Path, result: TrialResult, files: Sequence[Path], prefix: str = "") -> TrialResult:
        make_folder(folder)
        for leftover in _files_in(folder):
            leftover.unlink()
        hashes: dict[str, str] = {}
        for number, source in enumerate(files):
            if number:
                reached("commit.between_files")
            target = folder / source.name.removeprefix(prefix)
            target = _packed(source, target) if source.suffix == ".jsonl" else _link(source, target)
            hashes[target.name] = sha256_of(target)
        reached("commit.before_record")
        result = result.model_copy(update={"files": hashes, "content_sha256": None})
        content = result.model_dump(mode="json")
        content["content_sha256"] = content_sha256(content)
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / RECORD_FILE, text, "commit.before_rename")
        return result.model_copy(update={"content_sha256": content["content_sha256"]})


def read_record(path: Path) -> TrialResult:
    """A record from its file.

    Raises:
        CorruptRecordError: It is torn, changed since it was written, or of another schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        record = TrialResult.model_validate(content)
    except (ValueError, ValidationError, RecursionError) as error:
        raise CorruptRecordError(_corrupt(path, str(error))) from error
    if record.content_sha256 is not None and record.content_sha256 != content_sha256(content):
        raise CorruptRecordError(_corrupt(path, "its content has another checksum than when it was written"))
    missing = [name for name in record.files if not (path.parent / name).is_file()]
    if record.content_sha256 is not None and missing:
        raise CorruptRecordError(_corrupt(path, f"its files {', '.join(missing)} are missing"))
    return record


def _read_checked(path: Path) -> TrialResult:
    """A record that was found intact before and has not been touched since."""
    try:
        return TrialResult.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CorruptRecordError(_corrupt(path, str(error))) from error


def damaged_files(folder: Path, record: TrialResult, names: Sequence[str]) -> list[str]:
    """Which of these files of a record are not what was committed."""
    return [name for name in names if sha256_of(folder / name) != record.files[name]]


def content_sha256(content: JsonDict) -> str:
    """Hash of a record's JSON without the field for the hash itself. The layout of the file makes no difference."""
    content = {key: value for key, value in content.items() if key != "content_sha256"}
    return sha256_of_json(content)


def _corrupt(path: Path, why: str) -> str:
    return f"{path} is not a valid record; 'tuneoff run' sets it aside and runs its trial again. {why}"


def _files_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file() or path.is_symlink()]


def _link(source: Path, target: Path) -> Path:
    """Give a file a second name, by a hard link if the file system has them, else by a copy."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    _sync(target)
    return target


def _packed(source: Path, target: Path) -> Path:
    target = target.with_name(f"{target.name}.gz")
    with source.open("rb") as plain, created(target) as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        shutil.copyfileobj(plain, packed)
    _sync(target)
    return target


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
