"""LLaMA-Adapter against its authors' computation written out; MAM against its two parts. In float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers.models.gptj.modeling_gptj
from disturbed import disturb
from small_families import MODELS, logits, small_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from bench.conformance.method_checks import target_logits
from bench.conformance.tiny_models import WordTokenizer, tiny_model
from bench.method import MethodError, trained_parameters
from methods.adapters import Adapters
from methods.llama_adapter import LlamaAdapter, ZeroGatedAttentionLayer
from methods.mam import MixAndMatchAdapters
from methods.prefix_tuning import PrefixTuning

TOLERANCE = 1e-9
# Families whose attention layers do not attend through the attention functions of transformers.
OLD = ("BloomForCausalLM", "GPTJForCausalLM")
if hasattr(transformers.models.gptj.modeling_gptj, "ALL_ATTENTION_FUNCTIONS"):  # since 5.24
    OLD = tuple(name for name in OLD if name != "GPTJForCausalLM")


def adapted(model: Any, **config: Any) -> Any:
    torch.manual_seed(0)
    LlamaAdapter(LlamaAdapter.Config(**config)).patch(model)
    return model.eval()


def test_a_layer_computes_what_the_authors_code_computes() -> None:
    """alpaca_finetuning_v1/llama/model.py, lines 84 to 121, one row, with the rotation left out by zero angles."""
    model = adapted(tiny_model("llama"), num_layers=2, num_prompt_tokens=3)
    layer = model.model.layers[1].self_attn
    base = layer.base_attention_layer
    layer.gate.data = torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=torch.float64)
    x, size = torch.randn(1, 6, 32, dtype=torch.float64), 8
    still = (torch.ones(1, 6, size).double(), torch.zeros(1, 6, size).double())
    queries = base.q_proj(x)[0].view(6, 4, size)
    keys, prompt_keys = (base.k_proj(of)[..., :].view(-1, 2, size) for of in (x[0], layer.adapter_query))
    values, prompt_values = (base.v_proj(of).view(-1, 2, size) for of in (x[0], layer.adapter_query))
    heads = []
    for head in range(4):
        q, group = queries[:, head] / size**0.5, head // 2
        scores = (q @ keys[:, group].T).masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf"))
        own = scores.softmax(-1) @ values[:, group]
        read = (q @ prompt_keys[:, group].T).softmax(-1) @ prompt_values[:, group]
        heads.append(own + layer.gate[head].tanh() * read)
    expected = base.o_proj(torch.cat(heads, dim=-1))
    layer_output = layer(x, position_embeddings=still, attention_mask=None)[0][0]
    torch.testing.assert_close(layer_output, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in OLD])
def test_every_family_starts_as_the_base_model_and_can_leave_it(name: str) -> None:
    with torch.no_grad():
        expected = logits(small_model(name))
        model = adapted(small_model(name), num_layers=2, num_prompt_tokens=3)
        torch.testing.assert_close(logits(model), expected)
        for module in model.modules():
            if isinstance(module, ZeroGatedAttentionLayer):
                module.gate.fill_(1.0)
        assert float((logits(model) - expected).abs().max()) > 1e-3


@pytest.mark.parametrize("name", OLD)
def test_families_with_attention_of_their_own_are_refused(name: str) -> None:
    with pytest.raises(MethodError, match="does not attend through the attention functions"):
        adapted(small_model(name))


def test_sdpa_and_eager_attention_agree() -> None:
    found = []
    for attention in ("sdpa", "eager"):
        model = tiny_model("gpt2")
        model.set_attn_implementation(attention)
        adapted(model, num_layers=2)
        for module in model.modules():
            if isinstance(module, ZeroGatedAttentionLayer):
                module.gate.data.fill_(0.7)
        found.append(target_logits(model))
    torch.testing.assert_close(found[0], found[1], atol=TOLERANCE, rtol=0)


def test_llama_7b_trains_as_many_parameters_as_the_paper_says() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11008)
        ).requires_grad_(False)
    adapted(model)
    count = sum(parameter.numel() for _, parameter in trained_parameters(model))
    assert count == 30 * (10 * 4096 + 32)  # the paper's 1.2 M
    layers = [isinstance(layer.self_attn, ZeroGatedAttentionLayer) for layer in model.model.layers]
    assert layers == [False] * 2 + [True] * 30


def test_more_layers_than_there_are_is_refused() -> None:
    with pytest.raises(MethodError, match="num_layers: 3 is more than the 2 layers of this model"):
        adapted(tiny_model("llama"), num_layers=3)


MAM: dict[str, Any] = {"num_prompt_tokens": 3, "parametrization": "key_value"}


def mam(family: str, **config: Any) -> tuple[MixAndMatchAdapters, Any]:
    torch.manual_seed(0)
    method = MixAndMatchAdapters(MixAndMatchAdapters.Config(**config), WordTokenizer())
    model: Any = method.patch(tiny_model(family))
    disturb(model)
    return method, model.eval()


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_mam_is_prefix_tuning_and_parallel_adapters(family: str) -> None:
    method, model = mam(family, bottleneck_size=4, scale=2.0, **MAM)
    both: Any = tiny_model(family)
    adapters = Adapters(Adapters.Config(placement="parallel", bottleneck_size=4, scale=2.0))
    prefix = PrefixTuning(PrefixTuning.Config(**MAM), WordTokenizer())
    prefix.patch(adapters.patch(both))
    state = method.adapter_state(model)
    with torch.no_grad():
        for name, parameter in trained_parameters(both):
            parameter.copy_(state.pop(name))
    assert not state
    torch.testing.assert_close(target_logits(both.eval()), target_logits(model), atol=TOLERANCE, rtol=0)


def test_mam_does_not_store_the_mlp_of_its_prefix() -> None:
    method, model = mam("gpt2", bottleneck_size=4, num_prompt_tokens=3, mlp_hidden_size=16)
    trained = {name for name, _ in trained_parameters(model)}
    stored = method.adapter_state(model)
    assert any("prefix_decoder.mlp" in name for name in trained)
    assert not [name for name in stored if "mlp.0" in name or "embedding" in name]
    assert sum("prefix_keys" in name for name in stored) == 2
    fresh_method, fresh = mam("gpt2", bottleneck_size=4, num_prompt_tokens=3, mlp_hidden_size=16)
    fresh_method.load_adapter_state(fresh, {name: tensor.clone() for name, tensor in stored.items()})
    torch.testing.assert_close(target_logits(fresh), target_logits(model), atol=TOLERANCE, rtol=0)


def test_parameter_counts_of_gpt2_medium() -> None:
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16)).requires_grad_(False)
    method = MixAndMatchAdapters(MixAndMatchAdapters.Config())
    method.patch(model)
    adapters = 24 * (2 * 1024 * 512 + 512 + 1024)
    mlp = 30 * 1024 + (1024 * 800 + 800) + (800 + 1) * 24 * 2 * 1024
    assert sum(parameter.numel() for _, parameter in trained_parameters(model)) == adapters + mlp
    stored = sum(tensor.numel() for tensor in method.adapter_state(model).values())
    assert stored == adapters + 30 * 24 * 2 * 1024
