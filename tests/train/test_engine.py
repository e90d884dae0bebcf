"""The engine that is made around a loss leaves the optimiser as it was: Adam's first step is the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from one_rank import CPU
from torch import nn

from bench.measure.phases import PhaseMeter
from bench.models.architecture import Pair, architecture_of
from bench.models.base import load_model, weights_dtype
from bench.schema.trial import ModelSpec, ResourceSpec, TrainSpec
from bench.train.deepspeed_engine import EngineError, require_no_state, require_nothing_to_round
from bench.train.lane import Diverged, Lane
from bench.train.loop import Training
from methods.full import FullFineTuning

PAIRS = [Pair([5, 6, 7], [8, 9, 1]), Pair([5, 6], [8, 1]), Pair([7, 5, 9], [6, 1]), Pair([9, 8], [5, 6, 1])]
STAGES = [("adamw", stage, precision) for stage in range(4) for precision in ("fp32", "bf16")]


def training_of(folder: Path, stage: Any, precision: Any, **settings: Any) -> Training:
    method = FullFineTuning(FullFineTuning.Config())
    torch.manual_seed(0)
    model = method.patch(load_model(ModelSpec(path=str(folder)), weights_dtype(precision)))
    spec = TrainSpec(**{"learning_rate": 1e-2, "steps": 2, "batch_size": 4, "schedule": "constant", **settings})
    return Training(
        lanes=[Lane(method, model, spec, 0, lambda event: None)],
        architecture=architecture_of(model.config),
        resources=ResourceSpec(zero_stage=stage, precision=precision),
        rank=0,
        device=CPU,
        pad_token_id=0,
        meter=PhaseMeter(CPU),
    )


@pytest.mark.parametrize(
    ("optimizer", "stage", "precision"), [*STAGES, ("adafactor", 0, "fp32"), ("adafactor", 0, "bf16")]
)
def test_no_optimiser_has_state_before_the_first_step(
    optimizer: Any, stage: int, precision: str, tiny_models: dict[str, Path], one_rank: None
) -> None:
    training = training_of(tiny_models["gpt2"], stage, precision, optimizer=optimizer)
    (lane,) = training.lanes
    lane.begin(PAIRS, CPU)
    before = {name: tensor.detach().float().clone() for name, tensor in lane.model.named_parameters()}
    engine = training._engine()
    assert not lane.optimizer.state
    if stage < 3:
        for name, tensor in lane.model.named_parameters():
            assert torch.equal(tensor.float(), before[name]), "making the engine has changed nothing"
    engine.train()
    training._step(engine, [0], PAIRS, 1)
    # The first step of Adam is the learning rate, whatever the gradient: a step counter that is ahead shortens it.
    if optimizer == "adamw" and stage == 0:
        moved = torch.cat([(tensor - before[name]).flatten() for name, tensor in masters(lane).items()])
        assert float(moved.abs().median()) == pytest.approx(1e-2, rel=1e-3)
    states = list(lane.optimizer.state.values())
    assert {int(state["step"]) for state in states} == {1}
    tensors = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}, "moments are in fp32"
    engine.destroy()


def masters(lane: Lane) -> dict[str, torch.Tensor]:
    return {name: getattr(tensor, "fp32_master", tensor).detach() for name, tensor in lane.model.named_parameters()}


def test_an_engine_that_steps_as_it_is_made_fails_the_trial() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter])
    require_no_state(optimizer, "the engine")
    parameter.grad = torch.zeros(2)
    optimizer.step()
    with pytest.raises(EngineError, match=r"the engine has left state in AdamW before the first step \(exp_avg, "):
        require_no_state(optimizer, "the engine")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_gradient_that_is_not_finite_is_a_divergence_under_every_stage(
    stage: int, tiny_models: dict[str, Path], one_rank: None
) -> None:
    training = training_of(tiny_models["gpt2"], stage, "bf16")
    (lane,) = training.lanes
    head = lane.model.get_output_embeddings()
    head.register_forward_hook(lambda _, args, output: output * float("inf"))
    with pytest.raises(Diverged):
        training.run(PAIRS, PAIRS)


def test_stage_three_rounds_no_weight_that_the_model_keeps_exact() -> None:
    model = nn.Sequential(nn.Linear(2, 2, dtype=torch.bfloat16), nn.Linear(2, 2))
    require_nothing_to_round(model)
    model.requires_grad_(False)
    with pytest.raises(EngineError, match=r"would round 2 frozen weights .* among them 1\.weight"):
        require_nothing_to_round(model)
