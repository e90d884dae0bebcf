"""The engine that is made around a loss leaves the optimiser as it was: Adam's first step is the first step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from one_rank import CPU
from torch import nn

from bench.measure.phases import PhaseMeter
from bench.measure.provenance import cpu_flags
from bench.models.architecture import Pair, architecture_of
from bench.models.base import load_model, weights_dtype
from bench.schema.trial import ModelSpec, ResourceSpec, TrainSpec
from bench.train.deepspeed_engine import EngineError, require_fp16, require_no_state, require_nothing_to_round
from bench.train.lane import Diverged, Lane, Trained
from bench.train.loop import Training
from bench.train.loss_scale import LossScale
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
    random_state = torch.get_rng_state()
    engine = training._engine()
    assert torch.equal(torch.get_rng_state(), random_state), "dropout is the same under every stage"
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
    require_nothing_to_round(model, "bf16")
    model.requires_grad_(False)
    with pytest.raises(EngineError, match=r"would round 2 frozen weights .* among them 1\.weight"):
        require_nothing_to_round(model, "bf16")


def in_fp16(stage: int) -> Any:
    """A stage in fp16; DeepSpeed refuses to compute in it where the processor has no units for it."""
    lacking = "avx512_fp16" not in cpu_flags()
    return pytest.param(stage, marks=pytest.mark.skipif(bool(stage) and lacking, reason="no units for fp16"))


@pytest.mark.parametrize("stage", [in_fp16(stage) for stage in range(4)])
def test_fp16_trains_what_fp32_trains_from_a_scale_that_fits(
    stage: int, tiny_models: dict[str, Path], one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.train.loss_scale.FIRST_POWER", 8)
    settings = {"steps": 4, "micro_batch_size": 2, "adam_epsilon": 1e-4, "max_grad_norm": 1.0}
    found = {
        precision: training_of(tiny_models["gpt2"], stage, precision, **settings).run(PAIRS, PAIRS)[0]
        for precision in ("fp32", "fp16")
    }
    trained, plain = found["fp16"], found["fp32"]
    assert isinstance(trained, Trained) and isinstance(plain, Trained)
    assert trained.cost.skipped_steps == 0
    losses = [[point.loss for point in one.train_curve] for one in (trained, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert losses[0] != losses[1]
    assert {tensor.dtype for tensor in trained.state.values()} == {torch.float32}, "masters are stored"
    moved = [float((trained.state[name] - plain.state[name]).abs().max()) for name in plain.state]
    assert max(moved) < 1e-2


@pytest.mark.parametrize("stage", [in_fp16(stage) for stage in range(4)])
def test_steps_that_overflow_in_fp16_are_skipped_and_counted(
    stage: int, tiny_models: dict[str, Path], one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scale is halved until gradients fit; meanwhile neither what is trained nor the schedule moves."""
    monkeypatch.setattr("bench.train.loss_scale.FIRST_POWER", 24)
    training = training_of(tiny_models["gpt2"], stage, "fp16", steps=12, warmup_steps=4, evaluate_every_steps=1)
    (trained,) = training.run(PAIRS, PAIRS)
    assert isinstance(trained, Trained)
    skipped = trained.cost.skipped_steps
    assert 3 <= skipped < 12
    rates = [point.learning_rate for point in trained.train_curve]
    assert len(set(rates[: skipped + 1])) == 1 < len(set(rates)), "skipped steps are the first ones"
    losses = [point.loss for point in trained.dev_curve]
    assert len(set(losses[:skipped])) == 1
    assert losses[-1] < losses[0]


def test_a_scale_follows_overflows_and_their_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.train.loss_scale.WINDOW", 2)
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scale = LossScale(optimizer)
    scales = []
    for slope in (1.0, float("inf"), float("nan"), 1.0, 1.0, 1.0, 1.0):
        scales.append(scale.loss_scale)
        optimizer.zero_grad()
        scale.scale((parameter * slope).sum()).backward()
        scale.step(optimizer)
        scale.update()
    assert scales == [2.0**power for power in (16, 16, 15, 14, 14, 14, 15)]
    assert parameter.tolist() == [-5.0, -5.0], "the scale is no part of a step, and two are skipped"
    other = LossScale(torch.optim.SGD([parameter], lr=1.0))
    other.load_state_dict(json.loads(json.dumps(scale.state_dict())))
    assert other.state_dict() == scale.state_dict()


@pytest.mark.parametrize("stage", [in_fp16(stage) for stage in (0, 2)])
def test_gradients_that_fit_at_no_scale_are_a_divergence(
    stage: int, tiny_models: dict[str, Path], one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.train.loss_scale.FIRST_POWER", 2)
    training = training_of(tiny_models["gpt2"], stage, "fp16", steps=20)
    (lane,) = training.lanes
    head = lane.model.get_output_embeddings()
    head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(Diverged, match="step 2 is not finite at any scale"):
        training.run(PAIRS, PAIRS)


def test_a_training_without_a_step_that_counts_is_a_divergence(
    tiny_models: dict[str, Path], one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.train.loss_scale.FIRST_POWER", 40)
    with pytest.raises(Diverged, match="all 2 steps were skipped, because gradients overflowed"):
        training_of(tiny_models["gpt2"], 0, "fp16", steps=2).run(PAIRS, PAIRS)


def test_fp16_under_zero_without_units_for_it_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(type(get_accelerator()), "is_fp16_supported", lambda _: False)
    with pytest.raises(EngineError, match="set precision: bf16 or fp32, or zero_stage: 0"):
        require_fp16(CPU)


@pytest.mark.parametrize("stage", [2, 3])
def test_dropout_is_the_same_under_every_stage_where_logits_have_a_bias(stage: int, one_rank: None) -> None:
    """BART adds one, which the first batch shows: that must not cost random numbers."""
    losses = [bart_losses(number) for number in (0, stage)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def bart_losses(stage: Any) -> list[float]:
    from transformers import BartConfig, BartForConditionalGeneration

    sizes = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    config = BartConfig(
        vocab_size=40,
        d_model=32,
        max_position_embeddings=64,
        dropout=0.1,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
        decoder_start_token_id=1,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        **sizes,
    )
    torch.manual_seed(0)
    method = FullFineTuning(FullFineTuning.Config())
    model = method.patch(BartForConditionalGeneration(config))
    spec = TrainSpec(learning_rate=1e-2, steps=2, batch_size=4, schedule="constant", adam_epsilon=1e-4)
    training = Training(
        lanes=[Lane(method, model, spec, 0, lambda event: None)],
        architecture=architecture_of(model.config),
        resources=ResourceSpec(zero_stage=stage),
        rank=0,
        device=CPU,
        pad_token_id=0,
        meter=PhaseMeter(CPU),
    )
    (trained,) = training.run(PAIRS, PAIRS)
    assert isinstance(trained, Trained)
    return [point.loss for point in trained.train_curve]
