"""Fused trials: which may share a launch, a record for each member, and a member that fails is tried again alone."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Done
from fakes import FakeLauncher, completed, failed, probed, provenance, record, trial
from in_process import run_here

from bench.driver.fusable import fusion_of, why_alone
from bench.driver.schedule import Fusion, Schedule
from bench.launch.capacity import Machine
from bench.launch.launcher import StopReason
from bench.report.configurations import Configuration
from bench.report.figures.bars import memory_bars, time_bars
from bench.report.rows import row
from bench.schema.record import Failed, Fused, RankReport, TrialResult
from bench.schema.trial import MethodSpec, ModelSpec, TaskSpec, TrialSpec
from bench.store.outbox import START_FILE, member_prefix, new_attempt, open_attempt, report_path, write_report
from bench.store.records import Store
from bench.store.recover import recover
from bench.store.requests import Answer, CancelRequest, Requests
from bench.store.retry import RetryPolicy


def schedule(store: Store, launcher: FakeLauncher) -> Schedule:
    """All trials may share a launch with two others."""
    return Schedule(
        store,
        launcher,
        "demo",
        fusion_of=lambda spec, on_gpu: Fusion("all", 3),
        retries=RetryPolicy(backoff_seconds=0.01),
    )


def records(store: Store, *specs: TrialSpec) -> list[TrialResult]:
    found = [store.read(spec.trial_id) for spec in specs]
    assert None not in found
    return [result for result in found if result is not None]


def test_trials_share_launches_and_each_has_its_record(store: Store) -> None:
    launcher, specs = FakeLauncher(store.outbox), [trial(seed=seed) for seed in range(5)]
    schedule(store, launcher).run(specs)
    assert launcher.launched == [specs[0].trial_id, specs[3].trial_id]
    results = records(store, *specs)
    for number, result in enumerate(results[:3]):
        assert result.spec == specs[number]
        assert result.fused is not None
        assert result.fused.trials == [spec.trial_id for spec in specs[:3] if spec != specs[number]]
        predictions = store.trials / result.trial_id / "predictions.jsonl.gz"
        assert list(result.files) == [predictions.name]
        assert json.loads(gzip.decompress(predictions.read_bytes())) == {"id": "abc"[number]}
    assert len({result.attempt.attempt_id for result in results[:3]}) == 1
    assert not list(store.outbox.glob("*/*"))


def test_a_launch_has_the_time_of_all_its_members(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            self.now += 60.0
            return self.now

    clock, stopped = Clock(), list[float]()

    class Stopped(FakeLauncher):
        def stop(self, trial_id: str, reason: StopReason) -> None:
            stopped.append(clock.now)
            super().stop(trial_id, reason)

    monkeypatch.setattr("bench.driver.schedule.time", clock)
    launcher, specs = Stopped(store.outbox), [trial(seed=seed, timeout_seconds=100.0) for seed in range(3)]
    launcher.hangs.add(specs[0].trial_id)
    launcher.plans[specs[1].trial_id] = launcher.plans[specs[2].trial_id] = [completed()] * 2
    launcher.on_launch = lambda run: started.append(clock.now)
    started: list[float] = []
    schedule(store, launcher).run(specs)
    assert 300 < stopped[0] - started[0] < 500


def test_work_is_left_for_every_machine(store: Store) -> None:
    launcher = FakeLauncher(store.outbox, Machine(cpus=2, gpus=0))
    schedule(store, launcher).run(trial(seed=seed, cpus_per_rank=1) for seed in range(4))
    assert len(launcher.launched) == 2


def test_what_fails_in_company_is_tried_again_alone(store: Store) -> None:
    launcher, specs = FakeLauncher(store.outbox), [trial(seed=seed) for seed in range(3)]
    launcher.plans[specs[1].trial_id] = [failed("diverged"), failed("diverged")]
    launcher.plans[specs[2].trial_id] = [failed("error")]
    schedule(store, launcher).run(specs)
    assert launcher.launched == [spec.trial_id for spec in specs]
    first, second, third = records(store, *specs)
    assert first.fused is not None
    assert second.fused is None
    assert second.outcome.status == "failed"
    assert third.outcome.status == "completed"
    assert third.attempt.earlier_reasons == ["error"]


def test_a_lost_launch_is_lost_for_all_and_made_again_one_by_one(store: Store) -> None:
    launcher, specs = FakeLauncher(store.outbox), [trial(seed=seed) for seed in range(3)]
    launcher.plans[specs[0].trial_id] = [failed("worker_lost")]
    schedule(store, launcher).run(specs)
    assert sorted(launcher.launched) == sorted([specs[0].trial_id, *(spec.trial_id for spec in specs)])
    assert [result.fused for result in records(store, *specs)] == [None] * 3


def test_a_trial_that_an_earlier_driver_lost_is_tried_again_alone(store: Store) -> None:
    launcher, specs = FakeLauncher(store.outbox), [trial(seed=seed) for seed in range(3)]
    store.log("lost", trial_id=specs[0].trial_id, attempt="x", reason="driver_lost")
    schedule(store, launcher).run(specs)
    assert launcher.launched == [specs[0].trial_id, specs[1].trial_id]
    first, second, third = records(store, *specs)
    assert (first.fused, first.attempt.number, first.attempt.earlier_reasons) == (None, 2, ["driver_lost"])
    assert second.fused is not None and second.fused.trials == [third.trial_id]


def test_only_the_trial_that_is_meant_is_cancelled(store: Store) -> None:
    launcher, specs = FakeLauncher(store.outbox), [trial(seed=seed) for seed in range(3)]
    launcher.hangs = {specs[0].trial_id}
    answers: list[Answer | None] = []
    request = CancelRequest(trial_id=specs[2].trial_id)
    asking = threading.Thread(target=lambda: answers.append(Requests(store.root).ask(request, 60.0)), daemon=True)

    def cancel(run: object) -> None:
        if launcher.launched:
            launcher.hangs.clear()
        else:
            asking.start()

    launcher.on_launch = cancel
    schedule(store, launcher).run(specs)
    asking.join()
    assert answers == [Answer(cancelled=1)]
    first, second, third = records(store, *specs)
    assert (first.outcome.status, second.outcome.status) == ("completed", "completed")
    assert isinstance(third.outcome, Failed)
    assert third.outcome.reason == "cancelled"


@pytest.mark.parametrize("before_the_rename", [False, True])
def test_a_finished_launch_is_found_after_the_death_of_the_driver(store: Store, before_the_rename: bool) -> None:
    specs = [trial(seed=seed) for seed in range(3)]
    started = new_attempt(specs[0], "demo", "local", [], specs[1:])
    for spec in specs:
        store.log("started", trial_id=spec.trial_id, attempt=started.attempt.attempt_id, number=1)
    folder = open_attempt(store.outbox, started)
    names = [f"{member_prefix(number)}predictions.jsonl" for number in range(3)]
    for name in names:
        (folder / name).write_text("{}\n")
    report = RankReport(
        outcome=completed(),
        provenance=provenance(),
        other_outcomes=[failed("diverged"), completed()],
        shared_seconds=9.0,
    )
    write_report(folder, 0, report, names)
    if before_the_rename:  # An outbox of a version that called them companions is recovered, too.
        for path in (folder / START_FILE, report_path(folder, 0)):
            text = path.read_text()
            assert '"other_' in text
            path.write_text(text.replace("other_members", "companions").replace("other_outcomes", "companions"))
    assert [result.trial_id for result in recover(store).committed] == [specs[0].trial_id, specs[2].trial_id]
    for result in records(store, specs[0], specs[2]):
        assert list(result.files) == ["predictions.jsonl.gz"]
        assert result.fused is not None
        assert result.fused.shared_seconds == 9.0
    assert store.lost_attempts() == {specs[1].trial_id: ["diverged"]}


def test_shared_figures_are_not_told_and_shared_time_is_shared() -> None:
    alone = record(trial(), probed(seconds=30.0))
    fused = alone.model_copy(update={"fused": Fused(trials=["a", "b"], shared_seconds=24.0)})
    assert fused.device_seconds == pytest.approx(30.0 - 16.0)
    left_out = row(alone).keys() - row(fused).keys()
    assert {"train_tokens_per_second", "peak_memory_bytes", "train_seconds", "total_seconds"} <= left_out
    assert {"dev_loss", "trained_parameters", "adapter_bytes"} <= row(fused).keys()


def test_figures_leave_out_what_trials_cost_together() -> None:
    alone = record(trial(), completed())
    fused = alone.model_copy(update={"fused": Fused(trials=["a"], shared_seconds=1.0)})
    for bars in (memory_bars, time_bars):
        assert bars([Configuration((alone,))], "bars") is not None
        assert bars([Configuration((fused,))], "bars") is None


def fusable_trial(model: Path, method: str = "prefix_tuning", **changes: Any) -> TrialSpec:
    spec = trial(method, fuse=4, **changes.pop("resources", {}))
    targets = {"prefix_tuning": "PrefixTuning", "lora": "LoRA", "full": "FullFineTuning"}
    target = f"methods.{method}:{targets[method]}"
    own = {
        "method": MethodSpec(name=method, target=target, config=changes.pop("config", {})),
        "model": ModelSpec(path=str(model)),
        "task": TaskSpec(name="jsonl", target="bench.tasks.jsonl:JsonLines"),
        "train": spec.train.model_copy(update=changes.pop("train", {})),
    }
    return spec.model_copy(update={**own, **changes})


def test_trials_that_differ_in_seed_rate_and_length_may_share_a_launch(tiny_models: dict[str, Path]) -> None:
    spec = fusable_trial(tiny_models["llama"])
    alike = fusable_trial(tiny_models["llama"], seed=3, train={"learning_rate": 0.5, "steps": 2, "weight_decay": 0.1})
    assert fusion_of(spec, on_gpu=False) == fusion_of(alike, on_gpu=False)
    for other in (
        fusable_trial(tiny_models["gpt2"]),
        fusable_trial(tiny_models["llama"], "lora"),
        fusable_trial(tiny_models["llama"], config={"num_prompt_tokens": 5}),
        fusable_trial(tiny_models["llama"], train={"batch_size": 4}),
        fusable_trial(tiny_models["llama"], stage="tune"),
    ):
        assert fusion_of(other, on_gpu=False) is not None
        assert fusion_of(other, on_gpu=False) != fusion_of(spec, on_gpu=False)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"stage": "cost"}, "stage cost runs alone"),
        ({"resources": {"ranks": 2}}, "one rank"),
        ({"resources": {"zero_stage": 1}}, "ZeRO stage 0"),
        ({"resources": {"precision": "bf16"}}, "fp32"),
        ({"method": "full"}, "full with these settings"),
        ({"method": "lora", "config": {"dropout": 0.1}}, "lora with these settings"),
        ({"config": {"path": "literal"}}, "prefix_tuning with these settings"),
        ({"train": {"dropout": 0.1}}, "set train.dropout: 0"),
    ],
)
def test_why_a_trial_runs_alone(changes: dict[str, Any], why: str, tiny_models: dict[str, Path]) -> None:
    spec = fusable_trial(tiny_models["gpt2"], **changes)
    found = why_alone(spec)
    assert found is not None
    assert why in found
    assert fusion_of(spec, on_gpu=False) is None


@pytest.mark.parametrize(
    ("fuse", "batch_size", "on_gpu", "most"),
    [("off", 2, True, None), ("auto", 2, False, 4), ("auto", 8, False, None), ("auto", 8, True, 16), (3, 64, False, 3)],
)
def test_as_many_share_a_launch_as_pay(
    fuse: Any, batch_size: int, on_gpu: bool, most: int | None, tiny_models: dict[str, Path]
) -> None:
    spec = fusable_trial(tiny_models["llama"], train={"batch_size": batch_size})
    spec = spec.model_copy(update={"resources": spec.resources.model_copy(update={"fuse": fuse})})
    found = fusion_of(spec, on_gpu)
    assert (found and found.most) == most


SWEEP = """
name: fused
model: {model}
task: {{name: jsonl, path: {task}}}
train: {{steps: 4, batch_size: 4, evaluate_every_steps: 2}}
decode: {{max_new_tokens: 8, batch_size: 4}}
resources: {{device: cpu, fuse: 4}}
methods:
  - {{name: prefix_tuning, config: {{num_prompt_tokens: 3}}, grid: {{train.learning_rate: [1.0e-2, 3.0e-2]}}}}
