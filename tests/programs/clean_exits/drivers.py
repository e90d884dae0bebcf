"""Drivers that run for a while and then end, several at a time, so that all of them are short of a processor."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from chaos.ground import PROGRAMS, PYTHON_PATH, wait_until
from chaos.ray_faults import free_port, started_head
from command import processes_with
from tiny_sweep import write_tiny_sweep

# A driver that takes longer hangs.
PATIENCE_SECONDS = 400.0
# What is left of it then will stay.
LEAVE_SECONDS = 60.0
STOPPED = 130
LIGHT_DRIVER = [sys.executable, str(PROGRAMS / "chaos" / "light_driver.py")]


@dataclass(frozen=True)
class Kind:
    """A way to run a driver."""

    name: str
    share: int  # of how many exits, in hundredths
    stopped: bool = False  # by SIGTERM, when its trials run


KINDS = (
    Kind("joined cluster, all trials done", 45),
    Kind("joined cluster, SIGTERM", 25, stopped=True),
    Kind("embedded cluster, all trials done", 12),
    Kind("embedded cluster, SIGTERM", 8, stopped=True),
    Kind("tuneoff run, embedded cluster, all trials done", 6),
    Kind("tuneoff run, embedded cluster, SIGTERM", 4, stopped=True),
)


@dataclass(frozen=True)
class Exit:
    """How one driver ended."""

    kind: str
    code: int | None  # negative: the signal that killed it; None: it did not end
    wanted: int
    ran_seconds: float
    left_processes: int
    left_files: int
    errors: str


def exits(first: int, count: int, at_once: int, say: Callable[[str], None]) -> Iterator[Exit]:
    """Run so many drivers of the plan from this one on, so many at a time."""
    with tempfile.TemporaryDirectory(prefix="ce-", dir="/tmp") as name:
        folder, port = Path(name), free_port()
        (folder / "sweep").mkdir()
        sweep = write_tiny_sweep(
            folder / "sweep",
            "sweep",
            train={"steps": 4, "batch_size": 4, "learning_rate": 1e-3},
            resources={"cpus_per_rank": 1, "device": "cpu"},
            methods=["full", "none"],
        )
        kinds = planned(first + count)[first:]
        with started_head(folder / "r", port, cores=at_once), ThreadPoolExecutor(at_once) as pool:
            jobs = [
                pool.submit(_exit, kind, folder / f"{number:03}", sweep, f"127.0.0.1:{port}")
                for number, kind in enumerate(kinds)
            ]
            for number, job in enumerate(jobs, start=1):
                found = job.result()
                if number % 10 == 0 or found.code != found.wanted:
                    say(f"{number} of {count}: {found.kind}: exit code {found.code}, {found.ran_seconds:.0f} s")
                yield found


def planned(count: int) -> list[Kind]:
    """Kinds by their shares, mixed, so that those that take long are spread over the time."""
    weighted = [kind for kind in KINDS for _ in range(kind.share)]
    step = 37  # which has no factor in common with 100
    return [weighted[number * step % len(weighted)] for number in range(count)]


def _exit(kind: Kind, folder: Path, sweep: Path, address: str) -> Exit:
    temporary, results, tag = folder / "t", folder / "s", folder.as_posix()
    temporary.mkdir(parents=True)
    environment = {
        **os.environ,
        "PYTHONPATH": PYTHON_PATH,
        "TMPDIR": str(temporary),
        "TUNEOFF_TEST_TAG": f"{tag}.",
        "LIGHT_SECONDS": "30" if kind.stopped else "1.5",
    }
    if kind.name.startswith("tuneoff"):
        # Its clusters keep to themselves.
        environment = {name: value for name, value in environment.items() if name != "RAY_AUTH_MODE"}
        command = [sys.executable, "-m", "bench.cli", "run", str(sweep), "--results", str(results)]
        if kind.stopped:
            command += ["--set", "train.steps=1000000"]
        trials = results / "sweep"
    else:
        command, trials = [*LIGHT_DRIVER, str(results), "3"], results
        environment |= {"LIGHT_EMBEDDED": "1"} if kind.name.startswith("embedded") else {"LIGHT_ADDRESS": address}
    started = time.monotonic()
    driver = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    code: int | None = None
    try:
        if kind.stopped:
            wait_until(lambda: driver.poll() is not None or _trains(trials), "no rank runs", PATIENCE_SECONDS)
            time.sleep(3.0)
            driver.send_signal(signal.SIGTERM)
        _, errors = driver.communicate(timeout=PATIENCE_SECONDS)
        code = driver.returncode
    except (TimeoutError, subprocess.TimeoutExpired):
        driver.kill()
        _, errors = driver.communicate()
    ran = time.monotonic() - started
    deadline = time.monotonic() + LEAVE_SECONDS
    while (processes_with(f"{tag}.") or list(temporary.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.2)
    left = len(processes_with(f"{tag}.")), len(list(temporary.iterdir()))
    shutil.rmtree(folder, ignore_errors=True)
    return Exit(kind.name, code, STOPPED if kind.stopped else 0, ran, *left, errors)


def _trains(trials: Path) -> bool:
    try:
        running = json.loads((trials / "status.json").read_text())["running"]
    except (OSError, ValueError):
        return False
    return any(trial["phase"] == "train" for trial in running)
