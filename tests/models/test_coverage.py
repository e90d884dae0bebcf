"""The coverage of a method in records, measured without the method's help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import trial
from small_families import small_model

from bench.conformance.tiny_models import WordTokenizer, tiny_model
from bench.driver.prepare import _check_methods
from bench.method import Method, MethodError
from bench.models.base import empty_model, load_model
from bench.models.coverage import BaseModel, Coverage, patch_and_count
from bench.models.masters import compute_in
from bench.plugins.registry import load_method, resolve, targets
from bench.schema.record import ParameterCounts
from bench.schema.trial import MethodSpec, ModelSpec
from bench.schema.validation import ConfigError


def method_of(name: str, config: dict[str, Any]) -> Method:
    method_class: Any = load_method(resolve("method", name))
    method: Method = method_class(method_class.Config(**config), WordTokenizer())
    return method


def coverage(method: str, model: Any, **config: Any) -> Coverage:
    base = BaseModel(model)
    return base.coverage(method_of(method, config).patch(model))


LLAMA = {
    "embedding": 1,
    "query": 2,
    "key": 2,
    "value": 2,
    "attention_output": 2,
    "feed_forward": 6,
    "norm": 5,
    "head": 1,
}


@pytest.mark.parametrize(
    ("method", "config", "adapted"),
    [
        ("none", {}, {}),
        ("full", {}, LLAMA),
        ("lora", {}, {"query": 2, "value": 2}),
        ("lora", {"target_modules": ["down_proj"]}, {"feed_forward": 2}),
        (
            "adapters",
            {"placement": "houlsby", "bottleneck_size": 4},
            {"attention_output": 2, "feed_forward": 2, "norm": 5},
        ),
        ("adapters", {"placement": "parallel"}, {"feed_forward": 2}),
        ("ia3", {}, {"key": 2, "value": 2, "feed_forward": 2}),
        ("bitfit", {}, {"query": 2, "value": 2, "attention_output": 2, "feed_forward": 6}),
        ("layer_norm", {}, {"norm": 5}),
        ("prompt_tuning", {"num_prompt_tokens": 3}, {}),
        ("hf_peft", {"peft_type": "LOHA", "r": 2, "target_modules": ["q_proj"]}, {"query": 2}),
    ],
)
def test_layers_are_counted_by_what_they_are_for(method: str, config: dict[str, Any], adapted: dict[str, int]) -> None:
    counts_by_kind = coverage(method, tiny_model("llama"), **config)
    layers = {kind: counts for kind, counts in counts_by_kind.items() if kind not in ("attention_layer", "mixture")}
    assert layers == {kind: (adapted.get(kind, 0), number) for kind, number in LLAMA.items()}


def test_a_prefix_adapts_attention_layers_as_a_whole() -> None:
    counts_by_kind = coverage("prefix_tuning", tiny_model("llama"), num_prompt_tokens=3, parametrization="key_value")
    assert counts_by_kind["attention_layer"] == (2, 2)


def test_experts_are_counted_by_matrix_and_a_mixture_as_a_whole() -> None:
    family = "Qwen2MoeForCausalLM"
    everywhere = coverage("lora", small_model(family), target_modules="all_linear")
    assert everywhere["expert"] == (4, 4)
    assert everywhere["feed_forward"] == (6, 6)
    assert everywhere["router"] == (2, 4)  # of each block the gate of the shared expert, a linear layer
    assert coverage("lora", small_model(family))["expert"] == (0, 4)
    assert coverage("ia3", small_model(family))["expert"] == (2, 4)  # what the second matrix reads
    assert coverage("adapters", small_model(family), bottleneck_size=4)["mixture"] == (2, 2)


def test_fused_and_latent_layers_have_kinds_of_their_own() -> None:
    assert coverage("lora", tiny_model("gpt2"))["query_key_value"] == (2, 2)
    counts_by_kind = coverage("lora", small_model("DeepseekV3ForCausalLM"))
    assert counts_by_kind["query"] == counts_by_kind["key_value"] == (2, 2)
    assert counts_by_kind["latent"] == (0, 4)
    assert coverage("lora", small_model("MambaForCausalLM"), target_modules="all_linear")["state_space"] == (6, 10)


def test_a_record_tells_it_in_one_line_and_older_ones_load_without() -> None:
    counts = ParameterCounts(
        trained=1, stored=1, total=9, coverage={"query": (2, 2), "expert": (0, 16), "norm": (0, 5)}
    )
    assert counts.coverage_text == "adapts query 2/2; leaves expert, norm"
    assert ParameterCounts.model_validate_json(counts.model_dump_json()) == counts
    assert ParameterCounts.model_validate({"trained": 1, "stored": 1, "total": 9}).coverage_text is None


# What T5 keeps in fp32 under fp16 would be rounded by training it, or meets tensors in fp16 in what is put around it.
@pytest.mark.parametrize(
    ("method", "config"),
    [
        ("full", {}),
        ("bitfit", {}),
        ("adapters", {}),
        ("adapters", {"placement": "houlsby"}),
        ("lora", {"target_modules": "all_linear"}),
        ("top_layers", {}),
    ],
)
def test_what_a_model_keeps_in_fp32_is_not_trained_in_fp16(
    method: str, config: dict[str, Any], tiny_models: dict[str, Path]
) -> None:
    spec = ModelSpec(path=str(tiny_models["t5"]))
    subject = method_of(method, config)
    for model in (load_model(spec, torch.float16), empty_model(spec, torch.float16)):
        with pytest.raises(MethodError, match=r"keeps (en|de)coder\S*\.wo in fp32 under fp16.*precision: bf16 or fp32"):
            patch_and_count(subject, model)
    for dtype in (torch.float32, torch.bfloat16):
        patch_and_count(subject, empty_model(spec, dtype))


@pytest.mark.parametrize(
    ("method", "config"),
    [("lora", {}), ("loreft", {}), ("mam", {}), ("adapters", {"placement": "parallel"}), ("prompt_tuning", {})],
)
def test_what_is_trained_elsewhere_fits_a_model_that_keeps_some_layers_in_fp32(
    method: str, config: dict[str, Any], tiny_models: dict[str, Path]
) -> None:
    model, _ = patch_and_count(
        method_of(method, config), load_model(ModelSpec(path=str(tiny_models["t5"])), torch.float16)
    )
    compute_in(torch.float16, model)
    tokens = torch.tensor([[5, 6, 7]])
    outputs = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), decoder_input_ids=tokens)
    assert outputs.logits.isfinite().all()


def test_it_is_refused_before_the_sweep(tiny_models: dict[str, Path]) -> None:
    of_t5 = {
        "method": MethodSpec(name="full", target=targets("method")["full"]),
        "model": ModelSpec(path=str(tiny_models["t5"])),
    }
    _check_methods([trial(precision="bf16").model_copy(update=of_t5)], lambda line: None)
    with pytest.raises(ConfigError, match=r"methods: full on .*: transformers keeps .*wo in fp32 under fp16"):
        _check_methods([trial(precision="fp16").model_copy(update=of_t5)], lambda line: None)


def test_an_empty_model_has_the_dtypes_of_a_loaded_one(tiny_models: dict[str, Path]) -> None:
    spec = ModelSpec(path=str(tiny_models["t5"]))
    for dtype in (torch.float16, torch.bfloat16):
        loaded, empty = load_model(spec, dtype), empty_model(spec, dtype)
        assert {name: tensor.dtype for name, tensor in empty.named_parameters()} == {
            name: tensor.dtype for name, tensor in loaded.named_parameters()
        }