seeds: [0, 1]
"""


def test_a_fused_sweep_finds_what_its_trials_find_alone(
    tuneoff: Callable[..., Done], tmp_path: Path, tiny_models: dict[str, Path], tiny_task: Path, one_rank: None
) -> None:
    results, sweep = tmp_path / "results", tmp_path / "sweep.yaml"
    sweep.write_text(SWEEP.format(model=tiny_models["llama"], task=tiny_task))
    command = ("run", str(sweep), "--launcher", "local", "--results", str(results))
    done = tuneoff(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    store = Store(results / "fused")
    fused = store.read_all()
    assert len(fused) == 4
    assert all(result.fused is not None and len(result.fused.trials) == 3 for result in fused)
    assert len({result.attempt.attempt_id for result in fused}) == 1
    member = next(result for result in fused if (result.spec.seed, result.spec.train.learning_rate) == (1, 3e-2))
    (alone,) = run_here(Store(results / "alone"), [member.spec])
    assert member.files.keys() - {"rank-0.log"} == alone.files.keys(), "no rank writes a log here"
    for curve in ("train_curve", "dev_curve"):
        losses = [[point.loss for point in getattr(each.outcome, curve)] for each in (member, alone)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert member.outcome.test_loss == pytest.approx(alone.outcome.test_loss, abs=1e-5)
    # The perplexity of the references is made of losses, all other scores of texts.
    assert member.outcome.scores.values == pytest.approx(alone.outcome.scores.values, rel=1e-5)
    again = tuneoff(*command)
    assert "4 done, 0 to run" in again.stdout
