"""The driver's own time and memory for each trial of a long sweep: trials that take no time at all."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from fakes import FakeLauncher, trial

from bench.driver.observer import Observer
from bench.driver.schedule import Schedule
from bench.driver.status import StatusBoard
from bench.launch.capacity import Machine
from bench.schema.record import TrialResult
from bench.store.records import Store
from bench.store.recover import recover

TARGET_SECONDS = 0.020
# "Flat": what grows with the number of trials is their ids.
TARGET_GROWTH_BYTES = 20 * 2**20
PARTS = 10


@dataclass(frozen=True)
class Long:
    """A long sweep."""

    trials: int
    seconds: float
    cpu_seconds: float
    part_seconds: list[float]
    memory_bytes: list[int]
    resume_seconds: float

    @property
    def growth_bytes(self) -> int:
        """From the end of the first part to the end of the last one."""
        return self.memory_bytes[-1] - self.memory_bytes[0]


class Meter(Observer):
    """Reads clock and memory now and then."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.count = 0
        self.times = [time.perf_counter()]
        self.memory: list[int] = []

    def committed(self, result: TrialResult) -> None:
        self.count += 1
        if self.count % self.every == 0:
            self.times.append(time.perf_counter())
            self.memory.append(psutil.Process().memory_info().rss)


def measure(folder: Path, trials: int) -> Long:
    """Run them, and then take the finished sweep up again."""
    store = Store(folder / "long")
    specs = [trial(seed=seed, cpus_per_rank=1) for seed in range(trials)]
    launcher = FakeLauncher(store.outbox, Machine(cpus=4, gpus=0))
    with store.locked():
        meter = Meter(trials // PARTS)
        schedule = Schedule(store, launcher, "long", [StatusBoard(store.root, "long"), meter])
        cpu = time.process_time()
        schedule.run(specs)
        cpu = time.process_time() - cpu
        began = time.perf_counter()
        recover(store)
        left = [spec for spec in specs if not store.has(spec.trial_id)]
        resume_seconds = time.perf_counter() - began
    if left:
        raise RuntimeError(f"{len(left)} trials have no record")
    parts = [end - start for start, end in zip(meter.times[:-1], meter.times[1:], strict=True)]
    return Long(trials, meter.times[-1] - meter.times[0], cpu, parts, meter.memory, resume_seconds)
