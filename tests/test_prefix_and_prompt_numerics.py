"""Prefix and prompt tuning against independent statements of what they compute, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, StaticCache

from bench.architecture import Side, padded
from bench.method import MethodError, positions_of, trained_parameters
from bench.tiny_models import WordTokenizer, tiny_model
from methods.attention_prefix import attention_layers, causal_mask, prefix_mask
from methods.prefix_tuning import PrefixTuning, PrefixTuningAttentionLayer
from methods.prompt_tuning import PromptTuning

FAMILIES = ["gpt2", "llama"]
ROWS = ((7, 21, 5, 40, 13, 2, 33), (11, 3, 60), (25, 8, 14, 90, 6))
TOLERANCE = 1e-9


def logits_of(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids, attention_mask=mask, position_ids=positions_of(mask)).logits
    return logits


def patched(method_class: Any, family: str, attention: str = "sdpa", **config: Any) -> Any:
    torch.manual_seed(0)
    model = tiny_model(family)
    model.set_attn_implementation(attention)
    method_class(method_class.Config(**config), WordTokenizer()).patch(model)
    for _, parameter in trained_parameters(model):
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def prefix_layers(model: Any) -> list[PrefixTuningAttentionLayer]:
    return [module for module in model.modules() if isinstance(module, PrefixTuningAttentionLayer)]


def attention_by_hand(layer: Any, prompt: torch.Tensor, x: torch.Tensor, family: str) -> torch.Tensor:
    """softmax(q_x [W_k p; W_k x]^T / sqrt(hd) + mask) [W_v p; W_v x] with biases, written out. One row, no rotation."""
    both = torch.cat([prompt, x])  # (P + T, D)
    if family == "gpt2":
        q, k, v = (both @ layer.c_attn.weight + layer.c_attn.bias).split(x.shape[-1], dim=-1)
        heads = key_heads = layer.num_heads
    else:
        q, k, v = layer.q_proj(both), layer.k_proj(both), layer.v_proj(both)
        heads, key_heads = layer.config.num_attention_heads, layer.config.num_key_value_heads
    size = q.shape[-1] // heads
    num_prompt, num_tokens = len(prompt), len(x)
    outputs = []
    for head in range(heads):
        group = head // (heads // key_heads)
        queries = q[num_prompt:, head * size : (head + 1) * size]
        keys, values = (part[:, group * size : (group + 1) * size] for part in (k, v))
        scores = queries @ keys.T / size**0.5
        for token in range(num_tokens):
            scores[token, num_prompt + token + 1 :] = float("-inf")
        outputs.append(scores.softmax(-1) @ values)
    joined = torch.cat(outputs, dim=-1)
    return joined @ layer.c_proj.weight + layer.c_proj.bias if family == "gpt2" else layer.o_proj(joined)


@pytest.mark.parametrize("path", ["fused", "literal"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_layer_equals_prepending_projected_keys_and_values(family: str, attention: str, path: str) -> None:
    model = patched(PrefixTuning, family, attention, num_prompt_tokens=4, path=path)
    layer = prefix_layers(model)[1]
    x = torch.randn(1, 6, model.config.hidden_size, dtype=torch.float64)
    kwargs: dict[str, Any] = {"attention_mask": None}
    if family == "llama":  # no rotation: the statement by hand has none
        size = model.config.head_dim
        kwargs["position_embeddings"] = (torch.ones(1, 6, size).double(), torch.zeros(1, 6, size).double())
        layer.prompt_cos = torch.ones(1, 4, size).double()
        layer.prompt_sin = torch.zeros(1, 4, size).double()
    found = layer(x, **kwargs)[0][0]
    expected = attention_by_hand(layer.base_attention_layer, layer.prompt_embeddings.weight, x[0], family)
    # transformers' eager attention of Llama takes the softmax in float32
    tolerance = 1e-5 if attention == "eager" and family == "llama" else TOLERANCE
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_fused_path_equals_literal_path(family: str, side: Side) -> None:
    ids, mask = padded(ROWS, 0, side)
    outputs, gradients = [], []
    for path in ("fused", "literal"):
        model = patched(PrefixTuning, family, path=path)
        logits = logits_of(model, ids, mask)
        logits[mask == 1].logsumexp(-1).sum().backward()
        outputs.append(logits.detach()[mask == 1])
        gradients.append([parameter.grad for _, parameter in trained_parameters(model)])
    torch.testing.assert_close(outputs[0], outputs[1], atol=TOLERANCE, rtol=0)
    for fused, literal in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, literal, atol=TOLERANCE, rtol=0)


def test_prefix_starts_as_the_frozen_model_reading_the_initial_text() -> None:
    text = "write the facts down"
    ids = WordTokenizer()(text)["input_ids"]
    method = PrefixTuning(PrefixTuning.Config(num_prompt_tokens=len(ids), init_text=text), WordTokenizer())
    model = method.patch(tiny_model("llama")).eval()
    tokens = torch.tensor([ROWS[0]])
    together = torch.tensor([[*ids, *ROWS[0]]])
    with torch.no_grad():
        expected = tiny_model("llama")(together).logits[:, len(ids) :]
        found = model(tokens, attention_mask=torch.ones_like(tokens)).logits
    # rotary tables are float32 whatever the model is
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_equals_concatenating_embeddings(family: str, attention: str) -> None:
    model = patched(PromptTuning, family, attention, num_prompt_tokens=5)
    base = tiny_model(family)
    base.set_attn_implementation(attention)
    prompt = model.base_model.prompt_embeddings.weight
    for row in ROWS:
        ids, mask = padded([row], 0, "right")
        embeddings = torch.cat([prompt[None], base.get_input_embeddings()(ids)], dim=1)
        expected = base(inputs_embeds=embeddings).logits[:, len(prompt) :]
        torch.testing.assert_close(logits_of(model, ids, mask), expected, atol=1e-5, rtol=0)


def test_prompt_sits_right_before_the_first_real_token() -> None:
    model = patched(PromptTuning, "gpt2", num_prompt_tokens=5)
    base, prompt = tiny_model("gpt2"), model.base_model.prompt_embeddings.weight
    ids, mask = padded(ROWS, 0, "left")
    for row, tokens in enumerate(ROWS):
        pads = ids.shape[1] - len(tokens)
        embeddings = base.get_input_embeddings()(ids[row : row + 1])
        together = torch.cat([embeddings[:, :pads], prompt[None], embeddings[:, pads:]], dim=1)
        whole_mask = torch.cat([mask[row, :pads], torch.ones(5, dtype=torch.long), mask[row, pads:]])[None]
        expected = base(inputs_embeds=together, attention_mask=whole_mask, position_ids=positions_of(whole_mask)).logits
        found = logits_of(model, ids, mask)[row, pads:]
        torch.testing.assert_close(found, expected[0, pads + 5 :], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("method_class", [PrefixTuning, PromptTuning])
@pytest.mark.parametrize("family", FAMILIES)
def test_step_by_step_with_a_cache_equals_one_pass(method_class: Any, family: str) -> None:
    model = patched(method_class, family)
    tokens = torch.tensor([ROWS[0]])
    mask = torch.ones_like(tokens)
    with torch.no_grad():
        expected = logits_of(model, tokens, mask)
        for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=16)):
            steps = [
                model(
                    input_ids=tokens[:, start:end],
                    attention_mask=mask[:, :end],
                    position_ids=torch.arange(start, end)[None],
                    past_key_values=cache,
                    use_cache=True,
                ).logits
                for start, end in ((0, 3), (3, 5), (5, 6), (6, 7))
            ]
            torch.testing.assert_close(torch.cat(steps, dim=1), expected, atol=TOLERANCE, rtol=0)
            assert cache.get_seq_length() == 7, "the prompt lives in the cache"


def test_a_missing_mask_is_built_because_transformers_would_drop_the_newest_keys() -> None:
    layer = next(attention_layers(tiny_model("llama")))[2]
    mask = prefix_mask(None, 2, torch.zeros(1, 3, 32), None, layer)
    expected = [[True, True, True, False, False], [True, True, True, True, False], [True] * 5]
    assert mask is not None
    assert mask.tolist() == [[expected]]


def test_causal_mask_counts_what_is_cached() -> None:
    model = tiny_model("llama")
    cache = DynamicCache(config=model.config)
    model(torch.tensor([[5, 6, 7]]), past_key_values=cache, use_cache=True)
    layer = next(attention_layers(model))[2]
    mask = causal_mask(2, cache, layer, torch.device("cpu"))
    assert mask.tolist() == [[[[True, True, True, True, False], [True] * 5]]]


def test_a_model_without_known_attention_is_refused() -> None:
    with pytest.raises(MethodError, match="Sequential has no attention layer to patch"):
        list(attention_layers(nn.Sequential(nn.Linear(2, 2))))


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ValueError, match="init_text has no effect with init: vocabulary"):
        PrefixTuning.Config(init="vocabulary", init_text="hello")
    with pytest.raises(ValueError, match="init_std has no effect with init: text"):
        PromptTuning.Config(init_std=0.1)


def test_parameter_counts_follow_the_formulas() -> None:
    prompt = patched(PromptTuning, "llama", num_prompt_tokens=20)
    assert sum(p.numel() for _, p in trained_parameters(prompt)) == 20 * 32
    prefix = patched(PrefixTuning, "llama", num_prompt_tokens=10)
    assert sum(p.numel() for _, p in trained_parameters(prefix)) == 2 * 10 * 32
