"""Results on disk: ``<results>/<sweep>/trials/<trial_id>/result.json``, written last and atomically.

Only the driver writes here. That a record exists is what says that its trial is done. Imports neither torch nor ray.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from bench.record import TrialResult
from bench.spec import JsonDict

RECORD_FILE = "result.json"


class StoreError(RuntimeError):
    """The results folder cannot be used as it is."""


class Store:
    """The results of one sweep.

    Args:
        root: ``<results>/<sweep>``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.trials = root / "trials"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other drivers out. The lock goes with the process that holds it, however that ends.

        Raises:
            StoreError: Another driver works on this folder.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                holder = file.read().strip() or "an unknown process"
                raise StoreError(f"{self.root}: {holder} is running this sweep; wait for it, or stop it") from error
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}")
            file.flush()
            yield

    @property
    def scratch(self) -> Path:
        """Folder for files on their way to a record, on the same file system."""
        return self.root / ".outbox"

    def clear_scratch(self) -> None:
        """Delete what no record has taken."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def read(self, trial_id: str) -> TrialResult | None:
        """The record of a trial; None if there is none.

        Raises:
            StoreError: There is a file that is no record.
        """
        path = self.trials / trial_id / RECORD_FILE
        if not path.is_file():
            return None
        return read_record(path)

    def read_all(self) -> list[TrialResult]:
        """All records, in order of their trial ids."""
        return [read_record(path) for path in sorted(self.trials.glob(f"*/{RECORD_FILE}"))]

    def commit(self, result: TrialResult, files: Sequence[Path]) -> TrialResult:
        """Write a trial's files and then its record. What an earlier attempt left in the folder is replaced.

        Returns:
            The record as written, with the hashes of its files.
        """
        folder = self.trials / result.trial_id
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        hashes: dict[str, str] = {}
        for source in files:
            target = _move_compressed(source, folder) if source.suffix == ".jsonl" else _move(source, folder)
            with target.open("rb") as file:
                hashes[target.name] = hashlib.file_digest(file, "sha256").hexdigest()
        result = result.model_copy(update={"files": hashes})
        write_atomically(folder / RECORD_FILE, result.model_dump_json(indent=2) + "\n")
        self.log("committed", trial_id=result.trial_id, status=result.outcome.status)
        return result

    def discard(self, trial_id: str) -> None:
        """Forget a trial's record, so that it runs again."""
        shutil.rmtree(self.trials / trial_id, ignore_errors=True)
        self.log("discarded", trial_id=trial_id)

    def log(self, event: str, **details: object) -> None:
        """Append to the sweep's journal, one JSON object a line."""
        entry: JsonDict = {"time": time.time(), "event": event, **details}
        with (self.root / "journal.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")


def read_record(path: Path) -> TrialResult:
    """A record from its file.

    Raises:
        StoreError: It is torn, or of another schema.
    """
    try:
        return TrialResult.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} is not a valid record; move it away to run its trial again. {error}") from error


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it exists whole or not at all, also after a power cut."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _move(source: Path, folder: Path) -> Path:
    return Path(shutil.move(source, folder / source.name))


def _move_compressed(source: Path, folder: Path) -> Path:
    target = folder / f"{source.name}.gz"
    with source.open("rb") as plain, gzip.GzipFile(target, "wb", mtime=0) as packed:
        shutil.copyfileobj(plain, packed)
    source.unlink()
    return target
