"""``python -m chaos``: all faults, a table, and exit code 1 if anything was lost, duplicated or left behind."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.crash_points import CRASH_POINTS
from chaos import light_faults as light
from chaos import ray_faults as ray
from chaos.ground import Verdict

Fault = Callable[[Path], Verdict]


def faults() -> Iterator[tuple[str, Fault]]:
    """All of them, quick ones first."""
    for point in CRASH_POINTS:
        if point == "rank.after_checkpoint":
            continue  # These trials train nothing; test_checkpoints.py kills ranks there.
        yield point, partial(light.driver_killed_at, point)
    seed = int(time.time())
    for name, trials, times in (("fake", 500, 10), ("real", 40, 4)):
        killed = partial(light.driver_killed_at_random, trials=trials, times=times, seed=seed, fake=name == "fake")
        yield f"driver_killed_at_random_{name}", killed
    for fault in (
        light.rank_killed,
        light.rank_stopped,
        light.keeper_killed,
        light.outbox_removed,
        light.asked_to_end,
        light.disk_full,
        light.records_damaged,
        light.two_drivers,
        light.stopped_by_people,
    ):
        yield fault.__name__, fault
    for on_nodes in (
        ray.actor_killed,
        ray.node_removed,
        ray.only_node_lost,
        ray.head_lost,
        ray.nodes_come_and_go,
    ):
        yield on_nodes.__name__, on_nodes


def main() -> int:
    console = Console(width=120)
    wanted = sys.argv[1:]
    table = Table(title="chaos: what was done to sweeps, and what became of their trials")
    table.add_column("fault")
    for heading in ("injected", "trials", "committed", "lost", "duplicated", "orphans", "left in TMPDIR", "seconds"):
        table.add_column(heading, justify="right")
    bad = []
    for name, fault in faults():
        if wanted and not any(part in name for part in wanted):
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="tuneoff-chaos-") as folder:
            verdict = fault(Path(folder))
        counts = (
            verdict.injected,
            verdict.trials,
            verdict.committed,
            verdict.lost,
            verdict.duplicated,
            verdict.orphans,
            verdict.left,
        )
        console.print(f"{name}: {'well' if verdict.good else verdict}", style="dim", highlight=False, markup=False)
        table.add_row(verdict.fault, *map(str, counts), f"{time.monotonic() - started:.0f}")
        if not verdict.good:
            bad.append(verdict)
    console.print(table)
    for verdict in bad:
        console.print(f"{verdict.fault}: {verdict}", style="red", markup=False)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
