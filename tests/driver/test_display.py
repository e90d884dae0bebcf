"""The live display: complete names and ids, no overwritten output, and estimates of remaining time."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import completed, failed, record, trial
from rich.console import Console

from bench.driver.display import Display, duration, status_view
from bench.driver.pace import Course, Later, Pace
from bench.driver.status import RunningTrial, StatusBoard, SweepStatus
from bench.launch.launcher import Progress
from bench.schema.trial import TrialSpec
from bench.store.outbox import new_attempt

LONG = "config.bottleneck_size=225,train.learning_rate=0.0003162277660168379"
STEP = {"step": 3, "steps": 10, "loss": 1.25, "tokens_per_second": 480.0, "remaining_seconds": 7.0}


def seconds_of_methods(spec: TrialSpec) -> float:
    return {"full": 100.0, "lora": 50.0}.get(spec.method.name, 10.0)


def pace(seats: int = 1, whole: str = "") -> Pace:
    return Pace(seconds_of_methods, lambda spec: 1 if spec.method.name == whole else seats)


def ended(method: str, seconds: float, seed: int = 9) -> object:
    return record(trial(method, seed), completed()).model_copy(update={"total_seconds": seconds})


@pytest.mark.parametrize("width", [40, 60, 80, 160])
def test_every_event_is_one_print_with_the_whole_id_on_one_line(width: int, tmp_path: Path) -> None:
    spec = trial("adapters", label=LONG)
    attempt, text = new_attempt(spec, "demo", "fake", []), io.StringIO()
    board = StatusBoard(tmp_path, "demo")
    board.begin_round([], [spec])
    console = Console(file=text, width=width, force_terminal=True, color_system=None)
    prints: list[str] = []
    console.print = lambda *parts, **options: (  # type: ignore[method-assign]
        prints.append(str(parts[0])),
        Console.print(console, *parts, **options),
    )[1]
    display = Display(console, board)
    broken = failed("error").model_copy(update={"message": "no [bold]such[/] file " * 9, "log_tail": "one\ntwo"})
    display.started(attempt)
    display.lost(record(spec, broken), 4.0)
    display.committed(record(spec, broken))
    display.committed(record(spec, completed()))
    assert [line.split()[0] for line in prints] == ["start", "lost", "failed", "done"]
    lines = text.getvalue().splitlines()
    for verb in ("start", "lost", "failed", "done"):
        (line,) = [line for line in lines if line.startswith(verb)]
        assert line.split()[1] == spec.trial_id
    assert "no [bold]such[/] file" in text.getvalue()
    assert lines[-3:-1] == ["         one", "         two"]


@pytest.mark.parametrize("width", [40, 60, 80])
def test_the_view_never_is_wider_or_higher_than_the_terminal(width: int, tmp_path: Path) -> None:
    board = StatusBoard(tmp_path, "demo")
    specs = [trial("adapters", seed, LONG) for seed in range(30)]
    board.begin_round([], specs)
    for spec in specs:
        board.started(new_attempt(spec, "demo", "fake", []))
        board.progressed(Progress(spec.trial_id, 0, {"phase": "train"}))
        board.progressed(Progress(spec.trial_id, 0, {**STEP, "memory_bytes": 2**30}))
    text = io.StringIO()
    console = Console(file=text, width=width, height=24, color_system=None)
    console.print(Display(console, board)._render())
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 23
    assert "0 of 30 trials done" in " ".join(lines)
    assert any(line.startswith("and ") and line.endswith(" more") for line in lines)
    assert all(spec.trial_id[-10:] in text.getvalue() for spec in specs[:5]), "the hash tells ids apart"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_status_shows_whole_ids(width: int) -> None:
    now = time.time()
    spec = trial("adapters", label=LONG)
    running = [RunningTrial(trial_id=spec.trial_id, attempt=1, started_at=now - 30, phase="train", **STEP)]
    status = SweepStatus(
        sweep="demo", total=3, completed=1, failed=0, running=running, started_at=now - 60, updated_at=now
    )
    text = io.StringIO()
    Console(file=text, width=width).print(status_view(status, 3000.0), soft_wrap=True)
    assert any(line.split()[0] == spec.trial_id for line in text.getvalue().splitlines())
    assert "1 of 3 trials done, 1 wait, 60 s, about 50 min left" in text.getvalue()
    assert "step 3/10  loss 1.250  480 tokens/s  7 s left  for 30 s" in text.getvalue() or width == 200


def test_times_are_learned_from_trials_alike_then_of_the_method_then_from_all() -> None:
    learned = pace()
    assert learned.seconds(trial("full")) is None
    learned.learn(ended("full", 200.0))
    assert learned.seconds(trial("full", 3)) == 200.0
    assert learned.seconds(trial("lora")) == 100.0, "expected half of full, which took twice what was expected"
    learned.learn(ended("lora", 60.0))
    assert learned.seconds(trial("lora", 5)) == 60.0
    assert learned.seconds(trial("ia3")) == pytest.approx(10.0 * 260 / 150)
    before = learned.seconds(trial("lora"))
    learned.learn(record(trial("lora"), failed()).model_copy(update={"total_seconds": 1.0}))
    assert learned.seconds(trial("lora")) == before, "a failure says nothing of how long others take"


def test_time_left_counts_what_runs_what_waits_seats_and_later_stages() -> None:
    waiting = [trial("full", seed) for seed in range(4)]
    for seats, expected in ((1, 400.0), (2, 200.0), (3, 200.0), (8, 100.0)):
        learned = pace(seats)
        learned.learn(ended("full", 100.0))
        assert learned.left([], [Later(waiting)]) == expected
    learned = pace(2, whole="lora")
    learned.learn(ended("full", 100.0))
    running = [Course((waiting[0],), 90.0), Course((waiting[1],), 30.0)]
    assert learned.left(running, [Later([])]) == 70.0
    assert learned.left(running, [Later(waiting[2:])]) == 10.0 + 100.0 + 60.0
    cost = [Later([trial("lora", seed)]) for seed in (1, 2)]  # one at a time, on all seats
    assert learned.left(running, [Later(waiting[2:]), *cost]) == 170.0 + 2 * 50.0
    assert learned.left(running, [Later([]), Later(waiting, seconds=33.0)]) == 70.0 + 33.0
    late = Course((waiting[0],), 500.0, least_seconds=40.0)
    assert learned.left_of(late) == 40.0, "what a rank says of its training is the least"
    assert learned.left_of(Course((waiting[0],), 500.0)) == 5.0, "overdue: nearly done"


def test_the_board_says_the_time_left_of_each_trial_and_of_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.driver.status.ESTIMATE_SECONDS", -1.0)
    board = StatusBoard(tmp_path, "demo", pace(seats=2))
    specs = [trial("full", seed) for seed in range(3)]
    board.begin_round([], specs, [Later([trial("lora")])])
    for spec in specs[:2]:
        board.started(new_attempt(spec, "demo", "fake", []))
    assert board.now().remaining_seconds is None
    board.committed(record(specs[0], completed()).model_copy(update={"total_seconds": 10.0}))
    now = board.now()
    assert now.running[0].remaining_seconds == pytest.approx(10.0, abs=0.5)
    assert now.remaining_seconds == pytest.approx(10.0 + 5.0, abs=0.5), "two of full beside each other, then lora"


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "7 s"), (119, "119 s"), (300, "5 min"), (9000, "2.5 h")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


IN_A_TERMINAL = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from fakes import failed, record, trial
from rich.console import Console
from bench.driver.display import Display
from bench.store.outbox import new_attempt
from bench.driver.status import StatusBoard
board = StatusBoard(Path({folder!r}), "demo")
specs = [trial("adapters", seed) for seed in range(2)]
board.begin_round([], specs)
with Display(Console(), board) as display:
    for spec in specs:
        for observer in (board, display):
            observer.started(new_attempt(spec, "demo", "fake", []))
    time.sleep(0.6)
    os.write(2, b"(raylet) lost a \\x1b[31mnode\\x1b[0m\\nand half ")
    os.write(2, b"a line\\n")
    print("from Python", flush=True)
    time.sleep(0.6)
    display.committed(record(specs[0], failed("error")))
    time.sleep(0.3)
    os.write(2, b"last words without an end")
os.write(2, b"after\\n")
"""


