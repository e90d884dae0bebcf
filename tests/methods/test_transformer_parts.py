"""Queries, keys and values are found where the attention layers of each family make them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_families import MODELS, UNUSUAL_ATTENTION, UNUSUAL_BLOCKS, logits, small_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from bench.conformance.tiny_models import tiny_model
from bench.method import MethodError
from methods.parts.blocks import blocks
from methods.parts.joined_projections import Role
from methods.parts.roles import projections_in_every_block
from methods.parts.transformer_parts import attention_projections, linear_layers
from methods.parts.weight_reads import uses_of


def fill(model: Any, role: Role, std: float) -> None:
    """Give the rows of a role other weights in every attention layer, and no bias."""
    for projection in attention_projections(model):
        if projection.role == role:
            layer = projection.layer
            outputs_first = layer.module.weight.T if isinstance(layer.module, Conv1D) else layer.module.weight
            outputs_first[projection.rows] = std * torch.randn(len(projection.rows), layer.in_features)
            if layer.module.bias is not None:
                layer.module.bias[projection.rows] = 0.0


@pytest.mark.parametrize("name", [*MODELS, *UNUSUAL_ATTENTION])
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
    model_blocks = blocks(model)
    encoder_decoder = model.config.is_encoder_decoder
    assert len(model_blocks) == (4 if encoder_decoder else 2)
    assert [len(block.attention_outputs) for block in model_blocks] == ([1, 1, 2, 2] if encoder_decoder else [1, 1])
    for block in model_blocks:
        names = block.plain.readers[0].attribute, block.plain.writer.attribute
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


# What each feed-forward part is called, and the linear layers through which it reads and writes; experts as tensors
# have none. In the order of the blocks.
PARTS = {
    "Gemma3nForCausalLM": ["mlp: gate_proj > down_proj"] * 4,
    "Gemma4ForCausalLM": ["mlp: gate_proj > down_proj"] * 4,
    "FalconH1ForCausalLM": ["feed_forward: gate_proj > down_proj"] * 2,
    "Lfm2ForCausalLM": ["feed_forward: w1 > w2"] * 2,
    "Qwen2MoeForCausalLM": ["mlp.shared_expert: gate_proj > down_proj, mlp.experts"] * 2,
    "MixtralForCausalLM": ["mlp.experts"] * 2,
    "Glm4MoeForCausalLM": [
        "mlp: gate_proj > down_proj",
        "mlp.shared_experts: gate_proj > down_proj, mlp.experts",
    ],
    "DeepseekV3ForCausalLM": [
        "mlp: gate_proj > down_proj",
        "mlp.shared_experts: gate_proj > down_proj, mlp.experts",
    ],
    "Llama4ForCausalLM": [
        "feed_forward: gate_proj > down_proj",
        "feed_forward.shared_expert: gate_proj > down_proj, feed_forward.experts",
    ],
    "JambaForCausalLM": ["feed_forward: gate_proj > down_proj", "feed_forward.experts"],
    "GraniteMoeSharedForCausalLM": ["shared_mlp: input_linear > output_linear, block_sparse_moe.experts"] * 2,
}


@pytest.mark.parametrize("name", PARTS)
def test_feed_forward_parts_are_found_among_what_looks_like_them(name: str) -> None:
    found = []
    for block in blocks(small_model(name)):
        parts = [f"{part.name}: {part.readers[0].attribute} > {part.writer.attribute}" for part in block.feed_forward]
        parts += [part.name for part in block.experts]
        found.append(", ".join(part.removeprefix(f"{block.name}.") for part in parts))
    assert found == PARTS[name]


# Linear layers in whose place nothing would have its part, and why.
PAST_THE_LAYER = {
    "MambaForCausalLM": ("backbone.layers.1.mixer.dt_proj", "MambaMixer reads its weight itself"),
    "JambaForCausalLM": ("model.layers.0.mamba.dt_proj", "JambaMambaMixer reads its weight itself"),
    "RwkvForCausalLM": ("rwkv.blocks.0.attention.output", "RwkvModel reads its weight itself"),
    "Gemma3nForCausalLM": ("model.layers.3.altup.prediction_coefs", "reads its weight itself"),
    "Llama4ForCausalLM": ("model.layers.1.feed_forward.router", "puts out more than the one tensor"),
    "Zamba2ForCausalLM": (
        "model.layers.1.shared_transformer.feed_forward.gate_up_proj_adapter_list.1.0",
        "the model never calls it",
    ),
}


@pytest.mark.parametrize("name", PAST_THE_LAYER)
def test_layers_without_a_part_in_the_output_are_no_targets(name: str) -> None:
    model = small_model(name)
    layer, reason = PAST_THE_LAYER[name]
    assert model.get_submodule(layer) is not None
    assert reason in str(uses_of(model).why_without_part(layer))
    assert layer not in {found.name for found in linear_layers(model)}


@pytest.mark.parametrize("name", UNUSUAL_BLOCKS)
def test_watching_a_model_leaves_it_as_it_was(name: str) -> None:
    model = small_model(name)
    before = {
        tensor_name: (id(tensor), tensor.clone()) for tensor_name, tensor in model.state_dict(keep_vars=True).items()
    }
    uses = uses_of(model)
    after = model.state_dict(keep_vars=True)
    assert uses.complete or name == "JetMoeForCausalLM"
    assert not model.training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(id(after[each]) == was and torch.equal(after[each], value) for each, (was, value) in before.items())


def test_a_role_that_is_missing_in_a_block_is_refused_by_its_name() -> None:
    with pytest.raises(MethodError, match=r"model.layers.0 \(JambaMambaDecoderLayer\) makes no query and no value"):
        projections_in_every_block(small_model("JambaForCausalLM"), ("query", "value"))
    model = tiny_model("llama")
    attention = model.model.layers[1].self_attn
    attention.mixer = attention.v_proj
    del attention.v_proj
    with pytest.raises(MethodError, match=r"model.layers.1.self_attn \(LlamaAttention\): .* there is none for value"):
        projections_in_every_block(model, ("query",))


def test_keys_and_values_of_an_earlier_layer_are_adapted_there() -> None:
    projections = projections_in_every_block(small_model("Gemma4ForCausalLM"), ("query", "value"))
    assert [projection.role for projection in projections].count("query") == 4
    assert [projection.role for projection in projections].count("value") == 2
