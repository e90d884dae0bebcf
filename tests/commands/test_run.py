"""The command line on real processes: DeepSpeed ranks, both launchers, resuming, failing, dying."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command import Done, processes_with
from event_files import scalars

from bench.driver.rounds import RoundRunner
from bench.schema.trial import TrialSpec

ROOT = Path(__file__).resolve().parents[2]

SWEEP = """
name: tiny
model: {model}
task: {{name: jsonl, path: {task}}}
train: {{steps: 6, batch_size: 4, learning_rate: 1e-2, evaluate_every_steps: 3}}
decode: {{max_new_tokens: 8, batch_size: 4}}
resources: {{cpus_per_rank: 1}}
methods:
{methods}
"""

THREE = """
  - none
  - full
  - {name: prompt_tuning, config: {num_prompt_tokens: 3}}
  - {name: prefix_tuning, config: {num_prompt_tokens: 3}}
"""


class Bench:
    """Runs ``tuneoff`` in a folder of its own."""

    def __init__(self, folder: Path, model: Path, task: Path) -> None:
        self.folder = folder
        self.model, self.task = model, task
        self.tag = uuid.uuid4().hex
        self.mark = folder / "mark"
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "support"), str(ROOT)]),
            "TUNEOFF_TEST_TAG": self.tag,
            "SLOW_MARK": str(self.mark),
            "SLOW_SECONDS": "2",
            "COLUMNS": "200",
        }

    @property
    def results(self) -> Path:
        return self.folder / "results" / "tiny"

    def command(self, methods: str, *arguments: str, verb: str = "run", sweep: str = SWEEP) -> list[str]:
        path = self.folder / "sweep.yaml"
        path.write_text(sweep.format(model=self.model, task=self.task, methods=methods.strip("\n")))
        where = ["--results", str(self.folder / "results")] if verb == "run" else []
        return [sys.executable, "-m", "bench.cli", verb, str(path), *where, *arguments]

    def arguments(self, methods: str, *arguments: str, verb: str = "run", sweep: str = SWEEP) -> list[str]:
        """For a command that starts no process, so that this one can run it."""
        return self.command(methods, *arguments, verb=verb, sweep=sweep)[3:]

    def run(
        self, methods: str, *arguments: str, verb: str = "run", sweep: str = SWEEP
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(methods, *arguments, verb=verb, sweep=sweep),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    def start(self, methods: str, *arguments: str) -> subprocess.Popen[str]:
        command = self.command(methods, *arguments)
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def table(self) -> pd.DataFrame:
        return pd.read_csv(self.results / "report" / "results.csv")

    def records(self) -> dict[str, Any]:
        found = [json.loads(path.read_text()) for path in self.results.glob("trials/*/result.json")]
        return {record["trial_id"]: record for record in found}

    def left_checkpoints(self) -> Path:
        """The folder of a trial that the sweep no longer has."""
        folder = self.results / ".checkpoints" / "full-s0-0123456789"
        folder.mkdir(parents=True)
        (folder / "step-00000002.safetensors").touch()
        return folder

    def processes(self) -> list[int]:
        """Processes that this bench has started, directly or not."""
        return processes_with(self.tag)


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.fixture
def bench(tmp_path: Path, tiny_models: dict[str, Path], tiny_task: Path) -> Bench:
    return Bench(tmp_path, tiny_models["llama"], tiny_task)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path], tiny_task: Path
) -> tuple[Bench, str]:
    """Where a sweep has run through processes of this machine, beside a tracker that raises; and what it printed."""
    bench = Bench(tmp_path_factory.mktemp("finished"), tiny_models["llama"], tiny_task)
    done = bench.run(THREE, "--launcher", "local", "--tracker", "odd_trackers:CannotLog", "--tracker", "tensorboard")
    assert done.returncode == 0, done.stdout + done.stderr
    return bench, done.stdout


def test_a_sweep_runs_resumes_and_extends(
    finished: tuple[Bench, str],
    tuneoff: Callable[..., Done],
    trials_in_this_process: None,
) -> None:
    bench, _ = finished
    table = bench.table()
    assert set(table["method"]) == {"none", "full", "prompt_tuning", "prefix_tuning"}
    assert (table["status"] == "completed").all()
    trained = table.set_index("method")["trained_parameters"]
    assert trained["none"] == 0
    assert trained["prompt_tuning"] == 3 * 32
    assert trained["prefix_tuning"] == 2 * 3 * 32
    tuned = table[table["method"] != "none"]
    assert tuned[["peak_memory_bytes", "train_tokens_per_second", "train_seconds"]].gt(0).all(axis=None)
    for record in bench.records().values():
        outcome = record["outcome"]
        assert {"load", "patch", "validate", "decode", "score"} <= outcome["ranks"][0]["phases"].keys()
        assert sorted(record["files"]) == sorted(
            ["predictions.jsonl.gz", "rank-0.log"]
            + (["adapter.json", "adapter.safetensors"] if record["spec"]["method"]["name"] != "none" else [])
        )
    before = {path: path.stat().st_mtime_ns for path in bench.results.glob("trials/*/result.json")}
    left = bench.left_checkpoints()
    again = tuneoff(*bench.arguments(THREE, "--launcher", "local"))
    assert again.returncode == 0
    assert again.stdout.startswith(f"{left} has checkpoints of settings that this sweep no longer has")
    assert "4 done, 0 to run" in again.stdout
    adapter = next((bench.results / "trials").glob("prefix_tuning-*"))
    lines = gzip.decompress((adapter / "predictions.jsonl.gz").read_bytes()).decode().splitlines()
    rows = [json.loads(line) for line in lines]
    said = tuneoff("generate", str(adapter), "--json", *(word for row in rows for word in ("--source", row["source"])))
    assert [row["text"] for row in json.loads(said.stdout)] == [row["prediction"] for row in rows], said.stderr
    assert {path: path.stat().st_mtime_ns for path in bench.results.glob("trials/*/result.json")} == before
    more = tuneoff(
        *bench.arguments("  - none", "--launcher", "local", "--set", "seeds=[0, 1]", "--set", "train.steps=9")
    )
    assert "2 trials, 1 done, 1 to run" in more.stdout, "what trains nothing does not run again for other steps"
    assert len(bench.records()) == 5
    assert len(bench.table()) == 2, "of the sweep as it is now"
    assert tuneoff("report", str(bench.results), "--all").returncode == 0
    assert len(bench.table()) == 5
    report = (bench.results / "report" / "report.md").read_text()
    assert "| prefix_tuning |" in report
    assert "not finished" not in report


def test_a_tracker_that_raises_fails_no_trial(finished: tuple[Bench, str]) -> None:
    bench, output = finished
    said = "tracker odd_trackers:CannotLog failed and is off, the trials go on: SystemExit: not logged in"
    assert output.count(said) == 1
    (events,) = (bench.results / "tensorboard").glob("full-*/events*")
    assert {"train/loss", "final/test/bleu"} <= scalars(events).keys()


STAGES = """
  - lora