def test_nothing_is_drawn_over_in_a_real_terminal(tmp_path: Path) -> None:
    """What a terminal of 80 columns shows in the end: all events and all that others wrote, and nothing of the view."""
    script = IN_A_TERMINAL.format(tests=str(Path(__file__).parents[1] / "support"), folder=str(tmp_path))
    shown = screen(output_in_terminal([sys.executable, "-c", script], 80, 24))
    spec = trial("adapters").trial_id
    other = trial("adapters", 1).trial_id
    wanted = {
        f"start  {spec}",
        f"start  {other}",
        "(raylet) lost a node",
        "and half a line",
        "from Python",
        f"failed {spec}  error: gone",
        "last words without an end",
        "after",
    }
    assert set(shown) == wanted and len(shown) == len(wanted)


def output_in_terminal(command: list[str], columns: int, rows: int) -> str:
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "LINES": str(rows)}
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    text = b""
    while select.select([leader], [], [], 30.0)[0]:
        try:
            chunk = os.read(leader, 65536)
        except OSError:
            break
        text += chunk
    os.close(leader)
    assert process.wait(10) == 0, text.decode(errors="replace")
    return text.decode(errors="replace")


def screen(output: str) -> list[str]:
    """The lines that stand on a terminal after this output; of its sequences those that rich uses."""
    lines, row, column, at = [""], 0, 0, 0
    actions: dict[str, Callable[[int], tuple[int, int]]] = {
        "A": lambda count: (max(0, row - count), column),
        "B": lambda count: (row + count, column),
    }
    while at < len(output):
        character = output[at]
        at += 1
        if character == "\x1b":
            end = at + 1
            while not output[end].isalpha():
                end += 1
            count, letter = output[at + 1 : end], output[end]
            at = end + 1
            if letter in actions:
                row, column = actions[letter](int(count or 1))
            elif letter == "K":
                lines[row] = "" if count == "2" else lines[row][:column]
        elif character == "\r":
            column = 0
        elif character == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        else:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + character + line[column + 1 :]
            column += 1
    return [line.rstrip() for line in lines if line.strip()]


