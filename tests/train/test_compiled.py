"""Layers that are compiled while they train change nothing but rounding, and their compilations are no steady steps."""

from __future__ import annotations

import functools
import shutil
from typing import Any

import pytest
import torch
from one_rank import training_alone
from pydantic import ValidationError
from torch import nn

from bench.conformance.tiny_models import WordTokenizer, tiny_model
from bench.method import MethodError
from bench.models.architecture import Pair
from bench.plugins.registry import load_method, targets
from bench.schema.trial import ResourceSpec, TrainSpec
from bench.train.compiled import compiled_layers
from bench.train.lane import Lane, Trained

# The first three batches need no padding, or are short, so that later ones compile anew.
PAIRS = [Pair([5, 6], [8, 1])] * 6 + [Pair([5, 6, 7], [8, 9, 1]), Pair([4], [2, 1])] * 9


def trained(family: str, name: str, compiled: bool, **settings: Any) -> tuple[Lane, Trained, Any]:
    method_class = load_method(targets("method")[name])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        method = method_class(method_class.Config(), WordTokenizer())
        model = method.patch(tiny_model(family, dtype=torch.float32))
    spec = TrainSpec(learning_rate=1e-3, steps=12, batch_size=2, evaluate_every_steps=4, **settings)
    lane = Lane(method, model, spec, 0, lambda event: None)
    training = training_alone([lane], compile=compiled)
    (result,) = training.run(PAIRS, PAIRS[-4:])
    assert isinstance(result, Trained)
    return lane, result, training


CASES = {
    "prefix_tuning of llama": ("eager", "llama", "prefix_tuning", {}),
    "lora of llama": ("eager", "llama", "lora", {"gradient_checkpointing": True}),
}
ALL_CASES = {
    "lora of llama, in C++": ("inductor", "llama", "lora", {"gradient_checkpointing": True}),
    "prompt_tuning of gpt2": ("eager", "gpt2", "prompt_tuning", {}),
    "prefix_tuning of llama, in C++": ("inductor", "llama", "prefix_tuning", {}),
    "prompt_tuning of llama, in C++": ("inductor", "llama", "prompt_tuning", {}),
    "full fine-tuning of t5, in C++": ("inductor", "t5", "full", {}),
}


@pytest.mark.parametrize(
    ("backend", "family", "name", "settings"),
    [
        *(pytest.param(*case, id=name) for name, case in CASES.items()),
        *(pytest.param(*case, id=name, marks=pytest.mark.full) for name, case in ALL_CASES.items()),
    ],
)
def test_compiled_layers_train_the_same(
    backend: str,
    family: str,
    name: str,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    one_rank: None,
) -> None:
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("needs g++")
    torch.compiler.reset()
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend=backend))
    plain, _, _ = trained(family, name, False, **settings)
    compiled, result, training = trained(family, name, True, **settings)
    assert [point.loss for point in compiled.train_curve] == pytest.approx(
        [point.loss for point in plain.train_curve], abs=1e-4
    )
    assert 1 in training.compiling_steps
    late = [step for step in training.compiling_steps if step > 5]
    if family != "t5":  # whose encoder always has a mask
        assert late, "the first batch that needs padding comes late"
    assert result.cost.steady_steps == 12 - 5 - len(late)
    assert not any(module._compiled_call_impl for module in compiled.model.modules())


def test_if_every_step_behind_the_warm_up_compiles_they_count(one_rank: None) -> None:
    _, result, training = trained("llama", "lora", False)
    training.compiling_steps = set(range(1, 13))
    assert training._steady(range(1, 13)) == list(range(6, 13))
    training.compiling_steps = {2, 7, 8}
    assert training._steady(range(1, 13)) == [6, 9, 10, 11, 12]
    assert result.cost.steady_steps == 7


def test_without_a_compiler_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with (
        pytest.raises(MethodError, match="there is no 'no-such-compiler'; install it or set CXX"),
        compiled_layers([tiny_model("llama")]),
    ):
        pass


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(MethodError, match="Linear has no layers"), compiled_layers([nn.Linear(2, 2)]):
        pass


@pytest.mark.parametrize(("other", "why"), [({"zero_stage": 3}, "zero_stage below 3"), ({"fuse": 2}, "fuse: off")])
def test_what_compiling_does_not_go_with(other: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        ResourceSpec(compile=True, **other)
