"""Settings of published recipes: optimisers, the scale of the loss, dropout of the base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import completed, record, trial
from one_rank import training_alone
from torch import nn

from bench.conformance.tiny_models import WordTokenizer, tiny_model
from bench.method import MethodError, trained_parameters
from bench.models.architecture import DecoderOnly, Pair
from bench.models.base import ModelError, load_model
from bench.plugins.registry import load_method, targets
from bench.schema.record import TrialResult
from bench.schema.trial import (
    LATER_SETTINGS,
    DecodeSpec,
    MethodSpec,
    ModelSpec,
    ResourceSpec,
    TaskSpec,
    TrainSpec,
    TrialSpec,
)
from bench.schema.validation import ConfigError, validated
from bench.train.lane import Lane
from bench.train.optimizer import learning_rate_factor, make_optimizer
from methods.full import FullFineTuning


def adafactor_step(weight: torch.Tensor, moments: list[torch.Tensor], gradient: torch.Tensor, step: int) -> None:
    """Algorithm 4 of Shazeer & Stern 2018 for a matrix, with an absolute step size of 0.3 and weight decay of 0.01."""
    beta = 1 - step**-0.8
    squares = gradient**2 + 1e-30
    moments[0] = beta * moments[0] + (1 - beta) * squares.mean(dim=1)
    moments[1] = beta * moments[1] + (1 - beta) * squares.mean(dim=0)
    second_moment = torch.outer(moments[0], moments[1]) / moments[0].mean()
    update = gradient / second_moment.sqrt()
    update /= max(1.0, float(update.square().mean().sqrt()))
    weight -= 0.3 * 0.01 * weight
    weight -= 0.3 * update


def test_adafactor_is_the_published_one_without_parameter_scaling() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    parameter = nn.Parameter(start.clone())
    train = TrainSpec(optimizer="adafactor", learning_rate=0.3, weight_decay=0.01)
    optimizer = make_optimizer(train, nn.ParameterList([parameter]), [{"params": [parameter], "lr_scale": 1.0}])
    expected, moments = start.clone(), [torch.zeros(4, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)]
    for step in range(1, 5):
        gradient = torch.randn(4, 6, generator=generator, dtype=torch.float64)
        parameter.grad = gradient.clone()
        optimizer.step()
        adafactor_step(expected, moments, gradient, step)
    torch.testing.assert_close(parameter.detach(), expected, atol=1e-6, rtol=1e-6)


def test_adamw_takes_its_settings_and_the_scales_of_groups() -> None:
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    groups = [{"params": model[0].parameters(), "lr_scale": 16.0}, {"params": model[1].parameters()}]
    train = TrainSpec(learning_rate=0.1, adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-6, weight_decay=0.2)
    optimizer = make_optimizer(train, model, groups)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1.6, 1.6, 0.1, 0.1])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0, 0.2, 0]
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-6)


def decaying(train: TrainSpec, model: nn.Module) -> set[str]:
    names = {parameter: name for name, parameter in trained_parameters(model)}
    optimizer = make_optimizer(train, model, [{"params": list(names)}])
    assert {names[p] for group in optimizer.param_groups for p in group["params"]} == set(names.values())
    return {names[p] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bart"])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_weight_decay_spares_what_trainer_spares(family: str, optimizer: Any) -> None:
    from transformers import Trainer

    tried = (("full", {}), ("bitfit", {}), ("adapters", {"placement": "houlsby"}), ("prompt_tuning", {}))
    spared = 0
    for name, settings in tried:
        method_class = load_method(targets("method")[name])
        model = method_class(method_class.Config(**settings), WordTokenizer()).patch(tiny_model(family))
        trained = {name for name, _ in trained_parameters(model)}
        right = trained & set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
        spared += len(trained - right)
        assert decaying(TrainSpec(optimizer=optimizer, weight_decay=0.1), model) == right
        everywhere = TrainSpec(optimizer=optimizer, weight_decay=0.1, weight_decay_on="all")
        assert decaying(everywhere, model) == trained
    assert spared, "no norm and no bias was among what these methods train"


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_a_warm_up_starts_as_in_transformers_or_one_step_ahead(schedule: Any) -> None:
    from transformers.optimization import get_scheduler

    name = "constant_with_warmup" if schedule == "constant" else schedule
    train = TrainSpec(schedule=schedule, warmup_steps=4)
    theirs = get_scheduler(name, torch.optim.AdamW([torch.zeros(1)]), 4, 11).lr_lambdas[0]  # type: ignore[attr-defined]
    ours = learning_rate_factor(train, 11)
    assert [ours(step) for step in range(11)] == pytest.approx([theirs(step) for step in range(11)])
    assert ours(0) == 0
    ahead = learning_rate_factor(train.model_copy(update={"warmup_start": "first_step"}), 11)
    assert [ahead(step) for step in range(4)] == [0.25, 0.5, 0.75, 1]
    assert [ahead(step) for step in range(4, 11)] == [ours(step) for step in range(4, 11)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_start": "first_step"}, "warmup_start has no effect with warmup_steps: 0"),
        ({"weight_decay_on": "all"}, "weight_decay_on has no effect with weight_decay: 0"),
    ],
)
def test_how_to_do_what_is_not_done_has_no_effect(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validated(TrainSpec, settings, "train")


def test_records_from_before_the_choice_say_how_they_were_trained() -> None:
    def trained(**settings: Any) -> TrainSpec:
        spec = trial().model_copy(update={"train": TrainSpec(steps=10, **settings)})
        content = record(spec, completed()).model_dump(mode="json")
        for later in ("warmup_start", "weight_decay_on"):
            del content["spec"]["train"][later]
        return TrialResult.model_validate(content).spec.train

    old = trained(warmup_steps=3, weight_decay=0.1)
    assert (old.warmup_start, old.weight_decay_on) == ("first_step", "all")
    assert trained() == TrainSpec(steps=10), "where neither was used there was nothing to choose"


def test_settings_of_the_other_optimiser_have_no_effect() -> None:
    with pytest.raises(ConfigError, match="adam_epsilon has no effect with optimizer: adafactor"):
        validated(TrainSpec, {"optimizer": "adafactor", "adam_epsilon": 1e-6}, "train")


class Late(FullFineTuning):
    """Has done what its settings say after the third step."""

    class Config(FullFineTuning.Config):
        @property
        def needed_steps(self) -> tuple[float, str]:
            return 2.5, "late: true"


def lane_of(kind: type[FullFineTuning], steps: int = 4) -> Lane:
    method = kind(kind.Config(), WordTokenizer())
    model = method.patch(tiny_model("llama"))
    lane = Lane(method, model, TrainSpec(steps=steps, batch_size=1), 0, lambda event: None)
    lane.begin([Pair([5, 6], [7, 1])], torch.device("cpu"))
    return lane


def test_no_state_is_the_best_before_what_the_settings_say_has_come() -> None:
    lane = lane_of(Late)
    for step, loss in ((2, 1.0), (3, 3.0), (4, 2.0)):
        lane.evaluated(step, loss)
    assert lane.best is not None and lane.best.step == 4
    assert [point.step for point in lane.dev_curve] == [2, 3, 4], "all are recorded"
    short = lane_of(Late, steps=2)
    short.evaluated(2, 1.0)
    assert short.best is not None and short.best.step == 2, "a search that stops early has one too"


class Decaying(FullFineTuning):
    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        return [{**group, "weight_decay": 0.1} for group in super().parameter_groups(model)]


class Forgetful(FullFineTuning):
    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        (group,) = super().parameter_groups(model)
        return [{"params": iter(group["params"][1:])}]


class Twofold(FullFineTuning):
    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        return [{"params": [group["params"][0], *group["params"]]} for group in super().parameter_groups(model)]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Decaying, "Decaying: a parameter group has the key 'weight_decay', which nothing reads"),
        (Forgetful, r"Forgetful: no parameter group holds model.embed_tokens.weight, which requires grad and would"),
        (Twofold, "Twofold: parameter groups hold a tensor that is not trained, or one of them twice"),
    ],
)
def test_groups_that_would_train_something_else_are_refused(kind: type[FullFineTuning], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        lane_of(kind)


class FixedLosses:
    """An engine whose loss is one per target token, and that keeps what is sent backward."""

    skipped_steps = 0

    def __init__(self) -> None:
        self.backward_total = 0.0

    def __call__(self, target_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.tensor([float(len(target_ids))])

    def backward(self, loss: torch.Tensor) -> None:
        self.backward_total += float(loss)

    def step(self) -> None:
        pass


@pytest.mark.parametrize(("reduction", "minimised"), [("token_mean", 1.0), ("sequence_sum", (2 + 3 + 7 + 4) / 4)])
def test_the_loss_is_reduced_as_asked_and_reported_as_a_mean_over_tokens(reduction: Any, minimised: float) -> None:
    pairs = [Pair([5, 6], [7] * length) for length in (2, 3, 7, 4)]
    train = TrainSpec(batch_size=4, micro_batch_size=2, loss_reduction=reduction)
    lane = Lane(FullFineTuning(FullFineTuning.Config()), nn.Linear(1, 1), train, 0, lambda event: None)
    training = training_alone([lane], architecture=DecoderOnly())
    lane.begin(pairs, training.device)
    engine = FixedLosses()
    training._step(engine, [0], pairs, step=1)
    ((reported, _),) = lane._pending
    assert float(reported) == pytest.approx(1.0)
    assert engine.backward_total / 2 == pytest.approx(minimised), "the engine divides by the two micro-batches"


def dropouts(model: nn.Module) -> set[float]:
    layers = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    return layers | {m.attention_dropout for m in model.modules() if hasattr(m, "attention_dropout")}


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_dropout_of_the_base_model_is_set_whatever_its_family_calls_it(
    family: str, tiny_models: dict[str, Path]
) -> None:
    spec = ModelSpec(path=str(tiny_models[family]))
    assert dropouts(load_model(spec, torch.float32, dropout=0.25)) == {0.25}
    assert dropouts(load_model(spec, torch.float32)) != {0.25}


def test_a_model_without_dropout_refuses_to_have_some(tiny_models: dict[str, Path], monkeypatch: Any) -> None:
    class NoDropout:
        def to_dict(self) -> dict[str, Any]:
            return {"layerdrop": 0.1, "hidden_size": 8, "use_dropout": True}

    from bench.models import base

    monkeypatch.setattr(base, "load_config", lambda spec: NoDropout())
    monkeypatch.setattr(base, "architecture", lambda spec: DecoderOnly())
    with pytest.raises(ModelError, match=r"train.dropout: 0.1 has no effect"):
        load_model(ModelSpec(path=str(tiny_models["llama"])), torch.float32, dropout=0.1)


def test_what_changes_training_is_another_trial() -> None:
    spec = TrialSpec(
        method=MethodSpec(name="x", target="m:X"),
        model=ModelSpec(),
        task=TaskSpec(name="t", target="t:T"),
        train=TrainSpec(steps=3),
        decode=DecodeSpec(),
        resources=ResourceSpec(),
        seed=0,
    )
    later = LATER_SETTINGS["train"].keys()  # which count where they are set
    assert spec.identity["train"].keys() == TrainSpec.model_fields.keys() - later
    other = spec.model_copy(update={"train": TrainSpec(steps=3, loss_reduction="sequence_sum")})
    assert other.trial_id != spec.trial_id