def test_a_download_is_no_cost_of_the_trial_that_made_it_and_is_shown() -> None:
    plain = record(trial("lora"), completed())
    (cost,) = plain.outcome.ranks
    some = next(iter(cost.phases.values()))
    phases = {"download": some.model_copy(update={"seconds": 500.0}), **cost.phases}
    outcome = plain.outcome.model_copy(update={"ranks": [cost.model_copy(update={"phases": phases})]})
    downloaded = plain.model_copy(update={"outcome": outcome, "total_seconds": plain.total_seconds + 500.0})
    assert downloaded.device_seconds == plain.device_seconds
    one, other = pace(), pace()
    one.learn(plain)
    other.learn(downloaded)
    assert one.seconds(plain.spec) == pytest.approx(other.seconds(plain.spec))


def test_a_download_is_shown_with_its_size(tmp_path: Path) -> None:
    spec, text = trial("lora"), io.StringIO()
    board = StatusBoard(tmp_path, "demo")
    board.begin_round([], [spec])
    board.started(new_attempt(spec, "demo", "fake", []))
    display = Display(Console(file=text, width=200, color_system=None), board)
    for data in ({"phase": "download"}, {"downloaded_bytes": 1_500_000_000, "download_bytes": 6_000_000_000}):
        progress = Progress(spec.trial_id, 0, data)
        board.progressed(progress)
        display.progressed(progress)
    assert "1.5/6.0 GB downloaded" in text.getvalue()
    display.console.print(status_view(board.now(), None))
    assert "download  1.5/6.0 GB" in text.getvalue()
