"""A copy of a sweep's results wherever fsspec reaches: object storage, another disk, another machine.

The driver works on its own folder, and the copy follows. The files of a trial are copied before its record, so that
every record in the copy is complete. A driver whose folder lacks trials of the copy, on another machine or after the
loss of a disk, fetches them first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.driver.observer import Observer
from bench.schema.record import TrialResult
from bench.schema.validation import ConfigError
from bench.store.records import RECORD_FILE, CorruptRecordError, Store, damaged_files, read_record

# The rows of searches belong to the results, because a search decides only once what is tried and what goes on.
ROWS = "tuning/**/*.json"
REPORT = "report/**/*"


class Mirror(Observer):
    """Keeps the copy of one sweep.

    Args:
        url: Of a folder that holds a folder for each sweep: ``s3://bucket/results``, ``file:///backup``, ...
        store: The results on this machine.
        say: Shows a message.

    Raises:
        ConfigError: There is no such place, or what fsspec needs for it is not installed.
    """

    def __init__(self, url: str, store: Store, say: Callable[[str], None]) -> None:
        import fsspec

        try:
            self._files, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"--mirror {url}: {error}") from error
        self.url = url
        self.store = store
        self._say = say
        self._root = f"{root.rstrip('/')}/{store.root.name}"
        self._copied: set[str] = set()

    def fetch(self) -> list[str]:
        """Commit here the records that only the copy has, and return their ids. A damaged one is named and left there.

        Raises:
            ConfigError: The copy cannot be read.
        """
        try:
            self._fetch_rows()
            return [trial_id for trial_id in self._trials() if not self.store.has(trial_id) and self._fetch(trial_id)]
        except Exception as error:
            raise ConfigError(f"--mirror {self.url} cannot be read: {type(error).__name__}: {error}") from error

    def committed(self, result: TrialResult) -> None:
        """Copy a record. An error is only shown, because it must not fail a trial: :meth:`push` tries again."""
        try:
            self._push_rows()
            self._push(result.trial_id)
        except Exception as error:  # noqa: BLE001 - each kind of storage has errors of its own
            self._say(f"{result.trial_id} is not on the mirror yet: {type(error).__name__}: {error}")

    def push(self) -> str | None:
        """Copy the report and the records that the copy lacks. Returns why that failed; None if it worked."""
        try:
            self._push_rows()
            there = set(self._trials())
            for trial_id in self.store.trial_ids():
                if trial_id not in there:
                    self._push(trial_id)
            for path in sorted(self.store.root.glob(REPORT)):
                if path.is_file():
                    self._put(path)
        except Exception as error:  # noqa: BLE001 - each kind of storage has errors of its own
            return f"{type(error).__name__}: {error}"
        return None

    def _trials(self) -> list[str]:
        """Ids of the trials whose record is in the copy."""
        self._files.invalidate_cache()
        records: list[str] = self._files.glob(f"{self._root}/trials/*/{RECORD_FILE}")
        return sorted(path.split("/")[-2] for path in records)

    def _fetch(self, trial_id: str) -> bool:
        there = f"{self._root}/trials/{trial_id}"
        with tempfile.TemporaryDirectory(dir=self.store.root) as name:
            folder = Path(name)
            self._files.get_file(f"{there}/{RECORD_FILE}", str(folder / RECORD_FILE))
            try:
                names = TrialResult.model_validate_json((folder / RECORD_FILE).read_bytes()).files
                for file in names:
                    self._files.get_file(f"{there}/{Path(file).name}", str(folder / Path(file).name))
                record = read_record(folder / RECORD_FILE)
            except (CorruptRecordError, FileNotFoundError, ValueError) as error:
                self._say(f"{there} is damaged and stays there; its trial runs again: {error}")
                return False
            if damaged := damaged_files(folder, record, list(record.files)):
                self._say(f"{there} is damaged and stays there; its trial runs again: {', '.join(damaged)}")
                return False
            self.store.commit(record, [folder / file for file in record.files])
        return True

    def _push(self, trial_id: str) -> None:
        folder = self.store.trials / trial_id
        for name in read_record(folder / RECORD_FILE).files:
            self._put(folder / name)
        self._put(folder / RECORD_FILE)

    def _fetch_rows(self) -> None:
        for there in self._files.glob(f"{self._root}/{ROWS}"):
            here = self.store.root / there[len(self._root) + 1 :]
            if not here.exists():
                here.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=self.store.root) as name:
                    fetched = Path(name) / here.name  # A row that was fetched in part must not be taken for one.
                    self._files.get_file(there, str(fetched))
                    fetched.replace(here)

    def _push_rows(self) -> None:
        for path in self.store.root.glob(ROWS):
            if str(path) not in self._copied:
                self._put(path)
                self._copied.add(str(path))

    def _put(self, path: Path) -> None:
        there = f"{self._root}/{path.relative_to(self.store.root).as_posix()}"
        self._files.makedirs(there.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(path), there)
