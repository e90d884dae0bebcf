"""Queries, keys and values are found where the attention layers of each family make them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from bench.method import MethodError
from bench.tiny_models import tiny_model
from methods.transformer_parts import Role, attention_projections, linear_layers

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
# Class of the model to what its configuration calls sizes that have other names elsewhere.
MODELS: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {},
    "LlamaForCausalLM": {},
    "GPTNeoXForCausalLM": {},
    "BloomForCausalLM": {},
    "Phi3ForCausalLM": {},
    "OPTForCausalLM": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "GPTJForCausalLM": {"rotary_dim": 4},
    "Qwen3ForCausalLM": {"head_dim": 16},
    "Gemma3ForCausalLM": {"head_dim": 16},
    "T5ForConditionalGeneration": {"d_kv": 16, "decoder_start_token_id": 0},
    "BartForConditionalGeneration": {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_layers": 2},
}


def small_model(name: str) -> Any:
    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    return model_class(model_class.config_class(**{**SIZES, **MODELS[name]})).requires_grad_(False).eval()


def logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([[5, 9, 3, 7, 2, 8]])
    decoder = {"decoder_input_ids": torch.tensor([[4, 6, 1]])} if model.config.is_encoder_decoder else {}
    found: torch.Tensor = model(input_ids=ids, **decoder).logits
    return found


def fill(model: Any, role: Role, std: float) -> None:
    """Give the rows of a role other weights in every attention layer, and no bias."""
    for projection in attention_projections(model):
        if projection.role == role:
            layer = projection.layer
            outputs_first = layer.weight.T if isinstance(layer.module, Conv1D) else layer.weight
            outputs_first[projection.rows] = std * torch.randn(len(projection.rows), layer.in_features)
            if layer.module.bias is not None:
                layer.module.bias[projection.rows] = 0.0


@pytest.mark.parametrize("name", MODELS)
def test_roles_are_what_attention_takes_them_for(name: str) -> None:
    model = small_model(name)
    for role in ("query", "key", "value"):
        before = logits(model)
        fill(model, role, std=0.5)
        assert not torch.equal(logits(model), before), f"{role} does nothing"
    fill(model, "query", std=0.0)  # every token attends to all alike, so that keys say nothing any more
    before = logits(model)
    fill(model, "key", std=0.5)
    assert torch.equal(logits(model), before)
    fill(model, "value", std=0.0)  # attention yields nothing, so that no other role matters
    before = logits(model)
    fill(model, "query", std=0.5)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", MODELS)
def test_every_row_has_one_role(name: str) -> None:
    rows: dict[str, list[int]] = {}
    sizes = {}
    for projection in attention_projections(small_model(name)):
        rows.setdefault(projection.layer.name, []).extend(projection.rows.tolist())
        sizes[projection.layer.name] = projection.layer.out_features
    assert all(sorted(found) == list(range(sizes[layer])) for layer, found in rows.items())


def test_the_output_head_is_no_target() -> None:
    for family in ("gpt2", "llama"):
        assert not [layer.name for layer in linear_layers(tiny_model(family)) if "lm_head" in layer.name]


def test_unknown_attention_is_refused() -> None:
    class OddAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = nn.Linear(4, 12)

    model = tiny_model("llama")
    model.model.layers[0].self_attn = OddAttention()
    with pytest.raises(MethodError, match=r"self_attn \(OddAttention\): which of its linear layers make queries"):
        attention_projections(model)
