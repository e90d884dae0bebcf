"""Queries, keys and values are found where the attention layers of each family make them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_families import MODELS, logits, small_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from bench.method import MethodError
from bench.tiny_models import tiny_model
from methods.blocks import blocks
from methods.transformer_parts import Role, attention_projections, linear_layers


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


FEED_FORWARD = {
    "GPT2LMHeadModel": ("c_fc", "c_proj"),
    "GPTNeoXForCausalLM": ("dense_h_to_4h", "dense_4h_to_h"),
    "BloomForCausalLM": ("dense_h_to_4h", "dense_4h_to_h"),
    "Phi3ForCausalLM": ("gate_up_proj", "down_proj"),
    "OPTForCausalLM": ("fc1", "fc2"),
    "GPTJForCausalLM": ("fc_in", "fc_out"),
    "T5ForConditionalGeneration": ("wi", "wo"),
    "BartForConditionalGeneration": ("fc1", "fc2"),
}


@pytest.mark.parametrize("name", MODELS)
def test_blocks_read_and_write_where_their_family_does(name: str) -> None:
    model = small_model(name)
    found = blocks(model)
    encoder_decoder = model.config.is_encoder_decoder
    assert len(found) == (4 if encoder_decoder else 2)
    assert [len(block.attention_outputs) for block in found] == ([1, 1, 2, 2] if encoder_decoder else [1, 1])
    for block in found:
        names = block.feed_forward_input.attribute, block.feed_forward_output.attribute
        assert names == FEED_FORWARD.get(name, ("gate_proj", "down_proj"))
        for output in block.attention_outputs:
            assert output.attribute in ("c_proj", "o_proj", "out_proj", "dense", "o")
            assert output.name.startswith(block.name)


def test_a_block_without_a_known_feed_forward_part_is_refused() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp = nn.Linear(32, 8)
    with pytest.raises(MethodError, match=r"layers.1 \(LlamaDecoderLayer\) has no known feed-forward part: .* \(mlp\)"):
        blocks(model)


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