stages:
  tune: {trials: 1}
  final: {seeds: [0]}
  cost: {steps: 6, repetitions: 1}
"""


def test_stages_run_one_after_the_other_and_once(bench: Bench, tuneoff: Callable[..., Done]) -> None:
    done = tuneoff(*bench.arguments(STAGES, "--launcher", "local", "--set", "train.learning_rate=1e-3"))
    assert done.returncode == 2
    assert "train.learning_rate has no effect: every method searches it; leave it out" in done.stderr
    sweep = SWEEP.replace(", learning_rate: 1e-2", "")
    done = bench.run(STAGES, "--launcher", "local", sweep=sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = [line.split(":")[0] for line in done.stdout.splitlines() if line.startswith("tiny ")]
    assert stages == ["tiny tune", "tiny final", "tiny cost"]
    records = {record["spec"]["stage"]: record for record in bench.records().values()}
    assert records["tune"]["outcome"]["status"] == "probed"
    assert records["tune"]["outcome"]["decode"] is None
    assert records["final"]["spec"]["train"]["learning_rate"] == 0.0005
    assert records["final"]["outcome"]["data"]["test_sources"] == 6
    assert records["cost"]["outcome"]["decode"]["sources"] == records["cost"]["outcome"]["data"]["dev_sources"] == 6
    assert {"train", "decode"} <= records["cost"]["outcome"]["ranks"][0]["phases"].keys()
    for stage, decodes_both_ways in {"tune": False, "final": False, "cost": True}.items():
        outcome = records[stage]["outcome"]
        assert ("compare_merged" in outcome["ranks"][0]["phases"]) == decodes_both_ways
        assert (outcome["merged_decode"] is not None) == decodes_both_ways
        if decodes_both_ways:
            assert outcome["merged_decode"]["equal_texts"] == outcome["merged_decode"]["merged"]["sources"] == 6
    report = (bench.results / "report" / "report.md").read_text()
    assert "## How settings were chosen" in report
    assert "learning_rate=0.0005" in report
    assert "decode time merged, x unmerged" in report
    left = bench.left_checkpoints()
    again = tuneoff(*bench.arguments(STAGES, "--launcher", "local", sweep=sweep))
    assert again.returncode == 0
    assert again.stdout.index(f"{left} has checkpoints") > again.stdout.index("tiny cost"), "all trials are known then"
    assert again.stdout.count("1 trials, 1 done, 0 to run") == 3


def test_an_encoder_decoder_trains_decodes_and_stores_less_than_it_trained(
    tmp_path: Path,
    tiny_models: dict[str, Path],
    tiny_task: Path,
    tuneoff: Callable[..., Done],
    trials_in_this_process: None,
) -> None:
    bench = Bench(tmp_path, tiny_models["t5"], tiny_task)
    prefix = "{num_prompt_tokens: 3, parametrization: mlp, mlp_hidden_size: 8}"
    methods = f"  - {{name: prefix_tuning, config: {prefix}}}\n  - {{name: prompt_tuning, config: {{init: uniform}}}}"
    done = tuneoff(*bench.arguments(methods, "--launcher", "local"))
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = {record["spec"]["method"]["name"]: record["outcome"] for record in bench.records().values()}
    counts = {name: outcome["parameters"] for name, outcome in outcomes.items()}
    # three kinds of attention, two layers each, keys and values of width 24
    assert counts["prefix_tuning"]["stored"] == 3 * 2 * 2 * 3 * 24
    assert counts["prefix_tuning"]["trained"] == 3 * (3 * 24 + (24 + 1) * 8 + (8 + 1) * 2 * 2 * 24)
    assert counts["prompt_tuning"]["stored"] == counts["prompt_tuning"]["trained"] == 20 * 24
    assert all(outcome["decode"]["new_tokens"] > 0 for outcome in outcomes.values())


def test_plan_counts_without_side_effects(bench: Bench, tuneoff: Callable[..., Done]) -> None:
    planned = tuneoff(*bench.arguments(THREE, verb="plan"))
    assert planned.returncode == 0, planned.stderr
    assert "tiny: 4 trials" in planned.stdout
    assert "192" in planned.stdout, "parameters of the prefix"
    assert not bench.results.exists()


def test_two_ranks_through_ray_train_what_one_local_rank_trains_and_a_killed_one_is_noticed(
    bench: Bench, finished: tuple[Bench, str]
) -> None:
    methods = "  - full\n  - odd_methods:Dies\n  - {name: prefix_tuning, config: {num_prompt_tokens: 3}}"
    done = bench.run(methods, "--launcher", "ray", "--set", "resources.ranks=2", "--set", "resources.zero_stage=2")
    assert done.returncode == 1, done.stdout + done.stderr
    assert bench.table().set_index("method").loc["Dies", "reason"] == "worker_lost"
    assert len(bench.records()) == 3
    through_ray, local = (
        {record["spec"]["method"]["name"]: record for record in place.records().values()}
        for place in (bench, finished[0])
    )
    for name in ("full", "prefix_tuning"):
        one, two = local[name], through_ray[name]
        assert (one["launcher"], two["launcher"]) == ("local", "ray")
        curves = [[point["loss"] for point in record["outcome"]["train_curve"]] for record in (one, two)]
        assert curves[0] == pytest.approx(curves[1], abs=1e-4)
        assert one["outcome"]["test_loss"] == pytest.approx(two["outcome"]["test_loss"], abs=1e-3)
        assert len(two["outcome"]["ranks"]) == 2
        assert one["outcome"]["parameters"] == two["outcome"]["parameters"]
        assert "rank-1.log" in two["files"]
    wait_for(lambda: not bench.processes(), 60, "processes are left over")


def test_failures_are_rows_and_the_other_trials_go_on(bench: Bench, tuneoff: Callable[..., Done]) -> None:
    methods = """
  - odd_methods:Raises
  - odd_methods:Allocates
  - odd_methods:Dies
  - {name: full, train: {learning_rate: 1.0e+30, schedule: constant, max_grad_norm: 0}}
  - {name: prompt_tuning, resources: {ranks: 64, cpus_per_rank: 1}, train: {batch_size: 64}}
  - none
