"""Stops and times a contender between its steps. Imports neither torch nor the harness: peers would pay for it.

A contender runs in a process of its own. Every few steps it reports and waits until the driver says go, so that the
contenders of a comparison take turns on the same machine.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any


def memory_bytes(field_name: str) -> int:
    """A field of ``/proc/self/status``: VmRSS, VmHWM (its highest since the last reset), RssAnon."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field_name:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"/proc/self/status has no field {field_name}")


@dataclass
class Pacer:
    """Counts and times the optimiser steps of one contender.

    Args:
        bursts: How many steps run without a pause, one number for each burst; the first is warm-up.
        lines: Where the driver's lines come from.
        reports: Where reports go.
    """

    bursts: list[int]
    lines: IO[str]
    reports: IO[str]
    baseline_bytes: int = field(default=0, init=False)
    _seconds: list[float] = field(default_factory=list, init=False)
    _burst: int = field(default=0, init=False)
    _resumed: float = field(default=0.0, init=False)

    @property
    def steps(self) -> int:
        return sum(self.bursts)

    def loaded(self, model: Any) -> None:
        """The model is in memory, the adapter is on it, and nothing has been computed: the baseline of memory."""
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.flatten()[::512].sum()  # Weights that are mapped from the file count as loaded.
        self.baseline_bytes = memory_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        self._resumed = time.perf_counter()

    def tick(self) -> None:
        """An optimiser step has ended."""
        self._seconds.append(time.perf_counter() - self._resumed)
        if self._burst == 0 and len(self._seconds) == 1:
            self.report(first_step_at=time.time())
        if len(self._seconds) == self.bursts[self._burst]:
            self.report(seconds=self._seconds, peak_bytes=memory_bytes("VmHWM"), baseline_bytes=self.baseline_bytes)
            self._seconds = []
            self._burst += 1
            # After the last burst too: what ends a training would take time from the contender whose turn it is.
            if self.lines.readline().strip() != "go":
                sys.exit("the driver is gone")
        self._resumed = time.perf_counter()

    def report(self, **message: Any) -> None:
        """Tell the driver."""
        self.reports.write(json.dumps(message) + "\n")
        self.reports.flush()
