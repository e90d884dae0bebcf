"""Trackers get the events of a sweep, and their faults do not affect trials."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command import Done
from event_files import scalars
from fakes import FakeLauncher, completed, record, trial
from odd_trackers import CannotLog  # noqa: F401 - named in a parameter below

from bench.driver.schedule import Schedule
from bench.driver.trackers import tracking
from bench.driver.trackers.tracker import Tracker, settings_of, values_of
from bench.driver.trackers.tracking import Tracking, tracker_target
from bench.launch.launcher import Progress
from bench.schema.record import Failed
from bench.schema.validation import ConfigError
from bench.store.outbox import new_attempt
from bench.store.records import Store
from bench.store.retry import RetryPolicy

heard: list[tuple[Any, ...]] = []
threads: set[int] = set()
release = threading.Event()


class Listens(Tracker):
    """Records the events that it gets."""

    def begin(self, trial_id: str, settings: Mapping[str, str]) -> None:
        threads.add(threading.get_ident())
        heard.append(("begin", trial_id, settings["train.learning_rate"]))

    def log(self, trial_id: str, step: int, values: Mapping[str, float]) -> None:
        heard.append(("log", trial_id, step, dict(values)))

    def end(self, trial_id: str, values: Mapping[str, float], failure: str | None) -> None:
        heard.append(("end", trial_id, values.get("test/bleu"), failure))

    def close(self) -> None:
        heard.append(("close",))


class CannotStart(Tracker):
    """Raises when it is made, as if no server answered."""

    def __init__(self, root: Path, sweep: str) -> None:
        raise ConnectionError("no server")


class CannotBegin(Tracker):
    """Raises when a trial begins."""

    def begin(self, trial_id: str, settings: Mapping[str, str]) -> None:
        raise RuntimeError("disk full")


class CannotEnd(Tracker):
    """Raises when a trial ends."""

    def end(self, trial_id: str, values: Mapping[str, float], failure: str | None) -> None:
        raise ValueError("no such run")


class CannotClose(Tracker):
    """Raises at the very end."""

    def close(self) -> None:
        raise OSError("connection reset")


class Hangs(Tracker):
    """Waits for a server that never answers."""

    def begin(self, trial_id: str, settings: Mapping[str, str]) -> None:
        release.wait(60)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    heard.clear()
    threads.clear()
    release.clear()


def run(names: list[str], folder: Path, trials: int = 3) -> tuple[list[str], list[str]]:
    """A sweep with a fake launcher: what was said, and how each trial ended."""
    said: list[str] = []
    specs = [trial("full", seed=seed) for seed in range(trials)]
    launcher = FakeLauncher(folder / "scratch")
    launcher.plans[specs[0].trial_id] = [
        Failed(reason="worker_lost", phase=None, rank=0, message="gone"),
        completed(),
    ]
    if trials > 1:
        launcher.plans[specs[1].trial_id] = [Failed(reason="diverged", phase="train", rank=0, message="nan")]
    store = Store(folder / "demo")
    with store.locked(), closing(Tracking({name: {} for name in names}, store.root, "demo", said.append)) as observer:
        Schedule(store, launcher, "demo", [observer], retries=RetryPolicy(backoff_seconds=0.0)).run(specs)
        for spec in specs:
            observer.progressed(Progress(spec.trial_id, 0, {"step": 3, "loss": 1.5, "tokens_per_second": 10.0}))
    records = [store.read(spec.trial_id) for spec in specs]
    return said, ["none" if found is None else found.outcome.status for found in records]


def test_a_tracker_hears_of_trials_in_a_thread_of_its_own(tmp_path: Path) -> None:
    said, ended = run([f"{__name__}:Listens"], tmp_path)
    assert (said, ended) == ([], ["completed", "failed", "completed"])
    lost, diverged, whole = (trial("full", seed=seed).trial_id for seed in range(3))
    mine = [event for event in heard if event[1:2] == (lost,)]
    assert [event[0] for event in mine] == ["begin", "end", "begin", "log", "log", "end", "log"]
    assert [event[-1] for event in mine if event[0] == "end"] == ["worker_lost: gone", None]
    assert ("end", diverged, None, "diverged: nan") in heard
    assert ("begin", whole, "0.001") in heard and ("end", whole, 50.0, None) in heard
    assert ("log", whole, 3, {"train/loss": 1.5, "train/tokens_per_second": 10.0}) in heard
    assert heard[-1] == ("close",)
    assert threads and threading.get_ident() not in threads


def test_a_trial_that_never_began_is_no_news(tmp_path: Path) -> None:
    said: list[str] = []
    with closing(Tracking({f"{__name__}:Listens": {}}, tmp_path, "demo", said.append)) as observer:
        observer.committed(record(trial(), Failed(reason="infeasible", phase=None, rank=None, message="too large")))
    assert (said, heard) == ([], [("close",)])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CannotStart", "ConnectionError: no server"),
        ("CannotBegin", "RuntimeError: disk full"),
        ("CannotLog", "SystemExit: not logged in"),
        ("CannotEnd", "ValueError: no such run"),
        ("CannotClose", "OSError: connection reset"),
    ],
)
def test_a_tracker_that_fails_is_heard_of_once_and_the_trials_and_other_trackers_go_on(
    name: str, message: str, tmp_path: Path
) -> None:
    said, ended = run([f"{__name__}:{name}", f"{__name__}:Listens"], tmp_path)
    assert said == [f"tracker {__name__}:{name} failed and is off, the trials go on: {message}"]
    assert ended == ["completed", "failed", "completed"]
    assert [event[0] for event in heard].count("begin") == 4 and heard[-1] == ("close",)


def test_a_tracker_that_hangs_delays_no_trial_and_the_end_by_its_limit_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.3)
    monkeypatch.setattr(tracking, "MOST_WAITING", 4)
    started = time.monotonic()
    said, ended = run([f"{__name__}:Hangs"], tmp_path)
    assert time.monotonic() - started < 20
    assert ended == ["completed", "failed", "completed"]
    assert said == ["trackers have not taken everything within 0.3 s; the results are complete without"]
    release.set()


def test_without_trackers_there_is_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    Tracking({}, tmp_path, "demo", print).close()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "--tracker tensorbord: known are tensorboard, wandb, mlflow, and any module:Class"),
        ("no_such_module:A", "--tracker no_such_module:A: No module named 'no_such_module'"),
        ("json:A", "--tracker json:A: module 'json' has no attribute 'A'"),
        ("json:JSONDecoder", "it is no bench.driver.trackers.tracker.Tracker"),
    ],
)
def test_names_that_are_none(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        Tracking({name: {}}, tmp_path, "demo", print)
    assert message in str(error.value)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tracking.BUILT_IN, "mlflow", ("bench.driver.trackers.mlflow:MLflow", "surely_not_installed"))
    with pytest.raises(ConfigError, match=r"needs the package surely_not_installed: pip install 'tuneoff\[mlflow\]'"):
        tracker_target("mlflow")


def test_a_wrong_tracker_starts_nothing(
    tuneoff: Callable[..., Done], tmp_path: Path, tiny_models: dict[str, Path], tiny_task: Path
) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        f"name: tiny\nmodel: {tiny_models['llama']}\ntask: {{name: jsonl, path: {tiny_task}}}\n"
        "train: {steps: 2, batch_size: 2, learning_rate: 1e-2}\nmethods: [full]\n"
    )
    done = tuneoff("run", str(sweep), "--results", str(tmp_path / "results"), "--tracker", "clearml")
    assert done.returncode == 2 and "--tracker clearml: known are" in done.stderr


def test_what_is_told_of_a_trial() -> None:
    settings = settings_of(trial("full", seed=7))
    assert settings["method.name"] == "full" and settings["seed"] == "7" and settings["train.steps"] == "10"
    values = values_of(record(trial(), completed()))
    assert values["test/bleu"] == 50.0 and values["cost/total_seconds"] == 20.0 and values["parameters/trained"] == 100
    assert values_of(record(trial(), Failed(reason="error", phase=None, rank=None, message="x"))) == {}


def tell(name: str, root: Path, settings: dict[str, object] | None = None) -> None:
    """A trial that trains two steps and completes, and one that diverges, told to one tracker."""
    said: list[str] = []
    with closing(Tracking({name: settings or {}}, root, "demo", said.append)) as observer:
        for seed, outcome in ((0, completed()), (1, Failed(reason="diverged", phase="train", rank=0, message="nan"))):
            spec = trial(seed=seed)
            observer.started(new_attempt(spec, "demo", "fake", []))
            for step in (1, 2):
                observer.progressed(Progress(spec.trial_id, 0, {"step": step, "loss": 2.0 / step}))
                observer.progressed(Progress(spec.trial_id, 1, {"step": step, "loss": 9.0}))
            observer.committed(record(spec, outcome))
    assert said == []


def test_tensorboard(tmp_path: Path) -> None:
    tell("tensorboard", tmp_path)
    (events,) = (tmp_path / "tensorboard" / trial(seed=0).trial_id).iterdir()
    scalars_by_tag = scalars(events)
    live = [(1, 2.0), (2, 1.0)]  # rank 0 speaks for the trial
    assert [(step, round(value, 3)) for step, value in scalars_by_tag["train/loss"]] == [*live, (10, 1.2)]
    assert scalars_by_tag["dev/loss"] == [(10, 1.5)]
    assert scalars_by_tag["final/test/bleu"] == [(0, 50.0)]


class StandIn:
    """Takes any call and writes it down."""

    def __init__(self, name: str, calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> None:
        self._name, self._calls = name, calls

    def __getattr__(self, name: str) -> StandIn:
        return StandIn(f"{self._name}.{name}", self._calls)

    def __call__(self, *arguments: Any, **options: Any) -> StandIn:
        self._calls.append((self._name, arguments, options))
        return StandIn(f"{self._name}()", self._calls)


def stand_in(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Replace modules by stand-ins; returns the calls they get."""
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    for name in names:
        module = ModuleType(name)
        module.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec(name, None)
        module.__getattr__ = StandIn(name, calls).__getattr__  # type: ignore[method-assign]
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The calls, as wandb 0.31 took them offline."""
    calls = stand_in(monkeypatch, "wandb")
    monkeypatch.delitem(sys.modules, "bench.driver.trackers.wandb", raising=False)
    tell("wandb", tmp_path)
    begun = [options for name, _, options in calls if name == "wandb.init"]
    assert [options["name"] for options in begun] == [trial(seed=seed).trial_id for seed in (0, 1)]
    assert begun[0]["project"] == "demo" and begun[0]["config"]["method.name"] == "full"
    settings = next(options for name, _, options in calls if name == "wandb.Settings")
    assert settings["x_disable_meta"] and not settings["save_code"], "nothing of the machine is uploaded"
    logged = [(arguments, options) for name, arguments, options in calls if name == "wandb.init().log"]
    assert logged[:2] == [(({"train/loss": 2.0, "step": 1},), {}), (({"train/loss": 1.0, "step": 2},), {})]
    assert (({"dev/loss": 1.5, "step": 10},), {}) in logged
    assert [options for name, _, options in calls if name == "wandb.init().finish"] == [
        {"exit_code": 0},
        {"exit_code": 1},
    ]
    summaries = [arguments[0] for name, arguments, _ in calls if name == "wandb.init().summary.update"]
    assert summaries[0]["test/bleu"] == 50.0 and summaries[1] == {"failure": "diverged: nan"}


def test_wandb_follows_the_sweep_and_not_what_the_environment_says_of_one_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With WANDB_RUN_ID set, wandb 0.31 ends the second run of a process with "run ID ... is in use"."""
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_NAME"):
        monkeypatch.setenv(name, "fixed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    calls = stand_in(monkeypatch, "wandb")
    monkeypatch.delitem(sys.modules, "bench.driver.trackers.wandb", raising=False)
    tell("wandb", tmp_path, {"entity": "team", "group": "night", "tags": ["a", "b"], "job_type": "peft"})
    begun = next(options for name, _, options in calls if name == "wandb.init")
    assert (begun["entity"], begun["group"], begun["job_type"], begun["tags"]) == ("team", "night", "peft", ["a", "b"])
    assert not {"WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_NAME"} & os.environ.keys()
    assert os.environ["WANDB_MODE"] == "offline"
    with pytest.raises(ConfigError, match=r"trackers.wandb: .*entiti"):
        Tracking({"wandb": {"entiti": "team"}}, tmp_path, "demo", print)


def test_mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The calls, as MLflow 3.17 took them with a folder as its store."""
    calls = stand_in(monkeypatch, "mlflow", "mlflow.entities")
    monkeypatch.delitem(sys.modules, "bench.driver.trackers.mlflow", raising=False)
    tell("mlflow", tmp_path)
    named = [name.removeprefix("mlflow.MlflowClient().") for name, _, _ in calls]
    assert named[1:4] == ["get_experiment_by_name", "create_run", "mlflow.entities.Param"]
    metrics = [(*arguments[1:], options["step"]) for name, arguments, options in calls if name.endswith("log_metric")]
    assert metrics[:2] == [("train/loss", 2.0, 1), ("train/loss", 1.0, 2)]
    assert ("final/test/bleu", 50.0, 0) in metrics
    assert [arguments[1] for name, arguments, _ in calls if name.endswith("set_terminated")] == ["FINISHED", "FAILED"]
    assert [arguments[1:] for name, arguments, _ in calls if name.endswith("set_tag")] == [("failure", "diverged: nan")]