"""
    done = bench.run(methods, "--launcher", "local")
    assert done.returncode == 1, done.stdout + done.stderr
    table = bench.table().set_index("method")
    assert table["reason"].to_dict() | {"none": None} == {
        "Raises": "error",
        "Allocates": "out_of_memory",
        "Dies": "worker_lost",
        "full": "diverged",
        "prompt_tuning": "infeasible",
        "none": None,
    }
    assert table.loc["none", "status"] == "completed"
    by_method = {record["spec"]["method"]["name"]: record for record in bench.records().values()}
    raised = by_method["Raises"]["outcome"]
    assert raised["phase"] == "patch"
    assert "the method's own mistake" in raised["message"]
    assert "odd_methods.py" in raised["traceback"]
    assert by_method["Dies"]["attempt"]["number"] == 3, "a lost worker is tried again"
    assert "killed by signal 9" in by_method["Dies"]["outcome"]["message"]
    again = tuneoff(*bench.arguments(methods, "--launcher", "local"))
    assert "6 done, 0 to run" in again.stdout, "a failure is a result"


@pytest.mark.parametrize("launcher", ["local", pytest.param("ray", marks=pytest.mark.full)])
def test_a_killed_driver_leaves_no_orphans_and_the_same_command_goes_on(launcher: str, bench: Bench) -> None:
    methods = "  - none\n  - {name: 'odd_methods:Slow', train: {steps: 60}}"
    driver = bench.start(methods, "--launcher", launcher)
    wait_for(lambda: bench.mark.exists() and len(bench.records()) == 1, 120, "not one trial done and one running")
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_for(lambda: not bench.processes(), 60, "orphans of a killed driver")
    committed = bench.records()
    assert [record["spec"]["method"]["name"] for record in committed.values()] == ["none"]
    bench.environment["SLOW_SECONDS"] = "0"
    done = bench.run(methods, "--launcher", launcher)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 done, 1 to run" in done.stdout
    after = bench.records()
    assert len(after) == 2
    assert all(after[trial_id] == record for trial_id, record in committed.items()), "a committed record was touched"


def test_ctrl_c_once_finishes_what_runs_and_starts_nothing_more(bench: Bench) -> None:
    bench.environment["SLOW_SECONDS"] = "0.5"
    methods = "  - {name: 'odd_methods:Slow', resources: {priority: 1}}\n  - none"
    driver = bench.start(methods, "--launcher", "local", "--set", "resources.cpus_per_rank=null")
    wait_for(bench.mark.exists, 120, "no trial runs")
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 130, output
    assert "the trials that run now are finished" in output
    assert [record["spec"]["method"]["name"] for record in bench.records().values()] == ["Slow"]
    assert next(iter(bench.records().values()))["outcome"]["status"] == "completed"


def test_a_command_that_is_stopped_says_so(
    bench: Bench, tuneoff: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(runner: RoundRunner, pending: Sequence[TrialSpec]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RoundRunner, "_run", stop)
    done = tuneoff(*bench.arguments("  - none", "--launcher", "local"))
    assert done.returncode == 130, done.stderr
    assert "finished trials are kept" in done.stdout


# With light ranks, twice Ctrl-C: tests/programs/test_chaos.py.
@pytest.mark.full
@pytest.mark.parametrize(
    "signals",
    [pytest.param([signal.SIGINT, signal.SIGINT], id="ctrl-c-twice"), pytest.param([signal.SIGTERM], id="term")],
)
def test_stopping_now_keeps_what_is_done(signals: list[signal.Signals], bench: Bench) -> None:
    driver = bench.start("  - none\n  - odd_methods:Slow", "--launcher", "local", "--set", "train.steps=600")
    wait_for(lambda: bench.mark.exists() and len(bench.records()) == 1, 120, "not one trial done and one running")
    for number in signals:
        driver.send_signal(number)
        time.sleep(0.5)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130, output
    assert "finished trials are kept" in output
    assert len(bench.records()) == 1
    wait_for(lambda: not bench.processes(), 30, "ranks outlived the driver")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--launcher", "local", "--set", "train.stepz=3"),
            "train.stepz: unknown key (value 3); did you mean 'steps'?",
        ),
        (("--launcher", "local", "--set", "task.path=/nowhere"), "no file '/nowhere/train.jsonl'"),
        (
            ("--launcher", "local", "--set", "task.train_examples=9999"),
            "task.train_examples: 9999 asked for, the train split has 56",
        ),
        (("--launcher", "local", "--address", "auto"), "--address auto has no effect with --launcher local"),
    ],
)
def test_bad_input_exits_with_2_and_starts_nothing(
    arguments: tuple[str, ...], message: str, bench: Bench, tuneoff: Callable[..., Done]
) -> None:
    done = tuneoff(*bench.arguments("  - none", *arguments))
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(bench.results.glob("trials/*"))


def test_a_malformed_line_is_found_before_any_trial_starts(
    bench: Bench, tmp_path: Path, tuneoff: Callable[..., Done]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in bench.task.iterdir():
        (broken / path.name).write_text(path.read_text())
    with (broken / "dev.jsonl").open("a") as file:
        file.write('{"source": "x"\n')
    done = tuneoff(*bench.arguments("  - none", "--launcher", "local", "--set", f"task.path={broken}"))
    assert done.returncode == 2
    assert f"{broken}/dev.jsonl: line 7: not valid JSON" in done.stderr
    assert "start" not in done.stdout


def test_listings_and_usage(bench: Bench, tuneoff: Callable[..., Done]) -> None:
    methods = json.loads(tuneoff("methods", "--json").stdout)
    assert {"none", "full", "prompt_tuning", "prefix_tuning"} <= {entry["name"] for entry in methods}
    assert all(entry["description"].endswith(".") for entry in methods)
    assert "CC0" not in tuneoff("tasks").stderr
    assert "e2e" in tuneoff("tasks").stdout
    assert tuneoff("run").returncode == 2
    assert tuneoff("report", str(bench.folder)).returncode == 2
