"""Trials of the stages tune and cost: what they read, what they leave out, and what makes two of them the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import trial
from in_process import run_here
from pydantic import ValidationError

from bench.config.resolver import RegistryResolver
from bench.plugins.registry import make_task
from bench.schema.record import Probed, TrialResult
from bench.schema.trial import DecodeSpec, ModelSpec, ResourceSpec, TrainSpec, TrialSpec
from bench.store.records import Store
from bench.tasks.splits import load_splits


def spec(stage: str, model: Path, task: Path, **fields: object) -> TrialSpec:
    """A short prompt tuning on the sealed task."""
    resolver = RegistryResolver()
    return TrialSpec.model_validate(
        {
            "method": resolver.method("prompt_tuning", {"num_prompt_tokens": 3}),
            "model": resolver.model(ModelSpec(path=str(model))),
            "task": resolver.task("odd_tasks:Sealed", {"path": str(task)}),
            "train": TrainSpec(steps=6, batch_size=4, learning_rate=1e-2, warmup_steps=2),
            "decode": DecodeSpec(max_new_tokens=4),
            "resources": ResourceSpec(cpus_per_rank=1),
            "seed": 0,
            "stage": stage,
            **fields,
        }
    )


def outcome(record: TrialResult | None) -> Probed:
    assert record is not None
    assert isinstance(record.outcome, Probed), record.outcome
    return record.outcome


def test_no_rank_of_the_stage_tune_reads_the_test_split(
    tmp_path: Path, tiny_models: dict[str, Path], tiny_task: Path, one_rank: None
) -> None:
    model = tiny_models["llama"]
    whole = spec("tune", model, tiny_task, scores_dev=True)
    stopped = spec("tune", model, tiny_task, stop_after_steps=3)
    store = Store(tmp_path / "sweep")
    store.root.mkdir()
    run_here(store, [whole, stopped])
    assert set(load_splits(make_task(whole.task), whole.splits)) == {"train", "dev"}, "nor does the driver"
    final = spec("final", model, tiny_task)
    with pytest.raises(RuntimeError, match="the seal of the test split is broken"):
        load_splits(make_task(final.task), final.splits)

    scored = outcome(store.read(whole.trial_id))
    assert scored.dev_scores is not None
    assert "bleu" in scored.dev_scores.values
    assert scored.decode is not None
    assert scored.decode.sources == scored.data["dev_sources"] == 6
    assert set(scored.data["files"]) == {"train.jsonl", "dev.jsonl"}, "checksums of the files that were read"
    assert "test_sources" not in scored.data

    early = outcome(store.read(stopped.trial_id))
    assert early.decode is None
    assert early.dev_scores is None
    assert [point.step for point in early.train_curve] == [1, 2, 3]
    assert early.train_curve == scored.train_curve[:3], "a stopped trial is the start of the whole one"
    assert early.dev_loss != scored.dev_loss


def changed(spec: TrialSpec, **fields: object) -> TrialSpec:
    return spec.model_copy(update=fields)


def test_the_identity_of_a_final_trial_does_not_know_of_stages() -> None:
    assert not {"stage", "stop_after_steps", "scores_dev"} & trial().identity.keys()
    assert trial().identity["version"] == 2, "records of the first version were made by other code"


def test_what_makes_trials_of_other_stages_the_same() -> None:
    final = trial()
    final = changed(final, task=changed(final.task, config={"test_examples": 5, "dev_examples": 5}))  # type: ignore[arg-type]
    tune, cost = changed(final, stage="tune"), changed(final, stage="cost")
    assert len({final.trial_id, tune.trial_id, cost.trial_id}) == 3
    other_test = changed(final.task, config={"test_examples": 9, "dev_examples": 5})  # type: ignore[arg-type]
    other_decode = DecodeSpec(beams=3)
    assert changed(final, task=other_test).trial_id != final.trial_id
    assert changed(tune, task=other_test).trial_id == tune.trial_id
    assert changed(tune, decode=other_decode).trial_id == tune.trial_id, "its dev loss needs no decoding"
    scored = changed(tune, scores_dev=True)
    assert changed(scored, decode=other_decode).trial_id != scored.trial_id
    assert changed(tune, stop_after_steps=3).trial_id != tune.trial_id
    rate = TrainSpec(learning_rate=7e-5, steps=10)
    assert changed(cost, seed=3, train=rate).trial_id == cost.trial_id
    assert changed(tune, train=rate).trial_id != tune.trial_id
    again = changed(cost, repetition=1)
    assert again.trial_id != cost.trial_id and "-cost-r1-" in again.trial_id
    assert again.configuration_class == cost.configuration_class
    with pytest.raises(ValidationError, match="repetition has no effect outside the stage cost"):
        TrialSpec.model_validate({**final.model_dump(), "repetition": 1})


def test_a_class_of_cost_is_shared_over_seeds_learning_rates_and_lengths() -> None:
    final = trial()
    for same in (
        changed(final, seed=4),
        changed(final, train=TrainSpec(learning_rate=3e-4, steps=77)),
        changed(final, stage="cost"),
        changed(final, stage="tune", stop_after_steps=2),
    ):
        assert same.configuration_class == final.configuration_class
    for other in (trial("none"), trial(zero_stage=2), changed(final, train=TrainSpec(batch_size=16))):
        assert other.configuration_class != final.configuration_class


def test_stopping_early_belongs_to_the_stage_tune() -> None:
    with pytest.raises(ValidationError, match="have no effect outside the stage tune"):
        TrialSpec.model_validate({**trial().model_dump(), "stop_after_steps": 3})
