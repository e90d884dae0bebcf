"""A launcher without processes, and records without trials."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from bench.launch.capacity import Cluster, Machine
from bench.launch.launcher import Ended, Launcher, Progress, Running, StopReason
from bench.schema.record import (
    Attempt,
    Completed,
    DecodeCost,
    DevPoint,
    Failed,
    Outcome,
    ParameterCounts,
    PhaseCost,
    Probed,
    Provenance,
    Ran,
    RankCost,
    Reason,
    Scores,
    TrainCost,
    TrainPoint,
    TrialResult,
)
from bench.schema.trial import (
    DecodeSpec,
    MethodSpec,
    ModelSpec,
    ResourceSpec,
    TaskSpec,
    TrainSpec,
    TrialSpec,
)
from bench.store.outbox import member_prefix

MEBIBYTE = 2**20


def trial(method: str = "full", seed: int = 0, label: str = "", **resources: object) -> TrialSpec:
    """A trial that nothing will run."""
    return TrialSpec(
        method=MethodSpec(name=method, target=f"methods.{method}:X"),
        model=ModelSpec(),
        task=TaskSpec(name="facts", target="bench.tasks.facts.task:Facts", data_sha256="0" * 64),
        train=TrainSpec(learning_rate=1e-3, steps=10),
        decode=DecodeSpec(),
        resources=ResourceSpec.model_validate(resources),
        seed=seed,
        label=label,
    )


def varied(spec: TrialSpec, **parts: dict[str, object]) -> TrialSpec:
    """The same trial with other values in its parts, e.g. ``train={"steps": 20}``; ``config`` is that of the method."""
    if "config" in parts:
        parts["method"] = {**parts.get("method", {}), "config": parts.pop("config")}
    changed = {name: getattr(spec, name).model_copy(update=part) for name, part in parts.items()}
    return spec.model_copy(update=changed)


def completed(bleu: float = 50.0, trained: int = 100, train: bool = True, peak: int = 300) -> Completed:
    """An outcome with round numbers."""
    phase = PhaseCost(seconds=12.5, peak_memory_bytes=peak * MEBIBYTE, start_memory_bytes=200 * MEBIBYTE)
    cost = TrainCost(
        steps=10,
        steady_steps=5,
        tokens_per_second=1000.0 + trained,
        target_tokens_per_second=400.0,
        useful_token_fraction=0.98,
        step_seconds_p50=0.5,
        step_seconds_p90=0.6,
        step_seconds_p99=0.7,
        step_seconds_mean=0.52,
        skipped_steps=0,
    )
    values = {"bleu": bleu, "chrf": bleu + 5, "ter": 100 - bleu, "rouge_l": bleu + 10}
    return Completed(
        parameters=ParameterCounts(trained=trained, stored=trained, total=10_000 + trained),
        scores=Scores(
            values=values,
            by_tag={"seen": {**values, "bleu": bleu + 1}, "unseen": {**values, "bleu": bleu - 1}},
            sources_by_tag={"seen": 30, "unseen": 10},
            signatures={"bleu": "nrefs:3|tok:13a"},
            higher_is_better={"bleu": True, "chrf": True, "ter": False, "rouge_l": True},
        ),
        dev_loss=1.5,
        test_loss=1.6,
        best_step=10 if train else None,
        train_curve=[TrainPoint(step=10, loss=1.2, learning_rate=0.0)] if train else [],
        dev_curve=[DevPoint(step=10, loss=1.5)] if train else [],
        train=cost if train else None,
        decode=DecodeCost(sources=40, new_tokens=800, tokens_per_second=160.0, seconds=5.0),
        ranks=[
            RankCost(
                rank=0,
                phases={"decode": phase, **({"train": phase} if train else {})},
                baseline_memory_bytes=100 * MEBIBYTE,
                memory_method="vm_hwm",
            )
        ],
        adapter_bytes=4 * trained,
        data={"train_pairs": 320, "truncated_sources": 0, "truncated_targets": 0},
    )


def probed(dev_loss: float | None = 1.5, seconds: float = 10.0, dev_bleu: float | None = None) -> Probed:
    """An outcome of a trial that tunes or measures cost; its one rank worked for so many seconds."""
    whole = completed()
    phase = PhaseCost(seconds=seconds, peak_memory_bytes=300 * MEBIBYTE, start_memory_bytes=200 * MEBIBYTE)
    scores = whole.scores.model_copy(update={"values": {"bleu": dev_bleu}}) if dev_bleu is not None else None
    return Probed(
        **{name: getattr(whole, name) for name in Ran.model_fields if name not in ("dev_loss", "ranks")},
        dev_loss=dev_loss,
        ranks=[whole.ranks[0].model_copy(update={"phases": {"train": phase}})],
        dev_scores=scores,
        decode=whole.decode if scores is not None else None,
    )


def provenance(device: str = "Testium 9000") -> Provenance:
    """Provenance that does not depend on the machine."""
    return Provenance(
        tuneoff_version="0.1.0",
        code_sha256="ab" * 32,
        git_revision="1" * 40,
        git_dirty=False,
        python_version="3.11.7",
        package_versions={"torch": "2.13.0"},
        device=device,
        cpu_cores=2,
        threads_per_rank=2,
        load_average_1min=0.5,
    )


def failed(reason: Reason = "worker_lost") -> Failed:
    """The outcome of a trial that ended in training."""
    return Failed(reason=reason, phase="train", rank=0, message="gone")


def record(spec: TrialSpec, outcome: Outcome, device: str = "Testium 9000") -> TrialResult:
    """A record of a trial that was never run."""
    return TrialResult(
        trial_id=spec.trial_id,
        sweep="demo",
        spec=spec,
        outcome=outcome,
        attempt=Attempt(attempt_id="0", number=1),
        launcher="fake",
        started_at="2026-01-02T03:04:05+00:00",
        total_seconds=20.0,
        provenance=provenance(device),
    )


class FakeLauncher(Launcher):
    """Ends each trial with the next of the outcomes planned for it; without a plan it completes."""

    name = "fake"

    def __init__(self, outbox: Path, *machines: Machine) -> None:
        super().__init__(Cluster(machines or [Machine(cpus=2, gpus=0)]), outbox)
        self.plans: dict[str, list[Outcome]] = {}
        self.launched: list[str] = []
        self.most_at_once = 0
        self.on_launch: Callable[[Running], None] = lambda run: None
        self.hangs: set[str] = set()

    def warm(self, spec: TrialSpec) -> None:
        """There is nothing to get ready."""

    def stop(self, trial_id: str, reason: StopReason) -> None:
        self.end(self.running[trial_id], Failed(reason=reason, phase=None, rank=None, message=reason))

    def close(self) -> None:
        self.running.clear()

    def end(self, run: Running, outcome: Outcome) -> None:
        """Have a trial end."""
        files = []
        for number in range(len(run.started.members)):
            files.append(run.outbox / f"{member_prefix(number)}predictions.jsonl")
            files[-1].write_text(json.dumps({"id": "abc"[number]}) + "\n")
        others = [self.next_outcome(member.trial_id) for member in run.started.other_members]
        if isinstance(outcome, Failed) and outcome.reason in ("worker_lost", "cancelled"):
            others = []
        ended = Ended(run.trial_id, run.attempt.attempt_id, outcome, provenance(), 1.0, files, None, others)
        self.events.put(ended)

    def next_outcome(self, trial_id: str) -> Outcome:
        """The next that is planned for a trial."""
        return self.plans[trial_id].pop(0) if self.plans.get(trial_id) else completed()

    def launch(self, run: Running) -> None:
        self.on_launch(run)
        self.launched.append(run.trial_id)
        self.most_at_once = max(self.most_at_once, len(self.running))
        self.events.put(Progress(run.trial_id, 0, {"phase": "train"}))
        if run.trial_id not in self.hangs:
            self.end(run, self.next_outcome(run.trial_id))
