"""Watching and ending sweeps from another terminal, with exit codes; and the live view."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos.ground import Ground, spoil, wait_until
from command import Done
from fakes import completed, record, trial
from rich.console import Console

from bench.driver.display import Display, status_view
from bench.driver.status import StatusBoard, read_status
from bench.launch.launcher import Progress
from bench.schema.record import Failed
from bench.store.outbox import new_attempt

Tuneoff = Callable[..., Done]


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    """A sweep of four trials. Two run at a time, until a test ends them."""
    ground = Ground(tmp_path, trials=4)
    driver = ground.start(LIGHT_SECONDS="600")
    try:
        wait_until(lambda: len(ground.ranks()) == 2, "two ranks run")
        yield ground
    finally:
        driver.kill()
        driver.communicate()
        wait_until(lambda: not ground.processes(), "orphans")


def as_json(done: Done) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def outcomes(ground: Ground) -> dict[str, str]:
    records = [json.loads(path.read_text()) for path in ground.root.glob("trials/*/result.json")]
    return {record["trial_id"]: record["outcome"]["reason"] for record in records}


def test_status_and_cancel_of_a_sweep_that_runs(ground: Ground, tuneoff: Tuneoff) -> None:
    directory = str(ground.root)
    wait_until(lambda: ground.phases() == ["train", "train"], "the status is up to date")
    document = as_json(tuneoff("status", directory, "--json"))
    assert document["driver"]["alive"] is True
    assert document["status"]["total"] == 4
    assert [trial["phase"] for trial in document["status"]["running"]] == ["train", "train"]
    assert document["damaged"] == []
    shown = tuneoff("status", directory)
    assert shown.returncode == 0
    assert f"process {document['driver']['pid']} on {document['driver']['host']} runs this sweep" in shown.stdout
    assert "0 of 4 trials done, 2 wait" in shown.stdout

    first = document["status"]["running"][0]["trial_id"]
    done = tuneoff("cancel", directory, first)
    assert (done.returncode, done.stdout) == (0, "cancelled 1 trial\n"), done.stderr
    wait_until(lambda: outcomes(ground) == {first: "cancelled"}, "the cancelled trial has its record")
    again = tuneoff("cancel", directory, first)
    assert again.returncode == 2
    assert f"{first} has its record already" in again.stderr
    unknown = tuneoff("cancel", directory, "nobody")
    assert unknown.returncode == 2
    assert "nobody neither runs nor waits" in unknown.stderr

    done = tuneoff("cancel", directory)
    assert (done.returncode, done.stdout) == (0, "cancelled 3 trials\n"), done.stderr
    wait_until(lambda: len(outcomes(ground)) == 4, "all trials have records")
    assert set(outcomes(ground).values()) == {"cancelled"}
    wait_until(lambda: not ground.processes(), "the driver ends, and all of its ranks")
    assert tuneoff("status", directory).stdout.startswith("no driver runs this sweep")


def test_status_after_a_crash(ground: Ground, tuneoff: Tuneoff) -> None:
    wait_until(lambda: read_status(ground.root), "there is a status")
    pid = as_json(tuneoff("status", str(ground.root), "--json"))["driver"]["pid"]
    ground.kill_pid(pid)
    wait_until(lambda: not ground.processes(), "orphans")
    shown = tuneoff("status", str(ground.root))
    assert shown.returncode == 0
    assert "ran this sweep and was killed" in shown.stdout
    refused = tuneoff("cancel", str(ground.root))
    assert refused.returncode == 2
    assert "no driver runs this sweep, so there is nothing to cancel" in refused.stderr


def test_status_names_damaged_records_and_exits_with_1(tmp_path: Path, tuneoff: Tuneoff) -> None:
    ground = Ground(tmp_path, trials=2)
    ground.finish()
    assert tuneoff("status", str(ground.root), "--verify").returncode == 0
    torn, changed = sorted(ground.root.glob("trials/*"))
    spoil(torn / "result.json", "truncated")
    (changed / "file-0.txt").write_text("something else")
    quick = tuneoff("status", str(ground.root))
    assert quick.returncode == 1
    assert f"damaged: {torn / 'result.json'} is not a valid record" in quick.stdout
    document = json.loads(tuneoff("status", str(ground.root), "--verify", "--json").stdout)
    assert len(document["damaged"]) == 2
    assert f"{changed / 'file-0.txt'} is not as it was committed" in document["damaged"]


@pytest.mark.parametrize("verb", ["status", "cancel"])
def test_a_folder_without_a_sweep_exits_with_2(verb: str, tmp_path: Path, tuneoff: Tuneoff) -> None:
    done = tuneoff(verb, str(tmp_path))
    assert done.returncode == 2
    assert "nothing of a sweep is here; give the folder of one, e.g. results/quickstart" in done.stderr


def test_the_live_view_shows_phase_step_loss_speed_memory_and_time_left(tmp_path: Path) -> None:
    board = StatusBoard(tmp_path, "demo")
    first, second, third = (new_attempt(trial(seed=seed), "demo", "fake", []) for seed in range(3))
    lost = Failed(reason="worker_lost", phase=None, rank=0, message="gone")
    board.begin_round([], [trial(seed=seed) for seed in range(4)])
    for attempt in (first, second, third):
        board.started(attempt)
    board.lost(third.result(lost, None, 1.0, None), 1.0)
    board.committed(record(third.spec, completed()))
    step = {"step": 3, "steps": 10, "loss": 1.25, "tokens_per_second": 480.0, "remaining_seconds": 7.0}
    for rank, memory in ((0, 2**30), (1, 3 * 2**29)):
        board.progressed(Progress(first.spec.trial_id, rank, {"memory_bytes": memory}))
    board.progressed(Progress(first.spec.trial_id, 0, {"phase": "train"}))
    board.progressed(Progress(first.spec.trial_id, 0, step))
    board.progressed(Progress(second.spec.trial_id, 0, {"phase": "decode"}))
    board.progressed(Progress(second.spec.trial_id, 0, {"decoded": 16, "of": 48}))
    board.ticked(1)
    status = read_status(tmp_path)
    assert status is not None
    assert status == board.now().model_copy(update={"updated_at": status.updated_at})
    text = io.StringIO()
    later = status.model_copy(update={"updated_at": status.started_at + 30})
    Console(file=text, width=150).print(status_view(later, 90.0))
    heading, training, decoding, totals = text.getvalue().splitlines()
    assert heading.split() == ["trial", "phase", "step", "loss", "tokens/s", "left", "memory", "running"]
    assert training.split()[1:9] == ["train", "3/10", "1.250", "480", "7", "s", "1,536", "MiB"]
    assert decoding.split()[1:3] == ["decode", "16/48"]
    assert totals.strip() == "1 of 4 trials done, 1 wait, 1 attempts lost, 30 s, about 90 s left"


def test_without_a_terminal_a_line_of_progress_names_its_numbers(tmp_path: Path) -> None:
    board = StatusBoard(tmp_path, "demo")
    attempt = new_attempt(trial(), "demo", "fake", [])
    board.begin_round([], [trial()])
    step = {"step": 3, "steps": 10, "loss": 1.25, "tokens_per_second": 480.0, "remaining_seconds": 7.0}
    text = io.StringIO()
    with Display(Console(file=text, width=40), board) as display:
        for observer in (board, display):
            observer.started(attempt)
            observer.progressed(Progress(attempt.spec.trial_id, 0, {"phase": "train"}))
            observer.progressed(Progress(attempt.spec.trial_id, 0, step))
    assert text.getvalue().splitlines() == [
        f"start  {attempt.spec.trial_id}",
        f"       {attempt.spec.trial_id}  step 3/10  loss 1.250  480 tokens/s  7 s left",
    ]


@pytest.mark.parametrize(
    ("content", "address", "message"),
    [
        ("env_vars: {A: b}", None, "has no effect without --address"),
        ("[1, 2]", "10.0.0.1:6379", "must be a mapping, e.g. env_vars: {HF_HOME: /data/hub}"),
        ("a: [", "10.0.0.1:6379", "runtime_env.yaml: "),
        ("py_modules: [x]", "10.0.0.1:6379", "py_modules is how our own code travels"),
    ],
)
def test_a_runtime_environment_without_sense_exits_with_2(
    content: str, address: str | None, message: str, tmp_path: Path, tuneoff: Tuneoff
) -> None:
    (tmp_path / "runtime_env.yaml").write_text(content)
    arguments = ["run", str(tmp_path / "sweep.yaml"), "--runtime-env", str(tmp_path / "runtime_env.yaml")]
    done = tuneoff(*arguments, *(["--address", address] if address else []))
    assert done.returncode == 2
    assert message in done.stderr
