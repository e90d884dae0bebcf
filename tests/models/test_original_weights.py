"""Weights from before they were quantised are those of the files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from bench.models.base import empty_model, load_model
from bench.models.model_files import ModelError
from bench.models.original_weights import OriginalWeights
from bench.quantized.linear import quantized_layers
from bench.schema.trial import ModelSpec


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_each_layer_reads_the_weight_that_it_had(family: str, tiny_models: dict[str, Path]) -> None:
    spec = ModelSpec(path=str(tiny_models[family]), quantization="nf4")
    model, whole = load_model(spec, torch.bfloat16), load_model(spec.not_quantized, torch.float32)
    layers = dict(quantized_layers(model))
    assert layers
    for name, layer in layers.items():
        before = whole.get_submodule(name)
        expected = before.weight.T if isinstance(before, Conv1D) else before.weight
        assert layer.original is not None
        assert torch.equal(layer.original().float(), expected)


def test_a_tensor_that_no_file_has_or_that_is_another_one_is_told(tiny_models: dict[str, Path]) -> None:
    spec = ModelSpec(path=str(tiny_models["llama"]), quantization="nf4")
    layers = dict(quantized_layers(load_model(spec, torch.float32)))
    files = OriginalWeights(lambda: tiny_models["llama"], lambda: empty_model(spec.not_quantized))
    layer = layers["model.layers.0.self_attn.q_proj"]
    with pytest.raises(ModelError, match=r"no file in .* has a tensor 'model.layers.9.self_attn.q_proj.weight'"):
        files.read("model.layers.9.self_attn.q_proj", layer)
    with pytest.raises(ModelError, match=r"is not the weight of model.layers.1.self_attn.q_proj that was quantised"):
        files.read("model.layers.1.self_attn.q_proj", layer)
