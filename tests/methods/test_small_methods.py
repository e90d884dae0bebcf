"""Adapters, (IA)^3, BitFit, LayerNorm and top blocks: what they compute, count and refuse, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from disturbed import disturb
from small_families import MODELS, logits, small_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from bench.conformance.method_checks import target_logits
from bench.conformance.tiny_models import tiny_model
from bench.method import Method, MethodError, trained_parameters
from methods.adapters import Adapters
from methods.bitfit import BitFit
from methods.ia3 import IA3
from methods.layer_norm import LayerNormTuning
from methods.lora import LoRA
from methods.parts.blocks import block_modules
from methods.parts.bottleneck import ParallelAdapterLayer, SequentialAdapterLayer
from methods.top_layers import TopLayers

FAMILIES = ["gpt2", "llama"]
TOLERANCE = 1e-10


def patched(method_class: type[Method], family: str, disturbed: bool = True, **config: Any) -> Any:
    torch.manual_seed(0)
    model: Any = method_class(method_class.Config(**config)).patch(tiny_model(family))
    if disturbed:
        disturb(model)
    return model.eval()


def batch_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return target_logits(model)


STARTS_AS_BASE: dict[str, Callable[[], Method]] = {
    "lora": lambda: LoRA(LoRA.Config(target_modules="all_linear")),
    "lora on queries and values": lambda: LoRA(LoRA.Config()),
    "adapters": lambda: Adapters(Adapters.Config(placement="parallel", bottleneck_size=4)),
    "ia3": lambda: IA3(IA3.Config()),
    "bitfit": lambda: BitFit(BitFit.Config()),
}


@pytest.mark.parametrize("method", STARTS_AS_BASE.values(), ids=STARTS_AS_BASE)
@pytest.mark.parametrize("name", MODELS)
def test_every_family_starts_as_the_base_model_and_can_leave_it(name: str, method: Callable[[], Method]) -> None:
    with torch.no_grad():
        expected = logits(small_model(name))
        model: Any = method().patch(small_model(name))
        torch.testing.assert_close(logits(model), expected)
        disturb(model)
        assert float((logits(model) - expected).abs().max()) > 1e-3


def bottleneck_by_hand(adapter: Any, x: torch.Tensor) -> torch.Tensor:
    hidden = (x @ adapter.down.weight.T + adapter.down.bias).clamp(min=0)
    return hidden @ adapter.up.weight.T + adapter.up.bias


@pytest.mark.parametrize("family", FAMILIES)
def test_a_parallel_adapter_runs_beside_the_feed_forward_part(family: str) -> None:
    model = patched(Adapters, family, placement="parallel", bottleneck_size=5)
    block, base = (block_modules(found)[1][1] for found in (model, tiny_model(family)))
    x = torch.randn(2, 5, model.config.hidden_size, dtype=torch.float64)
    (layer,) = [module for module in block.mlp.modules() if isinstance(module, ParallelAdapterLayer)]
    expected = base.mlp(x) + 4.0 * bottleneck_by_hand(layer.adapter, x)
    torch.testing.assert_close(block.mlp(x), expected, atol=TOLERANCE, rtol=0)


def test_houlsby_puts_an_adapter_behind_both_parts_of_a_block() -> None:
    model = patched(Adapters, "llama", placement="houlsby", bottleneck_size=5, scale=0.5)
    block, base = model.model.layers[0], tiny_model("llama").model.layers[0]
    assert isinstance(block.self_attn.o_proj, SequentialAdapterLayer)
    for layer, plain in ((block.self_attn.o_proj, base.self_attn.o_proj), (block.mlp.down_proj, base.mlp.down_proj)):
        inputs = torch.randn(2, 5, plain.in_features, dtype=torch.float64)
        y = plain(inputs)
        expected = y + 0.5 * bottleneck_by_hand(layer.adapter, y)
        torch.testing.assert_close(layer(inputs), expected, atol=TOLERANCE, rtol=0)
    assert block.input_layernorm.weight.requires_grad


def test_near_zero_starts_are_close_to_the_base_model() -> None:
    computed_logits = batch_logits(patched(Adapters, "gpt2", disturbed=False, placement="houlsby"))
    difference = float((computed_logits - batch_logits(tiny_model("gpt2"))).abs().max())
    assert 0 < difference < 0.05


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, _ in trained_parameters(model)}


def peft_model(family: str, config: Any) -> Any:
    from peft import get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(tiny_model(family), config)
    disturb(model)
    return model.eval()


def peft_ia3(family: str) -> Any:
    from peft import IA3Config

    names = {"llama": (["k_proj", "v_proj"], ["down_proj"]), "gpt2": (["c_attn"], ["mlp.c_proj"])}
    attention, feed_forward = names[family]
    config = IA3Config(
        target_modules=[*attention, *feed_forward], feedforward_modules=feed_forward, fan_in_fan_out=family == "gpt2"
    )
    return peft_model(family, config)


@pytest.mark.parametrize("family", FAMILIES)
def test_ia3_gives_the_logits_of_peft_both_ways(family: str) -> None:
    ours, theirs = patched(IA3, family), peft_ia3(family)
    pairs = []
    for name, mine in trained_parameters(ours):
        layer = theirs.get_submodule("base_model.model." + name.removesuffix(".ia3_scale"))
        their_scale = layer.ia3_l["default"].data.view(-1)
        if name.endswith("c_attn.ia3_scale"):  # peft scales the queries of the joined layer too
            their_scale[: len(mine) // 2] = 1.0
            their_scale = their_scale[len(mine) // 2 :]
        pairs.append((mine.data, their_scale))
    assert len(pairs) == len(trained_names(theirs))
    before = batch_logits(ours)
    for mine, their_scale in pairs:  # ours into theirs
        kept = their_scale.clone()
        their_scale.copy_(mine)
        mine.copy_(kept)
    torch.testing.assert_close(batch_logits(theirs), before, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(batch_logits(ours), before)
    for mine, their_scale in pairs:  # theirs into ours
        mine.copy_(their_scale)
    torch.testing.assert_close(batch_logits(ours), batch_logits(theirs), atol=TOLERANCE, rtol=0)


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
@pytest.mark.parametrize("family", FAMILIES)
def test_layer_norm_gives_the_logits_of_peft_both_ways(family: str) -> None:
    from peft import LNTuningConfig, TaskType

    ours = patched(LayerNormTuning, family)
    theirs = peft_model(family, LNTuningConfig(task_type=TaskType.CAUSAL_LM))
    names = {name: name.replace(".ln_tuning_layers.default", "") for name in trained_names(theirs)}
    assert {name.removeprefix("base_model.model.") for name in names.values()} == trained_names(ours)
    mine = dict(trained_parameters(ours))
    expected = batch_logits(theirs)
    assert not torch.allclose(batch_logits(ours), expected)
    for name, parameter in list(trained_parameters(theirs)):
        own = mine[names[name].removeprefix("base_model.model.")]
        own.data.copy_(parameter)
    torch.testing.assert_close(batch_logits(ours), expected, atol=TOLERANCE, rtol=0)
    disturb(ours)
    for name, parameter in list(trained_parameters(theirs)):
        parameter.data.copy_(mine[names[name].removeprefix("base_model.model.")])
    torch.testing.assert_close(batch_logits(theirs), batch_logits(ours), atol=TOLERANCE, rtol=0)


def test_bitfit_trains_what_the_model_has_and_gives_llama_what_it_lacks() -> None:
    own = trained_names(patched(BitFit, "gpt2", add_missing=False))
    assert own == {name for name, _ in tiny_model("gpt2").named_parameters() if name.endswith(".bias")}
    assert own == trained_names(patched(BitFit, "gpt2"))
    added = trained_names(patched(BitFit, "llama"))
    assert len(added) == 2 * 6
    assert not [name for name in added if "k_proj" in name]
    assert "lm_head.bias" not in added
    with pytest.raises(MethodError, match="LlamaForCausalLM has no bias to train; set add_missing: true"):
        patched(BitFit, "llama", add_missing=False)


def test_top_layers_are_the_last_blocks_and_nothing_else() -> None:
    assert all(name.startswith("transformer.h.1.") for name in trained_names(patched(TopLayers, "gpt2", num_layers=1)))
    with pytest.raises(MethodError, match="num_layers: 3 is more than the 2 blocks of this model"):
        patched(TopLayers, "gpt2", num_layers=3)
    decoder = trained_names(TopLayers(TopLayers.Config(num_layers=2)).patch(small_model("T5ForConditionalGeneration")))
    assert {name.rpartition(".block.")[0] for name in decoder} == {"decoder"}


D, LAYERS = 1024, 24
ONE_ADAPTER = 2 * D * 64 + 64 + D


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (TopLayers(TopLayers.Config()), 2 * (12 * D**2 + 13 * D)),  # Li & Liang's FT-top2: 25.19 M
        (Adapters(Adapters.Config()), LAYERS * ONE_ADAPTER),
        (Adapters(Adapters.Config(placement="houlsby")), LAYERS * (2 * ONE_ADAPTER + 4 * D) + 2 * D),
        (Adapters(Adapters.Config(placement="parallel", bottleneck_size=512)), LAYERS * (2 * D * 512 + 512 + D)),
        (IA3(IA3.Config()), LAYERS * (D + D + 4 * D)),
        (BitFit(BitFit.Config()), LAYERS * 11 * D + D),
        (LayerNormTuning(LayerNormTuning.Config()), LAYERS * 4 * D + 2 * D),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Method) else str(value),
)
def test_parameter_counts_of_gpt2_medium(method: Method, expected: int) -> None:
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_embd=D, n_layer=LAYERS, n_head=16)).requires_grad_(False)
    found = sum(parameter.numel() for _, parameter in trained_parameters(method.patch(model)))
    assert found == expected
