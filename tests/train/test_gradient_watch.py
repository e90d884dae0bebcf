"""A trial fails, and names the tensor, if a trained tensor gets no gradient, on every engine."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from one_rank import CPU, training_alone
from torch import nn

from bench.conformance.tiny_models import FAMILIES, WordTokenizer, tiny_model
from bench.measure.phases import PhaseMeter
from bench.method import Method, MethodError
from bench.models.architecture import Pair, architecture_of
from bench.plugins.registry import load_method, targets
from bench.schema.trial import JsonDict, ResourceSpec, TrainSpec
from bench.train.gradient_watch import GradientWatch, _layer_of_expert
from bench.train.lane import Lane
from bench.train.loop import Training

PAIRS = [Pair([5, 6, 7], [8, 9, 1]), Pair([5, 6], [8, 1]), Pair([7, 5, 9], [6, 1]), Pair([9, 8], [5, 6, 1])] * 4


class Idle(Method):
    """Trains the norms, and beside them what nothing computes with, or what a zero closes off."""

    class Config(Method.Config):
        """Which of the two."""

        kind: str = "unused"

    def patch(self, model: Any) -> nn.Module:
        head = model.get_output_embeddings()
        width = head.weight.shape[1]
        for name, module in model.named_modules():
            if "norm" in name:
                module.requires_grad_(True)
        model.idle = nn.Parameter(torch.ones(width, dtype=head.weight.dtype))
        if self.config.kind == "closed":
            # A gate that starts at zero opens in the first step, a constant zero never does.
            model.gate = nn.Parameter(torch.zeros(width, dtype=head.weight.dtype))
            head.register_forward_pre_hook(
                lambda _, args: (args[0] * (1 + 0 * model.idle) + model.gate * model.behind,)
            )
            model.behind = nn.Parameter(torch.ones(width, dtype=head.weight.dtype))
        module: nn.Module = model
        return module


def lane(kind: str = "unused", precision: str = "fp32", **train: Any) -> Lane:
    method = Idle(Idle.Config(kind=kind))
    torch.manual_seed(0)
    model = method.patch(tiny_model("llama").to(torch.bfloat16 if precision == "bf16" else torch.float32))
    spec = TrainSpec(**{"learning_rate": 1e-2, "steps": 5, "batch_size": 4, **train})
    return Lane(method, model, spec, 0, lambda event: None)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_tensor_outside_of_the_graph_fails_under_every_stage(stage: Any, precision: Any, one_rank: None) -> None:
    unused = lane(precision=precision)
    training = Training(
        lanes=[unused],
        architecture=architecture_of(unused.model.config),
        resources=ResourceSpec(zero_stage=stage, precision=precision),
        rank=0,
        device=CPU,
        pad_token_id=0,
        meter=PhaseMeter(CPU),
    )
    with pytest.raises(MethodError, match=r"Idle: 1 of \d+ trained tensors get no gradient in the first step.*: idle$"):
        training.run(PAIRS, PAIRS[:2])


@pytest.mark.parametrize("warmup_steps", [0, 1])
def test_a_gradient_that_stays_zero_fails_and_one_that_waits_for_a_gate_does_not(
    warmup_steps: int, one_rank: None
) -> None:
    closed = lane("closed", warmup_steps=warmup_steps)
    with pytest.raises(MethodError, match=r"Idle: 1 of \d+ trained tensors get gradients that are all zero.*: idle$"):
        training_alone([closed]).run(PAIRS, PAIRS[:2])
    assert len(closed.train_curve) < 5


class Beside(nn.Module):
    """A low-rank product beside a linear layer, which hands on the layer's weight to who asks for it."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.down = nn.Parameter(torch.ones(2, base_layer.in_features))
        self.up = nn.Parameter(torch.zeros(base_layer.out_features, 2))

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base_layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + x @ self.down.T @ self.up.T


class BesideEveryLinear(Method):
    """Wraps what Mamba calls, and the one layer whose weight it reads."""

    def patch(self, model: Any) -> nn.Module:
        for mixer in [module for module in model.modules() if type(module).__name__ == "MambaMixer"]:
            for name in ("x_proj", "dt_proj", "out_proj"):
                setattr(mixer, name, Beside(getattr(mixer, name)))
        module: nn.Module = model
        return module


def test_a_layer_that_reads_the_weight_past_its_wrapper_is_found_out(one_rank: None) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=2, pad_token_id=0)
    method = BesideEveryLinear(BesideEveryLinear.Config())
    model = method.patch(MambaForCausalLM(config).requires_grad_(False))
    mamba = Lane(method, model, TrainSpec(learning_rate=1e-2, steps=4, batch_size=4), 0, lambda event: None)
    with pytest.raises(MethodError, match=r"4 of 12 trained .* no gradient .*: \S*layers.0.mixer.dt_proj.down"):
        training_alone([mamba]).run(PAIRS, PAIRS[:2])


def watched(
    *steps: dict[str, float], last: bool = False, after: JsonDict | None = None, idle: Sequence[str] = (), **config: Any
) -> GradientWatch:
    """A watch over the tensors a and b of three experts and a gate, after steps that gave them these gradients.

    ``after``: facts of a watch that this one takes up. ``idle``: what no step trains.
    """
    names = [f"layers.0.experts.{expert}.{name}" for expert in range(3) for name in ("a", "b")] + ["gate"]
    tensors = {name: nn.Parameter(torch.ones(2)) for name in names}
    model = nn.Module()
    model.named_parameters = lambda **_: tensors.items()  # type: ignore[assignment, method-assign]
    if config:
        model.config = type("Config", (), {"to_dict": lambda self: config})()
    watch = GradientWatch(Idle(Idle.Config()), model, CPU)
    if after is not None:
        watch.take_up(json.loads(json.dumps(after)))
    for number, gradients in enumerate(steps, start=1):
        sum((tensors[name] * value).sum() for name, value in gradients.items()).backward()  # type: ignore[union-attr]
        watch.after_backward(1e-3, last=last and number == len(steps), idle=[tensors[name] for name in idle])
    return watch


