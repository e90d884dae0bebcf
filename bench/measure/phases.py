"""Time and memory by phase, and the clock of training steps."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from bench.measure.energy import energy_counter
from bench.schema.record import PhaseCost, RankCost


class Memory:
    """Bytes in use and their peak since the last reset, on the device that trains.

    On a GPU: what torch's allocator handed out on this rank's device. On Linux without a GPU: the resident set of this
    process; its high-water mark is reset at the start of a phase through ``/proc/self/clear_refs``. Elsewhere the
    resident set's peak since the process began, which no interface resets (and the method says so).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            self.method = "cuda_allocated"
        else:
            self.method = "vm_hwm" if self._clear_high_water_mark() else "ru_maxrss_since_start"

    def now(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return self._status_bytes("VmRSS") if self.method == "vm_hwm" else self._process_peak()

    def peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return self._status_bytes("VmHWM") if self.method == "vm_hwm" else self._process_peak()

    def peak_reserved(self) -> int | None:
        return torch.cuda.max_memory_reserved(self.device) if self.device.type == "cuda" else None

    def reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.method == "vm_hwm":
            self._clear_high_water_mark()

    def give_back(self) -> None:
        """Give freed memory back to the system, so that a phase is not charged for memory of an earlier one.

        glibc keeps freed blocks in its heap: after a training they can be as large as the model. Mapping each block by
        itself (``MALLOC_MMAP_THRESHOLD_=65536``) would keep none, and costs a training step a fifth more processor time
        for pages that are faulted in anew (docs/use/plan.md).
        """
        if self.device.type != "cuda" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
            trim(0)

    @staticmethod
    def _clear_high_water_mark() -> bool:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return False
        return True

    @staticmethod
    def _status_bytes(field: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) * 1024
        raise RuntimeError(f"/proc/self/status has no field {field}")

    @staticmethod
    def _process_peak() -> int:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


class PhaseMeter:
    """Time and peak memory by phase of one rank.

    A phase may be entered several times, and from within another (validation inside training): the inner one's time and
    peak are its own.
    """

    def __init__(self, device: torch.device, on_enter: Callable[[str], None] = lambda phase: None) -> None:
        self.memory = Memory(device)
        self.baseline_memory_bytes = self.memory.now()
        self.phases: dict[str, PhaseCost] = {}
        self.current: str | None = None
        self._on_enter = on_enter
        self._entered_at = 0.0
        self._entered_bytes = 0
        self._read_energy = energy_counter(device)
        self._entered_joules: float | None = None

    def branch(self, on_enter: Callable[[str], None]) -> PhaseMeter:
        """A meter for one member of a fused launch. It continues from the measurements that all members share."""
        branch = PhaseMeter(self.memory.device, on_enter)
        branch.baseline_memory_bytes = self.baseline_memory_bytes
        branch.phases = dict(self.phases)
        return branch

    @property
    def seconds(self) -> float:
        """Seconds of all phases so far."""
        return sum(phase.seconds for phase in self.phases.values())

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        outer = self.current
        if outer is not None:
            self._close(outer)
        self._open(name)
        yield  # An exception leaves the phase current, so that the failure can name it.
        self._close(name)
        self.current = None
        if outer is not None:
            self._open(outer)

    def rank_cost(self, rank: int, device: str) -> RankCost:
        """What a rank spent on a device of this name."""
        return RankCost(
            rank=rank,
            device=device,
            phases=self.phases,
            baseline_memory_bytes=self.baseline_memory_bytes,
            memory_method=self.memory.method,
        )

    def _open(self, name: str) -> None:
        self.current = name
        self._on_enter(name)
        gc.collect()
        synchronize(self.memory.device)
        self.memory.give_back()
        self.memory.reset_peak()
        self._entered_bytes = self.memory.now()
        self._entered_joules = self._read_energy()
        self._entered_at = time.perf_counter()

    def _close(self, name: str) -> None:
        synchronize(self.memory.device)
        seconds = time.perf_counter() - self._entered_at
        joules = _difference(self._read_energy(), self._entered_joules)
        before = self.phases.get(name)
        peaks, reserved = [self.memory.peak()], [self.memory.peak_reserved()]
        if before is not None:
            peaks.append(before.peak_memory_bytes)
            reserved.append(before.device_peak_reserved_bytes)
        self.phases[name] = PhaseCost(
            seconds=seconds + (before.seconds if before else 0.0),
            peak_memory_bytes=max(peaks),
            start_memory_bytes=before.start_memory_bytes if before else self._entered_bytes,
            device_peak_reserved_bytes=max((r for r in reserved if r is not None), default=None),
            energy_joules=joules if before is None else _sum(joules, before.energy_joules),
        )


def _difference(now: float | None, then: float | None) -> float | None:
    return None if now is None or then is None else now - then


def _sum(now: float | None, before: float | None) -> float | None:
    """None where a part is not known: the rest of it would look like all."""
    return None if now is None or before is None else now + before


class StepClock:
    """Durations of training steps, from the end of one to the end of the next, without pauses.

    On a GPU the ends are CUDA events, which do not make the host wait.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spans: list[tuple[torch.cuda.Event | float, torch.cuda.Event | float]] = []
        self._last: torch.cuda.Event | float | None = None
        self._seconds: list[float] = []

    def resume(self) -> None:
        """Start, or go on after a pause such as validation, whose time belongs to no step."""
        self._last = self._mark()

    def tick(self) -> None:
        """A step has ended."""
        if self._last is None:
            raise RuntimeError("resume() starts the clock")
        now = self._mark()
        self._spans.append((self._last, now))
        self._last = now

    def durations(self) -> list[float]:
        """Seconds of each step so far. Waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
        self._seconds.extend(_seconds_between(start, end) for start, end in self._spans)
        self._spans.clear()
        return self._seconds

    def _mark(self) -> torch.cuda.Event | float:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _seconds_between(start: torch.cuda.Event | float, end: torch.cuda.Event | float) -> float:
    if isinstance(start, float) or isinstance(end, float):
        return float(end) - float(start)  # type: ignore[arg-type]
    return float(start.elapsed_time(end)) / 1000.0


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that later work is not charged for earlier work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def steady_start(steps: int) -> int:
    """Index of the first steady step. The warm-up is 5 steps or 10 %, whichever is more, but at most half."""
    return min(max(5, steps // 10), steps // 2)


def percentile(values: list[float], fraction: float) -> float | None:
    """A percentile, interpolated linearly; None if there are no values."""
    if not values:
        return None
    ordered = sorted(values)
    place = fraction * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
