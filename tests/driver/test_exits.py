"""The end of a driver: the right exit code whatever its threads do, nothing left behind, and a readable message."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command import Done
from fakes import trial

from bench.launch.capacity import Cluster, Machine
from bench.launch.hosts import rank_environment
from bench.launch.launcher import Ended
from bench.launch.local import LocalLauncher
from bench.launch.rank_host import RankHost
from bench.rank.context import failure_reason
from bench.schema.record import Failed
from bench.store import owned_folder as owned
from bench.store.outbox import new_attempt

ROOT = Path(__file__).resolve().parents[2]

# A thread that never ends and is no daemon, and a function for the end of the interpreter that never returns.
STUBBORN = """
import atexit, sys, threading, time
from bench import cli
threading.Thread(target=time.sleep, args=(1000,)).start()
atexit.register(time.sleep, 1000)
sys.argv = ["tuneoff", *sys.argv[1:]]
cli.main()
"""


def tuneoff_process(*arguments: str, code: str = STUBBORN, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_command_ends_with_its_code_and_all_its_output_whatever_threads_and_exit_functions_do(tmp_path: Path) -> None:
    good = tuneoff_process("tasks")
    assert good.returncode == 0
    assert "facts" in good.stdout
    bad = tuneoff_process("report", str(tmp_path / "nowhere"))
    assert bad.returncode == 2
    assert "no folder 'trials'" in bad.stderr


@pytest.mark.parametrize("why", ["rights", "full"])
def test_what_the_system_refuses_is_one_line(
    why: str, tuneoff: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        number = errno.ENOSPC if why == "full" else errno.EROFS
        raise OSError(number, os.strerror(number), str(tmp_path / "x"))

    (tmp_path / "trials").mkdir()
    monkeypatch.setattr(sys.modules["bench.report.write"], "write_atomically", refuse)
    done = tuneoff("report", str(tmp_path))
    assert done.returncode == 1
    expected = "No space left on device" if why == "full" else "Read-only file system"
    assert done.stderr == f"error: {tmp_path / 'x'}: {expected}. What was finished before is kept\n"


class DeafHost(RankHost):
    """A host whose messages cannot be read."""

    def poll(self, seconds: float) -> list[dict[str, Any]]:
        if not self._ranks:
            time.sleep(0.01)
            return []
        raise ValueError("not what was expected")


def failure_with(launcher: LocalLauncher) -> Failed:
    """How a trial fails on this launcher, which is closed then."""
    try:
        outcome = ended_of(launcher, trial(cpus_per_rank=1)).outcome
    finally:
        launcher.close()
    assert isinstance(outcome, Failed)
    return outcome


def ended_of(launcher: LocalLauncher, spec: Any) -> Ended:
    seats = launcher.reserve(spec)
    assert seats is not None
    launcher.start(new_attempt(spec, "demo", launcher.name, []), seats)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for event in launcher.poll(0.1):
            if isinstance(event, Ended):
                return event
    raise TimeoutError("no end was reported")


def test_a_thread_that_hears_ranks_and_fails_ends_their_trials(tmp_path: Path) -> None:
    outcome = failure_with(LocalLauncher(tmp_path / ".outbox", Machine(2, 0), DeafHost("chaos.light_rank")))
    assert outcome.reason == "worker_lost"
    assert outcome.message == "node local is not heard: ValueError: not what was expected"


def test_an_attempt_whose_folder_vanishes_ends_as_a_fault_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(str(ROOT / "tests" / folder) for folder in ("support", "programs"))
    )
    launcher = LocalLauncher(tmp_path / ".outbox", Machine(2, 0), RankHost("chaos.light_rank"))
    run = launcher._run

    def vanish(running: Any) -> Any:
        try:
            return run(running)
        finally:
            shutil.rmtree(tmp_path / ".outbox")

    monkeypatch.setattr(launcher, "_run", vanish)
    outcome = failure_with(launcher)
    assert outcome.reason == "worker_lost"
    assert outcome.message.startswith("the launcher failed: FileNotFoundError")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOSPC])
def test_storage_that_fails_under_a_rank_is_not_the_trials_fault(number: int) -> None:
    assert failure_reason(OSError(number, os.strerror(number))) == "worker_lost"
    assert failure_reason(OSError(errno.ENOENT, "no such file")) == "error"


def test_machines_that_were_lost_are_remembered() -> None:
    cluster = Cluster([Machine(8, 2, "a")])
    spec = trial(ranks=2, cpus_per_rank=1)
    cluster.update([])
    assert cluster.need(spec).gpus_per_rank == 1, "a trial for GPUs does not become one for CPUs when these are lost"
    assert cluster.shortage(spec) is None
    assert cluster.missing(spec) == "2 ranks need 2 CPU cores and 2 GPUs; there are no machines"
    too_large = trial(ranks=3, cpus_per_rank=1)
    assert str(cluster.shortage(too_large)).startswith("3 ranks need 3 CPU cores and 3 GPUs; there are 8 CPU cores")
    assert cluster.shortage(too_large, [Machine(8, 2, "b")]) is None, "an autoscaler may bring another one"


def test_a_head_without_nodes_says_nothing_of_what_could_run() -> None:
    assert Cluster([Machine(0, 0, "head")]).shortage(trial(ranks=2)) is None


def test_a_trial_gets_the_type_of_gpu_that_it_asks_for() -> None:
    cluster = Cluster([Machine(8, 1, "old", "A100-80G"), Machine(8, 1, "new", "H100")])
    seats = cluster.seat("x", cluster.need(trial(accelerator="H100", cpus_per_rank=1)))
    assert seats is not None
    assert [seat.node_id for seat in seats] == ["new"]
    assert cluster.seat("y", cluster.need(trial(accelerator="H100", cpus_per_rank=1))) is None
    assert "1 GPUs of type B200; there are 1 nodes of 8 CPU cores and 1 GPUs (A100-80G)" in str(
        cluster.shortage(trial(accelerator="B200", cpus_per_rank=1))
    )


@pytest.mark.parametrize(
    ("asked", "label", "fits"),
    [
        ("L4", "NVIDIA L40S", False),
        ("H200", "NVIDIA GH200 480GB", False),
        ("A10", "NVIDIA A100-SXM4-80GB", False),
        ("A100", "A100-80G", True),
        ("A100", "NVIDIA A100-SXM4-80GB", True),
        ("a100-80G", "NVIDIA A100-SXM4-80GB", True),
        ("A100-80G", "NVIDIA A100-SXM4-40GB", False),
        ("RTX 4090", "NVIDIA GeForce RTX 4090", True),
        ("H100", "", False),
        (None, "", True),
    ],
)
def test_types_of_gpus_are_told_apart_by_whole_words(asked: str | None, label: str, fits: bool) -> None:
    assert Machine(8, 1, "a", label).is_of_kind(asked) == fits


def test_a_seat_with_gpus_is_not_used_as_one_without(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.rank.context import select_device

    context: Any = SimpleNamespace(local_rank=0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name, value in rank_environment(2, ["3"]).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OSError, match=r"was given GPU 3 of .* and cannot use it: torch .* sees no GPU there") as raised:
        select_device(trial(), context)
    assert failure_reason(raised.value) == "worker_lost"
    assert select_device(trial(device="cpu"), context).type == "cpu"
    for name, value in rank_environment(2, []).items():
        monkeypatch.setenv(name, value)
    assert select_device(trial(), context).type == "cpu"


def test_folders_of_the_dead_are_removed_and_those_of_the_living_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = owned.owned_folder("x-")
    made = (
        "import sys; from bench.store.owned_folder import owned_folder; print(owned_folder('x-'), flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", made],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    theirs = Path(other.stdout.readline().strip())
    (tmp_path / "x-strange").mkdir()
    owned.owned_folder("x-")
    assert mine.is_dir()
    assert theirs.is_dir()
    other.kill()
    other.communicate()
    owned.owned_folder("x-")
    assert mine.is_dir()
    assert not theirs.exists()
    assert (tmp_path / "x-strange").is_dir(), "nobody knows whose it is"


@pytest.mark.parametrize("name", ["bench", "methods"])
@pytest.mark.parametrize("is_package", [True, False])
def test_packages_of_somebody_else_are_one_line_that_names_both(name: str, is_package: bool, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    if is_package:
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not ours')")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import tuneoff; sys.argv = ['tuneoff', 'tasks']; tuneoff.main()"
    )
    done = tuneoff_process(str(tmp_path), code=code)
    ours = (done.returncode, done.stderr)
    if is_package:  # a folder without a package gives way to a package that comes later
        assert ours[0] == 2
        assert ours[1].startswith(f"error: Python finds another package '{name}' ({tmp_path / name}) before Tuneoff's")
        assert str(ROOT / name) in ours[1]
        assert ours[1].count("\n") == 1
    else:
        assert ours[0] == 0