FIRST = {"layers.0.experts.0.a": 1.0, "layers.0.experts.0.b": 1.0, "gate": 1.0}


def test_an_expert_that_no_token_reached_is_waited_for_and_told(one_rank: None) -> None:
    second = {name.replace("experts.0", "experts.1"): value for name, value in FIRST.items()}
    watch = watched(FIRST, second, FIRST, last=True)
    assert watch.unreached == ["layers.0.experts.2.a", "layers.0.experts.2.b"]
    zero = {**FIRST, "layers.0.experts.1.a": 0.0, "layers.0.experts.1.b": 0.0}
    assert len(watched(zero, zero, zero).unreached) == 4
    every = {f"layers.0.experts.{expert}.{name}": 1.0 for expert in range(3) for name in "ab"}
    assert watched(FIRST, {**every, "gate": 0.0}).unreached == []


def test_experts_are_told_by_their_names() -> None:
    assert _layer_of_expert("block.1.mlp.experts.expert_3.wi.weight") == "block.1.mlp.experts.expert_.wi.weight"
    assert _layer_of_expert("layers.0.mlp.experts.7.up_proj.weight") == "layers.0.mlp.experts..up_proj.weight"
    assert _layer_of_expert("layers.0.mlp.shared_expert.up_proj.weight") is None


def test_the_same_tensor_of_all_experts_fails(one_rank: None) -> None:
    only_a = {"layers.0.experts.0.a": 1.0, "gate": 1.0}
    with pytest.raises(MethodError, match=re.escape("3 of 7 trained tensors get no gradient in the first step")):
        watched(only_a)
    zero_b = {**only_a, "layers.0.experts.0.b": 0.0}
    assert watched(zero_b).unreached, "after one step a zero says nothing"
    with pytest.raises(MethodError, match=r"all zero.*experts.0.b, layers.0.experts.1.b, layers.0.experts.2.b$"):
        watched(zero_b, zero_b)
    with pytest.raises(MethodError, match="all zero"):
        watched(zero_b, {**zero_b, "layers.0.experts.1.a": 1.0}, last=True)


def test_a_watch_goes_on_where_that_of_an_earlier_attempt_was(one_rank: None) -> None:
    second = {name.replace("experts.0", "experts.1"): value for name, value in FIRST.items()}
    before = watched(FIRST)
    whole, continued = watched(FIRST, second, last=True), watched(second, last=True, after=before.facts())
    assert continued.unreached == whole.unreached == ["layers.0.experts.2.a", "layers.0.experts.2.b"]
    assert continued.facts() == whole.facts()
    assert watched(after=before.facts()).unreached == before.unreached
    some, others = {"gate": 1.0}, {name: value for name, value in FIRST.items() if name != "gate"}
    skipping = watched(some, encoder_layerdrop=0.1).facts()
    watched(others, last=True, after=skipping, encoder_layerdrop=0.1)
    with pytest.raises(MethodError, match="1 of 7 trained tensors get no gradient"):
        watched(others, last=True, encoder_layerdrop=0.1)


def test_what_no_step_has_trained_is_not_unreached(one_rank: None) -> None:
    waiting = [f"layers.0.experts.{expert}.{name}" for expert in range(3) for name in "ab"]
    watch = watched({"gate": 1.0}, idle=waiting)
    assert watch.unreached == []
    after = watched(FIRST, after=watch.facts())
    assert after.unreached == waiting[2:], "it still watches for the others"


def test_layers_that_are_skipped_at_random_have_the_whole_training(one_rank: None) -> None:
    some = {"gate": 1.0}
    assert watched(some, some, FIRST, encoder_layerdrop=0.1).unreached
    with pytest.raises(MethodError, match="6 of 7 trained tensors get no gradient"):
        watched(some, some, last=True, encoder_layerdrop=0.1)
    with pytest.raises(MethodError, match="6 of 7 trained tensors get no gradient"):
        watched(some, encoder_layerdrop=0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_model_that_is_trained_whole_gets_a_gradient(family: str, one_rank: None) -> None:
    full = load_method(targets("method")["full"])
    method = full(full.Config(), WordTokenizer())
    model = method.patch(tiny_model(family).float())
    whole = Lane(method, model, TrainSpec(learning_rate=1e-3, steps=2, batch_size=4), 0, lambda event: None)
    training_alone([whole]).run(PAIRS, PAIRS[:2])
    assert whole.watch is not None
    assert whole.watch.unreached == []


def test_a_skipped_step_opens_nothing(one_rank: None) -> None:
    """LoRA's A has no gradient while B is zero, which B stays as long as fp16 looks for its scale."""
    model = nn.Module()
    model.inner, model.outer = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2))

    def step(watch: GradientWatch, skipped: bool) -> None:
        (model.inner * model.outer).sum().backward()
        watch.after_backward(1e-2, last=False)
        if skipped:
            watch.step_was_skipped()

    watch = GradientWatch(Idle(Idle.Config()), model, CPU)
    for skipped in (True, True, True, False):
        step(watch, skipped)
    with torch.no_grad():
        model.outer.add_(1)
    step(watch, skipped=False)
    assert watch.unreached == []
    with torch.no_grad():
        model.outer.zero_()
    watch = GradientWatch(Idle(Idle.Config()), model, CPU)
    step(watch, skipped=False)
    with pytest.raises(MethodError, match="all zero, so that training leaves them as they are: inner"):
        step(watch, skipped=False)
