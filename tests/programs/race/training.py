"""The training part: contenders take turns, and no time counts before their losses are equal."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.measure.phases import percentile
from race.contender import Job
from race.machine import environment, median

LOSS_TOLERANCES = {"fp32": 1e-5, "bf16": 3e-2}  # bf16 has 8 bits of a number: 2 to 4 differ by 0.008 to 0.016

Row = dict[str, Any]


class GateError(AssertionError):
    """Two contenders do not compute the same, so that their times cannot be compared."""


class Running:
    """A contender's process."""

    def __init__(self, job: Job, process: subprocess.Popen[str], started_at: float) -> None:
        self.job = job
        self.bursts: list[dict[str, Any]] = []
        self._process = process
        first_step = self._read()
        self.first_step_seconds = first_step["first_step_at"] - started_at
        self.bursts.append(self._read())

    def go(self) -> None:
        """Let it run one burst."""
        self._write("go")
        self.bursts.append(self._read())

    def losses(self) -> list[float]:
        """Of all steps, once the last burst of every contender has run."""
        self._write("go")
        losses: list[float] = self._read()["losses"]
        return losses

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.job.name} on {self.job.method} ended with code {self._process.wait()}")
        message: dict[str, Any] = json.loads(line)
        return message


@contextmanager
def start(job: Job, log: Path) -> Iterator[Running]:
    """A contender that has run its warm-up."""
    with log.open("a") as errors:
        started_at = time.time()
        process = subprocess.Popen(
            [sys.executable, "-m", "race.contender"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment(job.threads),
        )
    try:
        assert process.stdin is not None
        process.stdin.write(job.dumps() + "\n")
        process.stdin.flush()
        yield Running(job, process, started_at)
    finally:
        process.terminate()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def race(jobs: Sequence[Job], log: Path) -> list[Row]:
    """Train all jobs, burst by burst in turns (A-B-C-A-B-C), and return a row for each.

    Raises:
        RuntimeError: A contender has failed; its output is in the log.
    """
    tokens = json.loads(Path(jobs[0].batches).read_text())["tokens"]
    with ExitStack() as stack:
        running = [stack.enter_context(start(job, log)) for job in jobs]
        for _ in jobs[0].bursts[1:]:
            for each in running:
                each.go()
        return [_row(each, tokens[each.job.order]) for each in running]


def _row(running: Running, tokens: Sequence[int]) -> Row:
    job, at, rates = running.job, running.job.bursts[0], []
    timed = running.bursts[1:]
    for burst in timed:
        count = len(burst["seconds"])
        rates.append(sum(tokens[at : at + count]) / sum(burst["seconds"]))
        at += count
    steps = [seconds for burst in timed for seconds in burst["seconds"]]
    last = running.bursts[-1]
    return {
        "contender": job.name,
        "method": job.method,
        "order": job.order,
        "precision": job.precision,
        "tokens_per_second": rates,
        "tokens_per_second_median": median(rates),
        "step_seconds_p50": percentile(steps, 0.5),
        "step_seconds_p90": percentile(steps, 0.9),
        "memory_over_baseline_bytes": last["peak_bytes"] - last["baseline_bytes"],
        "baseline_bytes": last["baseline_bytes"],
        "first_step_seconds": running.first_step_seconds,
        "losses": running.losses(),
    }


def check_losses(rows: Sequence[Row]) -> list[Row]:
    """The gate: who trained on the same batches has the losses that Tuneoff has on them.

    Returns:
        For every contender that was compared with Tuneoff, the largest difference over all steps.

    Raises:
        GateError: It is over 1e-5, or where one of the two computes in bf16 over 3e-2. Or Tuneoff did not train on the
            batches of a contender, so that nothing says that both compute the same.
    """
    found = []
    for order in dict.fromkeys(row["order"] for row in rows):
        same = [row for row in rows if row["order"] == order]
        first = next((row for row in same if row["contender"].split()[0] == "tuneoff"), None)
        if first is None:
            names = ", ".join(row["contender"] for row in same)
            raise GateError(f"{same[0]['method']}: no losses of tuneoff for the batches of {names} ({order})")
        for row in (row for row in same if row is not first):
            difference = max(abs(a - b) for a, b in zip(first["losses"], row["losses"], strict=True))
            found.append(
                {
                    "method": row["method"],
                    "order": order,
                    "contenders": [first["contender"], row["contender"]],
                    "steps": len(row["losses"]),
                    "largest_difference": difference,
                }
            )
            tolerance = max(LOSS_TOLERANCES[each["precision"]] for each in (first, row))
            if not difference <= tolerance:
                raise GateError(
                    f"{row['method']}: {first['contender']} and {row['contender']} differ by {difference:.2g} in the "
                    f"losses of the same batches; allowed are {tolerance:g}"
                )
    return found
