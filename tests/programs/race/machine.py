"""The machine that a race runs on: what it is, whether it is quiet, and what it can do at best."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median as _median
from typing import Any

import torch

from bench.measure.provenance import SOURCE_ROOT, collect, cpu_name

PROGRAMS = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "peft", "accelerate", "deepspeed", "ray", "safetensors", "numpy")


def environment(threads: int | None = None) -> dict[str, str]:
    """Environment variables of the processes that a race starts: they find race and harness, and use no hub.

    Args:
        threads: Of their matrix products; None leaves that to them.
    """
    found = {**os.environ, "HF_HUB_OFFLINE": "1"}
    found["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(PROGRAMS), str(PROGRAMS.parent / "support"), str(SOURCE_ROOT), os.environ.get("PYTHONPATH")])
    )
    return found if threads is None else {**found, "OMP_NUM_THREADS": str(threads)}


def median(values: Sequence[float]) -> float:
    """Of at least one value."""
    return float(_median(values))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Turn by turn, how many times faster we were, from rates."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def kind(threads: int) -> str:
    """What numbers have in common that may stand in one table: the processor, and how many threads use it."""
    return f"{cpu_name()}, {threads} threads"


def description(threads: int) -> dict[str, Any]:
    """The machine, as the record of the race describes it."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "load_average_1min": os.getloadavg()[0],
        "versions": {name: version(name) for name in PACKAGES},
        "provenance": collect("cpu", threads).model_dump(mode="json"),
    }


def busy_fraction(seconds: float = 2.0) -> float:
    """Share of the machine's time that other programs use now, while this one sleeps."""
    before = _cpu_times()
    time.sleep(seconds)
    total, idle = (after - earlier for after, earlier in zip(_cpu_times(), before, strict=True))
    return 1.0 - idle / total


def _cpu_times() -> tuple[int, int]:
    with open("/proc/stat", encoding="ascii") as file:  # noqa: PTH123 - a special file
        fields = [int(field) for field in file.readline().split()[1:9]]
    return sum(fields), fields[3] + fields[4]


def ceilings(rows: int = 512, width: int = 576, wide: int = 1536, seconds: float = 1.0) -> dict[str, float]:
    """The best that this machine does: products of matrices, square ones and ones of the model's shape; copies.

    Returns:
        FLOP and bytes (read and written) a second.
    """
    square = [torch.randn(1024, 1024) for _ in range(2)]
    narrow, weight = torch.randn(rows, width), torch.randn(width, wide)
    source, target = torch.randn(2**25), torch.empty(2**25)
    return {
        "square_matmul_flops": 2 * 1024**3 / _best(lambda: square[0] @ square[1], seconds),
        "model_shaped_matmul_flops": 2 * rows * width * wide / _best(lambda: narrow @ weight, seconds),
        "copy_bytes_per_second": 2 * 4 * 2**25 / _best(lambda: target.copy_(source), seconds),
    }


def matmul_curve(rows: Sequence[int], width: int = 576, wide: int = 1536, seconds: float = 0.3) -> dict[int, float]:
    """FLOP a second of a product with a weight of the model's shape, by how many rows go through it at once."""
    weight = torch.randn(width, wide)
    found = {}
    for count in rows:
        narrow = torch.randn(count, width)
        found[count] = 2 * count * width * wide / _best(partial(torch.matmul, narrow, weight), seconds)
    return found


def _best(work: Callable[[], Any], seconds: float) -> float:
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best
