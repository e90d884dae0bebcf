"""Prefix tuning against independent statements of what it computes, in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from disturbed import disturb
from soft_prompts import ROWS, TOLERANCE, logits_of, patched, patched_with, prefix_layers
from torch import nn
from transformers import (
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    StaticCache,
)

from bench.conformance.method_checks import target_logits
from bench.conformance.tiny_models import LLAMA_LIKE, WordTokenizer, tiny_model
from bench.method import MethodError, trained_parameters
from bench.models.architecture import Side, padded
from methods.parts.attention_prefix import causal_mask, prefix_mask
from methods.parts.attention_sites import attention_sites
from methods.prefix_tuning import PrefixTuning
from methods.prompt_tuning import PromptTuning

FAMILIES = ["gpt2", "llama"]


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
    layer_output = layer(x, **kwargs)[0][0]
    expected = attention_by_hand(layer.base_attention_layer, layer.prompt_embeddings.weight, x[0], family)
    # transformers' eager attention of Llama takes the softmax in float32
    tolerance = 1e-5 if attention == "eager" and family == "llama" else TOLERANCE
    torch.testing.assert_close(layer_output, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"infix": True}, {"infix": True, "shift_positions": True}], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_fused_path_equals_literal_path(family: str, side: Side, settings: dict[str, Any]) -> None:
    outputs, gradients = [], []
    for path in ("fused", "literal"):
        model = patched(PrefixTuning, family, path=path, **settings)
        logits = target_logits(model, side=side)
        logits.logsumexp(-1).sum().backward()
        outputs.append(logits.detach())
        gradients.append([parameter.grad for _, parameter in trained_parameters(model)])
    tolerance = 1e-7 if family == "gemma3" else TOLERANCE  # its norms are taken in float32
    torch.testing.assert_close(outputs[0], outputs[1], atol=tolerance, rtol=0)
    for fused, literal in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, literal, atol=tolerance, rtol=0)


@pytest.mark.parametrize("parametrization", ["embedding", "key_value", "mlp"])
@pytest.mark.parametrize(("family", "settings"), [("llama", {}), ("gemma3", {}), ("gpt2", {"shift_positions": True})])
def test_prefix_starts_as_the_frozen_model_reading_the_initial_text(
    family: str, settings: dict[str, Any], parametrization: str
) -> None:
    text = "write the facts"
    ids = WordTokenizer()(text)["input_ids"]
    config = PrefixTuning.Config(
        num_prompt_tokens=len(ids), init_text=text, parametrization=parametrization, **settings
    )
    model = PrefixTuning(config, WordTokenizer()).patch(tiny_model(family)).eval()
    row = ROWS[1]  # with the text it fits into a sliding window of four tokens but for one
    tokens, together = torch.tensor([row]), torch.tensor([[*ids, *row]])
    with torch.no_grad():
        expected = tiny_model(family)(together).logits[:, len(ids) :]
        computed_logits = logits_of(model, tokens, torch.ones_like(tokens))
    seen = 1 if family == "gemma3" else len(row)
    # rotary tables are float32 whatever the model is
    torch.testing.assert_close(computed_logits[:, :seen], expected[:, :seen], atol=1e-5, rtol=0)


@pytest.mark.parametrize("method_class", [PrefixTuning, PromptTuning])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [*FAMILIES, "gemma3"])
def test_step_by_step_with_a_cache_equals_one_pass(method_class: Any, family: str, attention: str) -> None:
    model = patched(method_class, family, attention)
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
            tolerance = TOLERANCE if attention == "sdpa" or family == "gpt2" else 1e-4  # softmax in float32
            torch.testing.assert_close(torch.cat(steps, dim=1), expected, atol=tolerance, rtol=0)
            assert cache.get_seq_length() == 7, "the prompt lives in the cache"


@pytest.mark.parametrize("parametrization", ["embedding", "key_value", "mlp"])
@pytest.mark.parametrize("shift", [False, True])
def test_shifted_tokens_stand_behind_the_prefix(parametrization: str, shift: bool) -> None:
    """GPT-2 adds positions at the input: the shifting model is the other one, given shifted positions."""
    model = patched(PrefixTuning, "gpt2", num_prompt_tokens=3, parametrization=parametrization, shift_positions=shift)
    other = patched(PrefixTuning, "gpt2", num_prompt_tokens=3, parametrization=parametrization)
    tokens = torch.tensor([ROWS[0]])
    positions = torch.arange(tokens.shape[1])[None] + (3 if shift else 0)
    with torch.no_grad():
        expected = other(input_ids=tokens, position_ids=positions).logits
        torch.testing.assert_close(model(input_ids=tokens).logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_infix_is_seen_from_the_last_source_token_on(family: str) -> None:
    model, base = patched(PrefixTuning, family, infix=True), tiny_model(family)
    ids, mask = padded(ROWS, 0, "right")
    lengths = torch.tensor([4, 2, 5])
    with torch.no_grad():
        computed_logits, plain = logits_of(model, ids, mask, source_lengths=lengths), logits_of(base, ids, mask)
    for row, length in enumerate(lengths.tolist()):
        before, after = slice(0, length - 1), slice(length - 1, len(ROWS[row]))
        torch.testing.assert_close(computed_logits[row, before], plain[row, before], atol=1e-5, rtol=0)
        assert (computed_logits[row, after] - plain[row, after]).abs().amax(-1).min() > 0.01


def test_a_rotary_infix_stands_right_before_the_last_source_token() -> None:
    """Words as infix, in the first layer only: as if the text read source, words, last source token and target."""
    text = "write the facts"
    ids = WordTokenizer()(text)["input_ids"]
    config = PrefixTuning.Config(
        num_prompt_tokens=3, init_text=text, infix=True, shift_positions=True, layers=[0], parametrization="key_value"
    )
    model = PrefixTuning(config, WordTokenizer()).patch(tiny_model("llama")).eval()
    layer = prefix_layers(model)[0]
    row, length = list(ROWS[0]), 4
    seen: list[torch.Tensor] = []
    layer.register_forward_hook(lambda _, args, output: seen.append(output[0]))
    tokens = torch.tensor([row])
    base = tiny_model("llama")
    base.model.layers[0].self_attn.register_forward_hook(lambda _, args, output: seen.append(output[0]))
    with torch.no_grad():
        logits_of(model, tokens, torch.ones_like(tokens), source_lengths=torch.tensor([length]))
        base(torch.tensor([[*row[: length - 1], *ids, *row[length - 1 :]]]))
    found, expected = seen[0][0], seen[1][0]
    # the first layer's keys do not depend on what stands around a token
    torch.testing.assert_close(found[length - 1 :], expected[length - 1 + 3 :], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[: length - 1], expected[: length - 1], atol=1e-5, rtol=0)


def test_an_infix_that_is_not_told_where_the_source_ends_says_so() -> None:
    model = patched(PrefixTuning, "gpt2", infix=True)
    with pytest.raises(ValueError, match="needs source_lengths: how many source tokens each row has"):
        model(input_ids=torch.tensor([ROWS[0]]))


@pytest.mark.parametrize("parametrization", ["embedding", "key_value"])
def test_a_sliding_window_does_not_end_the_reach_of_the_prefix(parametrization: str) -> None:
    model = patched(PrefixTuning, "mistral", num_prompt_tokens=2, layers=[-1], parametrization=parametrization)
    tokens = torch.tensor([[*ROWS[0], *ROWS[0], *ROWS[0]]])
    with torch.no_grad():
        before = model(tokens).logits[0, -1]
        disturb(model)
        assert (model(tokens).logits[0, -1] - before).abs().max() > 0.01, "the window of four tokens hides the prefix"


def test_capped_scores_and_windows_of_gemma_2() -> None:
    """In float32: transformers takes the softmax of capped scores in it, and float64 masks overflow there."""
    torch.manual_seed(0)
    settings = {"sliding_window": 4, "head_dim": 8, "query_pre_attn_scalar": 8, "attn_implementation": "eager"}
    logits = []
    for path in ("fused", "literal"):
        torch.manual_seed(0)
        base = Gemma2ForCausalLM(Gemma2Config(vocab_size=96, **LLAMA_LIKE, **settings)).requires_grad_(False).eval()
        model: Any = PrefixTuning(PrefixTuning.Config(path=path), WordTokenizer()).patch(base)
        disturb(model)
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            whole = model(torch.tensor([ROWS[0]])).logits
            steps = [model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits for token in ROWS[0]]
        torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-4, rtol=0)
        logits.append(whole)
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=0)


def test_only_the_chosen_layers_get_a_prefix() -> None:
    model = patched(PrefixTuning, "llama", layers=[-1])
    assert [layer.base_attention_layer.layer_idx for layer in prefix_layers(model)] == [1]
    with pytest.raises(MethodError, match="layers: 2 is not among the 2 layers of LlamaModel"):
        patched(PrefixTuning, "llama", layers=[0, 2])


@pytest.mark.parametrize("into", ["mlp", "key_value"])
@pytest.mark.parametrize("family", ["llama", "bart"])
def test_the_mlp_is_folded_away(family: str, into: str) -> None:
    method, model = patched_with(PrefixTuning, family, parametrization="mlp", mlp_hidden_size=16)
    state = method.adapter_state(model)
    sites = len(prefix_layers(model))
    width = model.config.num_key_value_heads * model.config.head_dim if family == "llama" else 24
    assert sum(tensor.numel() for tensor in state.values()) == sites * 2 * 10 * width
    expected = target_logits(model).detach()
    other_method, other = patched_with(PrefixTuning, family, parametrization=into)
    other_method.load_adapter_state(other, state)
    torch.testing.assert_close(target_logits(other), expected, atol=TOLERANCE, rtol=0)
    assert {name for name, _ in trained_parameters(other)} == state.keys(), "the MLP is gone"
    assert other_method.adapter_state(other).keys() == state.keys()


def counts(model_class: Any, model_config: Any, **config: Any) -> tuple[int, int]:
    """Parameters trained and stored, on a model without weights."""
    with torch.device("meta"):
        model = model_class(model_config).requires_grad_(False)
    method = PrefixTuning(PrefixTuning.Config(**config))
    method.patch(model)
    trained = sum(parameter.numel() for _, parameter in trained_parameters(model))
    return trained, sum(tensor.numel() for tensor in method.adapter_state(model).values())


@pytest.mark.parametrize(
    ("config", "trained", "stored"),
    [
        ({"num_prompt_tokens": 5, "parametrization": "key_value"}, 245_760, 245_760),
        ({"num_prompt_tokens": 10, "parametrization": "key_value"}, 491_520, 491_520),
        ({"num_prompt_tokens": 5, "parametrization": "mlp"}, 5_120 + 524_800 + 25_214_976, 245_760),
        ({"num_prompt_tokens": 10, "parametrization": "mlp"}, 25_750_016, 491_520),
        ({"num_prompt_tokens": 10}, 245_760, 245_760),
    ],
    ids=str,
)
def test_counts_on_gpt2_medium_are_the_published_ones(config: dict[str, Any], trained: int, stored: int) -> None:
    assert counts(GPT2LMHeadModel, GPT2Config(n_embd=1024, n_layer=24, n_head=16), **config) == (trained, stored)


def test_with_grouped_queries_free_keys_and_values_are_fewer() -> None:
    smollm2 = LlamaConfig(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3)
    for parametrization, expected in (("embedding", 345_600), ("key_value", 230_400)):
        parameter_counts = counts(LlamaForCausalLM, smollm2, num_prompt_tokens=20, parametrization=parametrization)
        assert parameter_counts == (expected, expected)


def test_what_is_kept_while_decoding_follows_the_prompt() -> None:
    method, model = patched_with(PrefixTuning, "gpt2", num_prompt_tokens=2)
    _, other = patched_with(PrefixTuning, "gpt2", num_prompt_tokens=2)
    disturb(other)
    tokens = torch.tensor([ROWS[0]])
    with torch.no_grad():
        before = model(tokens).logits
        method.load_adapter_state(model, method.adapter_state(other))
        after = model(tokens).logits
        assert not torch.equal(before, after)
        torch.testing.assert_close(after, other(tokens).logits, atol=TOLERANCE, rtol=0)


def test_a_missing_mask_is_built_because_transformers_would_drop_the_newest_keys() -> None:
    layer = attention_sites(tiny_model("llama"))[0].layer
    mask = prefix_mask(None, 2, torch.zeros(1, 3, 32), None, layer)
    expected = [[True, True, True, False, False], [True, True, True, True, False], [True] * 5]
    assert mask is not None
    assert mask.tolist() == [[expected]]


def test_masks_for_flash_attention() -> None:
    """As far as they can be told without a GPU: a mask by tokens with the prefix in front, or none at all."""
    layer = SimpleNamespace(config=SimpleNamespace(_attn_implementation="flash_attention_2"), layer_idx=0)
    hidden = torch.zeros(1, 3, 4)
    assert prefix_mask(None, 2, hidden, None, layer) is None
    mask = prefix_mask(torch.tensor([[0, 1, 1]]), 2, hidden, None, layer)
    assert mask is not None
    assert mask.tolist() == [[1, 1, 0, 1, 1]]
    with pytest.raises(MethodError, match="flash attention has no mask for a prompt that only some tokens see"):
        prefix_mask(None, 2, hidden, None, layer, visible=torch.ones(1, 3, dtype=torch.bool))
    model = tiny_model("mistral")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(MethodError, match="MistralAttention 0 has a sliding window, which flash attention would apply"):
        PrefixTuning(PrefixTuning.Config(), WordTokenizer()).patch(model)


def test_causal_mask_counts_what_is_cached() -> None:
    model = tiny_model("llama")
    cache = DynamicCache(config=model.config)
    model(torch.tensor([[5, 6, 7]]), past_key_values=cache, use_cache=True)
    mask = causal_mask(2, cache, attention_sites(model)[0].layer, torch.device("cpu"))
    assert mask.tolist() == [[[[True, True, True, True, False], [True] * 5]]]


def test_a_model_without_known_attention_is_refused() -> None:
    class Bag(nn.Sequential):
        config = SimpleNamespace(is_encoder_decoder=False)

        def get_decoder(self) -> nn.Module:
            return self

    with pytest.raises(MethodError, match="Bag has no attention layer to patch"):
        attention_sites(Bag(nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("llama", {"shift_positions": True}, "shift_positions changes nothing in LlamaForCausalLM"),
        ("t5", {"shift_positions": True}, "shift_positions is for decoders alone"),
        ("bart", {"infix": True}, "infix is for decoders alone; BartForConditionalGeneration has an encoder"),
    ],
)
def test_settings_without_meaning_for_a_model_are_refused(family: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        patched(PrefixTuning, family, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init": "vocabulary", "init_text": "hello"}, "init_text has no effect with init: vocabulary"),
        ({"init_std": 0.1}, "init_std has no effect with init: text"),
        ({"parametrization": "mlp", "path": "literal"}, "path: literal is defined for parametrization: embedding"),
        ({"mlp_hidden_size": 8}, "mlp_hidden_size has no effect with parametrization: embedding"),
        (
            {"parametrization": "mlp", "mlp_hidden_size": 8},
            "an MLP with 8 hidden units cannot start 10 prompt tokens from words",
        ),
        ({"layers": []}, "at least 1 item"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrefixTuning.Config(**settings)
