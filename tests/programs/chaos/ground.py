"""A results folder for faults, the processes that work on it, and the judgement of what is left."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from command import processes_with

from bench.driver.status import read_status
from bench.store.journal import Journal
from bench.store.records import Store, damaged_files, read_record
from chaos.traces import Traces

PROGRAMS = Path(__file__).parents[1]
SUPPORT = PROGRAMS.parent / "support"
# What the processes of a scenario import: its own modules, the helpers of the tests, and the harness.
PYTHON_PATH = os.pathsep.join(map(str, (PROGRAMS, SUPPORT, PROGRAMS.parents[1])))
# Long: the machine may have other things to do.
PATIENCE_SECONDS = 300.0
# What is still there then is left behind.
LEAVE_SECONDS = 10.0


@dataclass
class Verdict:
    """The consequences of a fault."""

    fault: str
    injected: int
    trials: int
    committed: int
    lost: int
    duplicated: int
    left_temporary: int  # files and folders in TMPDIR
    left_shared: int  # files in /dev/shm
    left_processes: int
    left_ports: int  # that still listen
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        left = self.left_temporary + self.left_shared + self.left_processes + self.left_ports
        return self.committed == self.trials and not (self.lost or self.duplicated or left or self.notes)


class NotPossibleError(Exception):
    """This system does not allow the fault; the message says why."""


class Ground:
    """Runs drivers on one results folder, and knows every process that they started.

    Args:
        folder: Empty.
        trials: How many trials the sweep has.
        command: Of a driver.
        name: Of the sweep.
    """

    def __init__(self, folder: Path, trials: int, command: list[str] | None = None, name: str = "sweep") -> None:
        self.root = folder / name
        self.temporary = folder / f"t-{name}"  # short: the paths of Ray's sockets have a limit
        self.temporary.mkdir()
        self.trials = trials
        self.command = command or [
            sys.executable,
            str(PROGRAMS / "chaos" / "light_driver.py"),
            str(self.root),
            str(trials),
        ]
        self.tag = uuid.uuid4().hex
        self.variables: dict[str, str] = {}  # of every driver
        self.seen: dict[str, dict[str, bytes]] = {}  # all files of all records
        self.injected = 0
        self.notes: list[str] = []
        self._traces = Traces(self.processes)
        self._gate = folder / f"gate-{name}"

    def hold_ranks(self) -> None:
        """Ranks of drivers that start from now on train until ``release_ranks``, whatever the speed."""
        self._gate.unlink(missing_ok=True)
        self.variables["LIGHT_GATE"] = str(self._gate)

    def release_ranks(self) -> None:
        """Ranks that were held finish, and later ones are not held."""
        self._gate.touch()

    def start(self, **variables: str) -> subprocess.Popen[str]:
        """Start a driver."""
        environment = {**os.environ, "PYTHONPATH": PYTHON_PATH, "TUNEOFF_TEST_TAG": self.tag}
        environment |= self.variables | variables
        environment["TMPDIR"] = str(self.temporary)
        return subprocess.Popen(
            self.command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def finish(self, **variables: str) -> int:
        """Run a driver to its end; returns its exit code."""
        return self.wait(self.start(**variables), (0, 2, 130, -signal.SIGKILL))

    def wait(self, driver: subprocess.Popen[str], codes: tuple[int, ...] = (0,)) -> int:
        """Wait until a driver ends. Its exit code must be one of these."""
        output, errors = driver.communicate(timeout=PATIENCE_SECONDS)
        if driver.returncode not in codes:
            self.notes.append(f"exit code {driver.returncode}: {output}{errors}")
        self.look()
        return driver.returncode

    def kill(self, driver: subprocess.Popen[str]) -> None:
        """Kill a driver with SIGKILL. Nothing that it started may be left."""
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
        """Remember the records that are there, with their files; those seen before must be as they were."""
        records = {
            record.parent.name: {path.name: path.read_bytes() for path in record.parent.iterdir() if path.is_file()}
            for record in self.root.glob("trials/*/result.json")
        }
        for trial_id, content in self.seen.items():
            if records.get(trial_id) != content:
                self.notes.append(f"the committed record of {trial_id} is gone or was changed")
        self.seen = records

    def move(self, root: Path) -> None:
        """Give the results folder another name."""
        self.root = self.root.rename(root)

    def forget(self, trial_id: str) -> None:
        """Forget a record that was damaged on purpose."""
        del self.seen[trial_id]

    def processes(self) -> list[int]:
        """Processes that the drivers have started, directly or not, themselves included."""
        return processes_with(self.tag)

    def ranks(self) -> list[int]:
        """Rank processes that run now: children of keepers that were started for one rank or have adopted it."""
        return [pid for pid in self.processes() if b"--tell-exit" in command_of(_parent(pid))]

    def phases(self) -> list[str]:
        """The phases of the running trials, as the driver last wrote them down."""
        status = read_status(self.root)
        return [] if status is None else [trial.phase for trial in status.running]

    def judge(self, fault: str) -> Verdict:
        """Count what was lost, duplicated or left behind, once the fault is over."""
        processes = _none_left(self.processes)
        ports = _none_left(self._traces.ports)
        self._traces.close()
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
            _none_left(lambda: list(self.temporary.iterdir())),
            _none_left(self._traces.shared_memory),
            processes,
            ports,
            list(self.notes),
        )


def together(fault: str, grounds: Sequence[Ground]) -> Verdict:
    """The consequences of a fault for several sweeps together."""
    verdicts = [ground.judge(fault) for ground in grounds]
    counted = [each.name for each in dataclasses.fields(Verdict) if each.name not in ("fault", "notes")]
    sums = {name: sum(getattr(verdict, name) for verdict in verdicts) for name in counted}
    return Verdict(fault, **sums, notes=[note for verdict in verdicts for note in verdict.notes])


def _none_left(find: Callable[[], int | Sequence[object]]) -> int:
    """How many there still are after a wait, because keepers need a moment to do their work."""
    deadline = time.monotonic() + LEAVE_SECONDS
    while (left := find()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left if isinstance(left, int) else len(left)


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
        time.sleep(0.005)


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
