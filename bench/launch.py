"""What a launcher does: turn a TrialSpec into an outcome on some machine. Imports neither torch nor ray."""

from __future__ import annotations

import queue
import shutil
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bench.record import Failed, Outcome, Provenance, RankReport
from bench.spec import JsonDict, TrialSpec

LOG_TAIL_LINES = 30


@dataclass(frozen=True)
class Machine:
    """What a launcher may use, in total."""

    cpus: int
    gpus: int

    def share(self, spec: TrialSpec) -> Machine:
        """What a trial takes. A rank takes one GPU if it trains there; without GPUs the ranks share all cores."""
        ranks = spec.resources.ranks
        gpus = ranks if spec.resources.device == "cuda" or (spec.resources.device == "auto" and self.gpus) else 0
        return Machine(cpus=self.threads(spec) * ranks, gpus=gpus)

    def threads(self, spec: TrialSpec) -> int:
        """Cores for one rank."""
        if spec.resources.cpus_per_rank is not None:
            return spec.resources.cpus_per_rank
        on_gpu = spec.resources.device != "cpu" and self.gpus > 0
        sharing = max(self.gpus, spec.resources.ranks) if on_gpu else spec.resources.ranks
        return max(1, self.cpus // sharing)

    def shortage(self, spec: TrialSpec) -> str | None:
        """Why a trial can never run here; None if it can."""
        need = self.share(spec)
        if need.cpus <= self.cpus and need.gpus <= self.gpus:
            return None
        return (
            f"{spec.resources.ranks} ranks need {need.cpus} CPU cores and {need.gpus} GPUs; there are {self.cpus} CPU "
            f"cores and {self.gpus} GPUs. Lower resources.ranks or resources.cpus_per_rank"
        )


@dataclass(frozen=True)
class Progress:
    """Where a rank is: a phase has begun, or a step was made."""

    trial_id: str
    rank: int
    data: JsonDict


@dataclass(frozen=True)
class Ended:
    """A trial's processes are gone. ``files`` are on this machine, for the store to take."""

    trial_id: str
    outcome: Outcome
    provenance: Provenance | None
    started_at: float
    seconds: float
    files: Sequence[Path] = ()


@dataclass
class Running:
    """A trial that a launcher has started."""

    spec: TrialSpec
    outbox: Path
    threads: int
    share: Machine
    started_at: float = field(default_factory=time.time)
    stop_reason: Literal["timed_out", "cancelled"] | None = None

    @property
    def trial_id(self) -> str:
        return self.spec.trial_id


class Launcher(ABC):
    """Runs trials, each in a thread of this process that watches the trial's fresh rank processes."""

    name: str

    def __init__(self, machine: Machine, scratch: Path) -> None:
        self.machine = machine
        self.scratch = scratch
        self.running: dict[str, Running] = {}
        self.events: queue.Queue[Progress | Ended] = queue.Queue()

    def has_room(self, spec: TrialSpec) -> bool:
        """Whether a trial fits beside those that run now."""
        need = self.machine.share(spec)
        return (
            need.cpus + sum(run.share.cpus for run in self.running.values()) <= self.machine.cpus
            and need.gpus + sum(run.share.gpus for run in self.running.values()) <= self.machine.gpus
        )

    def start(self, spec: TrialSpec) -> None:
        """Start a trial; its events come through :meth:`poll`."""
        outbox = self.scratch / spec.trial_id
        shutil.rmtree(outbox, ignore_errors=True)
        outbox.mkdir(parents=True)
        run = Running(spec, outbox, self.machine.threads(spec), self.machine.share(spec))
        self.running[run.trial_id] = run
        threading.Thread(target=self._watch, args=(run,), name=run.trial_id, daemon=True).start()

    def poll(self, timeout_seconds: float) -> list[Progress | Ended]:
        """Events since the last call; waits for the first one at most so long."""
        events: list[Progress | Ended] = []
        try:
            events.append(self.events.get(timeout=timeout_seconds))
            while True:
                events.append(self.events.get_nowait())
        except queue.Empty:
            pass
        for event in events:
            if isinstance(event, Ended):
                del self.running[event.trial_id]
        return events

    def stop(self, trial_id: str, reason: Literal["timed_out", "cancelled"]) -> None:
        """Have a running trial end; its Ended event follows."""
        self.running[trial_id].stop_reason = reason

    def report_progress(self, run: Running, rank: int, data: JsonDict) -> None:
        """Pass a rank's progress on to whoever polls."""
        self.events.put(Progress(run.trial_id, rank, data))

    @abstractmethod
    def close(self) -> None:
        """End everything that this launcher started."""

    @abstractmethod
    def _run(self, run: Running) -> tuple[Outcome, Provenance | None]:
        """Run a trial to its end, looking at ``run.stop_reason`` at least every second, and leave no process."""

    def _watch(self, run: Running) -> None:
        provenance: Provenance | None = None
        try:
            outcome, provenance = self._run(run)
        except Exception as error:  # noqa: BLE001 - the driver must hear of it whatever it is
            message = f"the launcher failed: {type(error).__name__}: {error}"
            outcome = Failed(reason="error", phase=None, rank=None, message=message)
        if isinstance(outcome, Failed):
            outcome = outcome.model_copy(update={"log_tail": log_tail(run.outbox, outcome.rank)})
        files = sorted(path for path in run.outbox.iterdir() if path.is_file())
        seconds = time.time() - run.started_at
        self.events.put(Ended(run.trial_id, outcome, provenance, run.started_at, seconds, files))


def merged(reports: Mapping[int, RankReport]) -> tuple[Outcome, Provenance | None]:
    """The trial's outcome: the first failure, or what rank 0 reports."""
    for report in reports.values():
        if isinstance(report.outcome, Failed):
            return report.outcome, report.provenance
    if reports[0].outcome is None:
        raise RuntimeError("rank 0 reported no outcome")
    return reports[0].outcome, reports[0].provenance


def rank_environment(threads: int) -> dict[str, str]:
    """Environment variables of a rank that the launcher sets."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def stopped(run: Running) -> Failed:
    """The outcome of a trial that was made to end."""
    if run.stop_reason == "timed_out":
        message = f"longer than resources.timeout_seconds: {run.spec.resources.timeout_seconds:g}"
        return Failed(reason="timed_out", phase=None, rank=None, message=message)
    return Failed(reason="cancelled", phase=None, rank=None, message="cancelled")


def log_name(rank: int) -> str:
    """File name of a rank's log."""
    return f"rank-{rank}.log"


def log_tail(outbox: Path, rank: int | None) -> str | None:
    """Last lines of the log of a rank (of rank 0, if the failure names none)."""
    path = outbox / log_name(rank or 0)
    if not path.is_file():
        return None
    return "\n".join(path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]) or None
