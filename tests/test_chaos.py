"""The short form of ``make chaos``: some of its faults, once each; chaos.ground says what each of them must leave."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from chaos import light_faults as light
from chaos.ground import Verdict

from bench.crash_points import CrashPoint

POINTS: list[CrashPoint] = [
    "rank.after_report",
    "commit.before_files",
    "commit.before_rename",
    "commit.after_rename",
    "commit.after_outbox",
    "lost.before_record",
]


@pytest.mark.parametrize("point", POINTS)
def test_a_driver_killed_at_a_named_point_loses_and_repeats_nothing(point: CrashPoint, tmp_path: Path) -> None:
    verdict = light.driver_killed_at(point, tmp_path, times=1)
    assert verdict.good, verdict


@pytest.mark.parametrize(
    "fault",
    [
        light.rank_killed,
        light.rank_stopped,
        light.outbox_removed,
        light.asked_to_end,
        light.disk_full,
        light.records_damaged,
        light.two_drivers,
    ],
    ids=lambda fault: fault.__name__,
)
def test_a_fault_loses_and_repeats_nothing(fault: Callable[[Path], Verdict], tmp_path: Path) -> None:
    verdict = fault(tmp_path)
    assert verdict.good, verdict


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", ["actor_killed", "node_removed", "only_node_lost", "head_lost", "nodes_come_and_go"])
def test_nodes_and_actors_of_a_cluster_die(fault: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "chaos", fault],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ctrl_c_once_finishes_and_twice_stops(tmp_path: Path) -> None:
    verdict = light.stopped_by_people(tmp_path)
    assert verdict.good, verdict
