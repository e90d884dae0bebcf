"""Some faults of ``make chaos``, once each. chaos.ground says what each of them must leave."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from chaos import light_faults as light
from chaos import odd_systems as odd
from chaos.ground import NotPossibleError, Verdict
from chaos.traces import SHARED_MEMORY, Traces

from bench.store.crash_points import CrashPoint

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


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to make the library that is preloaded")
def test_a_clock_that_is_set_loses_and_repeats_nothing(tmp_path: Path) -> None:
    verdict = odd.clock_jumps(tmp_path, trials=6)
    assert verdict.good, verdict


def test_kills_between_commits_are_counted_whatever_the_speed(tmp_path: Path) -> None:
    verdict = light.driver_killed_at_random(tmp_path, trials=30, times=3, seed=0, fake=True)
    assert verdict.good, verdict
    assert verdict.injected == 3


def test_a_semaphore_of_another_program_is_not_ours(tmp_path: Path) -> None:
    traces = Traces(lambda: [])
    traces.close()
    lock = multiprocessing.get_context("spawn").Lock()
    semaphore = f"sem.{lock._semlock.name.lstrip('/')}"
    assert (SHARED_MEMORY / semaphore).exists()
    left = SHARED_MEMORY / f"left-{tmp_path.name}-{os.getpid()}"
    left.touch()
    try:
        found = traces.shared_memory()
    finally:
        left.unlink()
    assert left.name in found
    assert semaphore not in found


def test_what_is_not_possible_is_a_row_and_not_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from chaos import __main__ as program

    def refused(folder: Path) -> Verdict:
        raise NotPossibleError("needs the rights of root")

    monkeypatch.setattr(program, "faults", lambda: iter([("refused", refused)]))
    monkeypatch.setattr(sys, "argv", ["chaos"])
    assert program.main() == 0
    assert capsys.readouterr().out.count("refused: not possible here: needs the rights of root") == 2


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "fault",
    [
        "no_locks",
        "sweep_edited",
        "home_unwritable",
        "ordinary_user",
        "shared_memory_small",
        "actor_killed",
        "node_removed",
        "only_node_lost",
        "second_node_lost",
        "head_lost",
        "head_restarted",
        "two_sweeps",
        "memory_short",
        "nodes_come_and_go",
    ],
)
def test_nodes_heads_systems_and_edits(fault: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "chaos", fault],
        cwd=Path(__file__).parent,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "support"), str(Path(__file__).parent)]
            ),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ctrl_c_once_finishes_and_twice_stops(tmp_path: Path) -> None:
    verdict = light.stopped_by_people(tmp_path)
    assert verdict.good, verdict
