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

from bench.store.crash_points import CRASH_POINTS
from chaos import edits, host_faults
from chaos import light_faults as light
from chaos import odd_systems as odd
from chaos import ray_faults as ray
from chaos.ground import NotPossibleError, Verdict

Fault = Callable[[Path], Verdict]


def faults() -> Iterator[tuple[str, Fault]]:
    """All of them, quick ones first."""
    for point in CRASH_POINTS:
        if point in ("rank.after_step", "rank.within_checkpoint", "rank.after_checkpoint"):
            continue  # These trials train nothing; resume_matrix.py and test_checkpoints.py kill ranks there.
        yield point, partial(light.driver_killed_at, point)
    seed = int(time.time())
    for name, trials, times in (("fake", 1_200, 100), ("real", 60, 12)):
        killed = partial(light.driver_killed_at_random, trials=trials, times=times, seed=seed, fake=name == "fake")
        yield f"driver_killed_at_random_{name}", killed
    for fault in (
        light.rank_killed,
        light.rank_stopped,
        light.ranks_paused,
        light.keeper_killed,
        light.outbox_removed,
        light.asked_to_end,
        light.asked_to_end_at_random,
        light.disk_full,
        light.records_damaged,
        light.two_drivers,
        light.stopped_by_people,
    ):
        yield fault.__name__, fault
    yield edits.sweep_edited.__name__, edits.sweep_edited
    for system in (
        odd.clock_jumps,
        odd.no_locks,
        odd.home_unwritable,
        odd.ordinary_user,
        odd.shared_memory_small,
    ):
        yield system.__name__, system
    for of_hosts in (
        host_faults.hosts_lost,
        host_faults.killed_driver_of_hosts,
        host_faults.driver_of_hosts_asked_to_end,
    ):
        yield of_hosts.__name__, of_hosts
    for on_nodes in (
        ray.actor_killed,
        ray.node_removed,
        ray.only_node_lost,
        ray.second_node_lost,
        ray.head_lost,
        ray.head_restarted,
        ray.two_sweeps,
        ray.memory_short,
        ray.nodes_come_and_go,
    ):
        yield on_nodes.__name__, on_nodes


def main() -> int:
    console = Console(width=160)
    wanted = sys.argv[1:]
    table = Table(title="chaos: what was done to sweeps, what became of their trials, and what was left")
    table.add_column("fault", no_wrap=True)
    left = ("TMPDIR", "/dev/shm", "processes", "ports")
    for heading in ("injected", "trials", "committed", "lost", "duplicated", *left, "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    bad = []
    for name, fault in faults():
        if wanted and not any(part in name for part in wanted):
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="to-", dir="/tmp") as folder:
            try:
                verdict = fault(Path(folder))
            except NotPossibleError as why:
                console.print(f"{name}: not possible here: {why}", style="yellow", highlight=False, markup=False)
                table.add_row(f"{name}: not possible here: {why}", *["-"] * 10)
                continue
        counts = (
            verdict.injected,
            verdict.trials,
            verdict.committed,
            verdict.lost,
            verdict.duplicated,
            verdict.left_temporary,
            verdict.left_shared,
            verdict.left_processes,
            verdict.left_ports,
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
