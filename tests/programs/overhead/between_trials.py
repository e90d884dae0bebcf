"""From the end of one trial to the first step of the next."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tiny_sweep import write_tiny_sweep

from bench.commands.options import read_stages
from bench.driver.schedule import Schedule
from bench.launch.capacity import Machine
from bench.launch.launcher import Launcher
from bench.launch.local import LocalLauncher, this_machine
from bench.launch.rank_host import RankHost
from bench.schema.record import Failed, TrialResult
from bench.schema.trial import TrialSpec
from bench.store.outbox import FinishedRank, report_path
from bench.store.records import Store

TARGET_SECONDS = 3.0


@dataclass(frozen=True)
class Gaps:
    """Seconds between trials that ran one after the other."""

    launcher: str
    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class TimedStore(Store):
    """Knows when the rank of each trial had handed over its report."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.finished_at: list[float] = []

    def commit(self, result: TrialResult, files: Sequence[Path], prefix: str = "") -> TrialResult:
        assert not isinstance(result.outcome, Failed), f"{result.trial_id} failed: {result.outcome}"
        report = report_path(files[0].parent, 0).read_text(encoding="utf-8")
        self.finished_at.append(FinishedRank.model_validate_json(report).finished_at)
        return super().commit(result, files, prefix)


def measure(folder: Path, trials: int) -> list[Gaps]:
    """All ways of starting ranks, on a model of a few thousand parameters; one rank that has all cores."""
    specs = _specs(folder, trials)
    machine = this_machine()
    return [
        _gaps("local", folder, specs, lambda outbox: LocalLauncher(outbox, machine)),
        _gaps("ray", folder, specs, _ray),
        _gaps("local, imports in every rank", folder, specs[:3], lambda outbox: _cold(outbox, machine)),
    ]


def _ray(outbox: Path) -> Launcher:
    from bench.launch.embedded_cluster import EmbeddedCluster

    cluster = EmbeddedCluster()
    from bench.launch.ray_cluster import RayLauncher

    return RayLauncher(outbox, cluster)


def _cold(outbox: Path, machine: Machine) -> Launcher:
    return LocalLauncher(outbox, machine, RankHost("bench.rank.process"))


def _gaps(name: str, folder: Path, specs: Sequence[TrialSpec], launch: Callable[[Path], Launcher]) -> Gaps:
    """One after the other; the first trial, before which everything has to be imported, starts no gap."""
    root = folder / name.replace(" ", "-")
    marks = root / "marks"
    marks.mkdir(parents=True)
    os.environ["OVERHEAD_MARKS"] = str(marks)
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    store = TimedStore(root)
    launcher = launch(store.outbox)
    try:
        launcher.warm(specs[0])
        Schedule(store, launcher, "overhead").run(specs)
    finally:
        launcher.close()
    first_steps = sorted(float(path.read_text()) for path in marks.iterdir())
    pairs = zip(store.finished_at[:-1], first_steps[1:], strict=True)
    return Gaps(name, [first_step - finished for finished, first_step in pairs])


def _specs(folder: Path, trials: int) -> list[TrialSpec]:
    path = write_tiny_sweep(
        folder,
        "overhead",
        train={"steps": 6, "batch_size": 4, "learning_rate": 1e-3},
        resources={"device": "cpu"},
        seeds=list(range(trials)),
        methods=["overhead.marking:Marking"],
    )
    _, stages = read_stages(path, None)
    return stages.plain
