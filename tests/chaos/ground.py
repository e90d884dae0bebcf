"""A results folder to be hurt, the processes around it, and the judgement of what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from command import processes_with

from bench.journal import Journal
from bench.status import read_status
from bench.store import Store, damaged_files, read_record

TESTS = Path(__file__).parents[1]
# Long: the machine may have other things to do.
PATIENCE_SECONDS = 300.0


@dataclass
class Verdict:
    """What came of a fault."""

    fault: str
    injected: int
    trials: int
    committed: int
    lost: int
    duplicated: int
    orphans: int
    left: int  # files and folders in TMPDIR
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.committed == self.trials and not (
            self.lost or self.duplicated or self.orphans or self.left or self.notes
        )


class Ground:
    """Runs drivers on one results folder, and knows every process that they started.

    Args:
        folder: Empty.
        trials: How many trials the sweep has.
        command: Of a driver.
    """

    def __init__(self, folder: Path, trials: int, command: list[str] | None = None) -> None:
        self.root = folder / "sweep"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.trials = trials
        self.command = command or [
            sys.executable,
            str(TESTS / "chaos" / "light_driver.py"),
            str(self.root),
            str(trials),
        ]
        self.tag = uuid.uuid4().hex
        self.seen: dict[str, bytes] = {}
        self.injected = 0
        self.notes: list[str] = []

    def start(self, **variables: str) -> subprocess.Popen[str]:
        """Start a driver."""
        path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        environment = {**os.environ, "PYTHONPATH": path, "TUNEOFF_TEST_TAG": self.tag, **variables}
        environment["TMPDIR"] = str(self.temporary)
        return subprocess.Popen(
            self.command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def finish(self, **variables: str) -> int:
        """Run a driver to its end; returns its exit code."""
        return self.wait(self.start(**variables), (0, 2, 130, -signal.SIGKILL))

    def wait(self, driver: subprocess.Popen[str], codes: tuple[int, ...] = (0,)) -> int:
        """Until a driver ends, with one of these exit codes."""
        output, errors = driver.communicate(timeout=PATIENCE_SECONDS)
        if driver.returncode not in codes:
            self.notes.append(f"exit code {driver.returncode}: {output}{errors}")
        self.look()
        return driver.returncode

    def kill(self, driver: subprocess.Popen[str]) -> None:
        """SIGKILL, and nothing may be left of what it started."""
        driver.kill()
        driver.communicate()
        self.injected += 1
        self.look()

    def kill_pid(self, pid: int) -> None:
        """SIGKILL of one of our own processes."""
        assert pid in self.processes()
        os.kill(pid, signal.SIGKILL)
        self.injected += 1

    def look(self) -> None:
        """Remember the records that are there; those seen before must be as they were."""
        records = {path.parent.name: path.read_bytes() for path in self.root.glob("trials/*/result.json")}
        for trial_id, content in self.seen.items():
            if records.get(trial_id) != content:
                self.notes.append(f"the committed record of {trial_id} is gone or was changed")
        self.seen = records

    def forget(self, trial_id: str) -> None:
        """A record was damaged on purpose."""
        del self.seen[trial_id]

    def processes(self) -> list[int]:
        """Processes that the drivers have started, directly or not, themselves included."""
        return processes_with(self.tag)

    def ranks(self) -> list[int]:
        """Rank processes that run now: children of keepers that were started for one rank or have adopted it."""
        return [pid for pid in self.processes() if b"--tell-exit" in command_of(_parent(pid))]

    def phases(self) -> list[str]:
        """Of the trials that run, as the driver last wrote them down."""
        status = read_status(self.root)
        return [] if status is None else [trial.phase for trial in status.running]

    def judge(self, fault: str) -> Verdict:
        """Count, once everything has been done."""
        orphans = self._orphans()
        store = Store(self.root)
        found, lost = store.trial_ids(), 0
        for trial_id in found:
            folder = store.trials / trial_id
            record = read_record(folder / "result.json")
            if damaged_files(folder, record, list(record.files)):
                self.notes.append(f"{trial_id} has damaged files")
        lost += self.trials - len(found)
        started_after = trained_again(store)
        return Verdict(
            fault,
            self.injected,
            self.trials,
            len(found),
            lost,
            len(started_after),
            len(orphans),
            len(self._left()),
            list(self.notes),
        )

    def _left(self) -> list[Path]:
        """What is in the temporary folder. A keeper needs a moment to remove its own."""
        deadline = time.monotonic() + 10.0
        while (left := list(self.temporary.iterdir())) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def _orphans(self) -> list[int]:
        deadline = time.monotonic() + 10.0
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left


def trained_again(store: Store) -> list[str]:
    """Trials that were started although they had a record, or have two."""
    again: Counter[str] = Counter()
    done: set[str] = set()
    for event in store.journal.events():
        trial_id = event.get("trial_id")
        if event["event"] in ("discarded", "set_aside"):
            done.discard(trial_id)
        elif event["event"] in ("started", "committed") and trial_id in done:
            again[trial_id] += 1
        elif event["event"] == "committed":
            done.add(trial_id)
    return list(again)


def wait_until(condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Poll until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)


def has_come_to(ground: Ground, driver: subprocess.Popen[str], records: int) -> bool:
    """Whether there are so many records, or the driver has ended."""
    return driver.poll() is not None or sum(1 for _ in ground.root.glob("trials/*/result.json")) >= records


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, ValueError):
        return 0


def command_of(pid: int) -> bytes:
    """The command line of a process; of an actor it is Ray's name for it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def journal_events(root: Path, event: str) -> list[dict[str, object]]:
    """Events of one kind."""
    return [entry for entry in Journal(root / "journal.jsonl").events() if entry["event"] == event]


def spoil(path: Path, how: str) -> None:
    """Damage a record."""
    text = path.read_text()
    if how == "truncated":
        path.write_text(text[: len(text) // 2])
    elif how == "changed":
        content = json.loads(text)
        content["total_seconds"] += 1
        path.write_text(json.dumps(content))
    else:
        path.write_bytes(os.urandom(len(text)))
