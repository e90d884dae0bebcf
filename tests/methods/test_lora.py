"""LoRA against its definition, against Hugging Face peft, and against itself merged, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from disturbed import disturb
from transformers import GPT2Config, GPT2LMHeadModel

from bench.conformance.method_checks import target_logits
from bench.conformance.tiny_models import tiny_model
from bench.method import MethodError, trained_parameters
from methods.lora import LoRA, LoRALayer

FAMILIES = ["gpt2", "llama", "t5"]
TOLERANCE = 1e-10


def patched(family: str, **config: Any) -> tuple[LoRA, Any]:
    """A patched tiny model whose product is not zero."""
    torch.manual_seed(0)
    method = LoRA(LoRA.Config(**config))
    model: Any = method.patch(tiny_model(family))
    disturb(model)
    return method, model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return target_logits(model)


def test_queries_and_values_of_a_fused_layer_are_adapted_and_keys_are_not() -> None:
    _, model = patched("gpt2", rank=2, alpha=6)
    layer = model.transformer.h[0].attn.c_attn
    assert isinstance(layer, LoRALayer)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    queries, keys, values = (layer(x) - layer.base_layer(x)).split(24, dim=-1)
    a_query, a_value = layer.lora_A.split(2)
    b_query, b_value = layer.lora_B.split(24)
    torch.testing.assert_close(queries, 3 * x @ a_query.T @ b_query.T, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(values, 3 * x @ a_value.T @ b_value.T, atol=TOLERANCE, rtol=0)
    assert not keys.any()


def test_rank_4_on_queries_and_values_of_gpt2_medium_is_393216_parameters() -> None:
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16)).requires_grad_(False)
    patched_model = LoRA(LoRA.Config(rank=4)).patch(model)
    assert sum(parameter.numel() for _, parameter in trained_parameters(patched_model)) == 393_216


@pytest.mark.parametrize("targets", [["query", "value"], "all_linear"], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_equals_unmerged_and_unmerging_restores_every_bit(family: str, targets: Any) -> None:
    method, model = patched(family, target_modules=targets)
    expected = logits(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    method.merge(model)
    torch.testing.assert_close(logits(model), expected, atol=TOLERANCE, rtol=0)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    method.unmerge(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def peft_model(family: str, **config: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(tiny_model(family), LoraConfig(fan_in_fan_out=family == "gpt2", **config))
    disturb(model)
    return model.eval()


def peft_name(name: str) -> str:
    return f"base_model.model.{name}.default.weight"


@pytest.mark.parametrize(
    ("family", "ours", "theirs"),
    [
        ("llama", ["query", "value"], ["q_proj", "v_proj"]),
        ("llama", ["o_proj", "down_proj"], ["o_proj", "down_proj"]),
        ("llama", "all_linear", "all-linear"),
        ("gpt2", ["c_attn"], ["c_attn"]),
        ("gpt2", "all_linear", ["c_attn", "c_proj", "c_fc"]),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_same_weights_give_the_logits_of_peft_both_ways(family: str, ours: Any, theirs: Any) -> None:
    method, model = patched(family, rank=3, alpha=7, target_modules=ours)
    other = peft_model(family, r=3, lora_alpha=7, target_modules=theirs)
    their_state, our_state = dict(trained_parameters(other)), method.adapter_state(model)
    assert {peft_name(name) for name in our_state} == their_state.keys()
    # theirs into ours
    expected = logits(other)
    assert float((logits(model) - expected).abs().max()) > 0.1
    method.load_adapter_state(model, {name: their_state[peft_name(name)] for name in our_state})
    torch.testing.assert_close(logits(model), expected, atol=TOLERANCE, rtol=0)
    # ours into theirs
    _, model = patched(family, rank=3, alpha=7, target_modules=ours)
    for name, tensor in trained_parameters(model):
        their_state[peft_name(name)].data.copy_(tensor)
    torch.testing.assert_close(logits(other), logits(model), atol=TOLERANCE, rtol=0)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_parts_of_a_fused_layer_are_a_peft_layer_of_their_ranks_together() -> None:
    _, model = patched("gpt2", rank=2, alpha=6)
    other = peft_model("gpt2", r=4, lora_alpha=12, target_modules=["c_attn"])  # the same scaling: 12 / 4 = 6 / 2
    for name, module in model.named_modules():
        if isinstance(module, LoRALayer):
            theirs = other.get_submodule(f"base_model.model.{name}")
            theirs.lora_A["default"].weight.data.copy_(module.lora_A)
            theirs.lora_B["default"].weight.data.copy_(module.up())
    torch.testing.assert_close(logits(other), logits(model), atol=TOLERANCE, rtol=0)


def test_dropout_acts_in_training_only() -> None:
    _, model = patched("llama", dropout=0.5)
    calm = logits(model)
    assert torch.equal(logits(model), calm)
    assert not torch.equal(logits(model.train()), calm)
    _, without = patched("llama")
    assert not [name for name, _ in without.named_modules() if name.endswith("dropout")]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["c_atn"], "no linear layer is named 'c_atn'; this model has c_attn, c_fc, c_proj, and query"),
        (["query", "c_attn"], "transformer.h.0.attn.c_attn is named as a module and makes query"),
    ],
)
def test_targets_that_match_nothing_or_clash_are_refused(targets: list[str], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        LoRA(LoRA.Config(target_modules=targets)).patch(tiny_model("gpt2"))


@pytest.mark.parametrize("targets", [[], "", ["query", "query"]])
def test_targets_without_meaning_are_refused(targets: Any) -> None:
    with pytest.raises(ValueError, match=r"target_modules|once"):
        LoRA.Config(target_modules=targets)
