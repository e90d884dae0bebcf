"""Prompt tuning against concatenation by hand, in float64; where prompts start."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from soft_prompts import ROWS, TOLERANCE, logits_of, patched, patched_with, prompt_of
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, StaticCache

from bench.conformance.tiny_models import EOS, WordTokenizer, tiny_model
from bench.method import MethodError, positions_of, trained_parameters
from bench.models.architecture import padded
from methods.parts.prompt_init import COMMON_TOKENS, common_token_ids
from methods.prompt_tuning import PromptTuning


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gpt_neox"])
def test_prompt_equals_concatenating_embeddings(family: str, attention: str) -> None:
    model = patched(PromptTuning, family, attention, num_prompt_tokens=5)
    base = tiny_model(family)
    base.set_attn_implementation(attention)
    prompt = prompt_of(model)
    for row in ROWS:
        ids, mask = padded([row], 0, "right")
        embeddings = torch.cat([prompt[None], base.get_input_embeddings()(ids)], dim=1)
        expected = base(inputs_embeds=embeddings).logits[:, len(prompt) :]
        torch.testing.assert_close(logits_of(model, ids, mask), expected, atol=1e-5, rtol=0)


def test_prompt_sits_right_before_the_first_real_token() -> None:
    model = patched(PromptTuning, "gpt2", num_prompt_tokens=5)
    base, prompt = tiny_model("gpt2"), prompt_of(model)
    ids, mask = padded(ROWS, 0, "left")
    for row, tokens in enumerate(ROWS):
        pads = ids.shape[1] - len(tokens)
        embeddings = base.get_input_embeddings()(ids[row : row + 1])
        together = torch.cat([embeddings[:, :pads], prompt[None], embeddings[:, pads:]], dim=1)
        whole_mask = torch.cat([mask[row, :pads], torch.ones(5, dtype=torch.long), mask[row, pads:]])[None]
        expected = base(inputs_embeds=together, attention_mask=whole_mask, position_ids=positions_of(whole_mask)).logits
        computed_logits = logits_of(model, ids, mask)[row, pads:]
        torch.testing.assert_close(computed_logits, expected[0, pads + 5 :], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_an_infix_equals_concatenation_before_the_last_source_token(family: str, side: Any) -> None:
    model, base = patched(PromptTuning, family, num_prompt_tokens=3, infix=True), tiny_model(family)
    prompt, lengths = prompt_of(model), torch.tensor([4, 3, 1])
    ids, mask = padded(ROWS, 0, side)
    computed_logits = logits_of(model, ids, mask, source_lengths=lengths)
    for row, tokens in enumerate(ROWS):
        before = int(lengths[row]) - 1
        embeddings = base.get_input_embeddings()(torch.tensor([tokens]))
        together = torch.cat([embeddings[:, :before], prompt[None], embeddings[:, before:]], dim=1)
        logits = base(inputs_embeds=together).logits[0]
        expected = torch.cat([logits[:before], logits[before + 3 :]])
        torch.testing.assert_close(computed_logits[row][mask[row] == 1], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cuts", [(0, 4, 5, 7), (0, 2, 3, 7), (0, 3, 7)], ids=str)
def test_an_infix_in_a_cache_wherever_the_source_ends(cuts: tuple[int, ...]) -> None:
    model = patched(PromptTuning, "llama", num_prompt_tokens=3, infix=True)
    tokens, lengths = torch.tensor([ROWS[0]]), torch.tensor([4])
    for with_mask in (True, False):
        cache = DynamicCache(config=model.config)
        mask = torch.ones_like(tokens)
        with torch.no_grad():
            expected = logits_of(model, tokens, mask, source_lengths=lengths)
            steps = [
                model(
                    input_ids=tokens[:, start:end],
                    attention_mask=mask[:, :end] if with_mask else None,
                    position_ids=torch.arange(start, end)[None],
                    past_key_values=cache,
                    source_lengths=lengths,
                    use_cache=True,
                ).logits
                for start, end in itertools.pairwise(cuts)
            ]
        torch.testing.assert_close(torch.cat(steps, dim=1), expected, atol=TOLERANCE, rtol=0)
        assert cache.get_seq_length() == 7 + 3, "here the prompt depends on the source, and is in the cache"


def test_what_an_infix_cannot_do_is_said() -> None:
    model = patched(PromptTuning, "llama", num_prompt_tokens=3, infix=True)
    tokens = torch.tensor([ROWS[0], ROWS[0]])
    with pytest.raises(ValueError, match="needs source_lengths"):
        model(tokens)
    cache = DynamicCache(config=model.config)
    lengths = torch.tensor([2, 5])
    with pytest.raises(ValueError, match="the source ends among the tokens of this call in some rows, and not in oth"):
        model(tokens[:, :3], source_lengths=lengths, past_key_values=cache)
    static = StaticCache(config=model.config, max_cache_len=32)
    with pytest.raises(ValueError, match=r"needs a mask \(B, tokens\), as dynamic caches leave it"):
        model.generate(tokens[:, :5], source_lengths=lengths, past_key_values=static, max_new_tokens=2)
    with pytest.raises(MethodError, match="infix is for decoders alone; T5ForConditionalGeneration has an encoder"):
        patched(PromptTuning, "t5", infix=True)


@pytest.mark.parametrize("family", ["llama", "gemma3", "bart"])
def test_text_starts_as_the_embeddings_that_the_model_itself_makes_of_it(family: str) -> None:
    """Gemma and BART scale what they look up."""
    text = "write the facts"
    ids = torch.tensor([WordTokenizer()(text)["input_ids"]])
    model = tiny_model(family)
    method = PromptTuning(PromptTuning.Config(num_prompt_tokens=3, init_text=text), WordTokenizer())
    expected = model.get_decoder().get_input_embeddings()(ids)[0]
    torch.testing.assert_close(prompt_of(method.patch(model)).detach(), expected)


def test_labels_are_averaged_over_their_tokens_and_the_rest_is_sampled() -> None:
    tokenizer = WordTokenizer()
    weight = tiny_model("llama").get_input_embeddings().weight
    config = PromptTuning.Config(num_prompt_tokens=4, init="labels", init_labels=["family friendly", "price"])
    torch.manual_seed(0)
    prompt = prompt_of(PromptTuning(config, tokenizer).patch(tiny_model("llama"))).detach()
    family, friendly, price = tokenizer("family friendly price")["input_ids"]
    torch.testing.assert_close(prompt[0], (weight[family] + weight[friendly]) / 2)
    torch.testing.assert_close(prompt[1], weight[price])
    for sampled in prompt[2:]:
        assert (weight == sampled).all(-1).any()
    with pytest.raises(MethodError, match="init_labels: 5 labels do not fit into num_prompt_tokens: 4"):
        patched(PromptTuning, "llama", num_prompt_tokens=4, init="labels", init_labels=list("abcde"))
    with pytest.raises(MethodError, match="init_labels: ' ' has no tokens"):
        patched(PromptTuning, "llama", init="labels", init_labels=[" "])


def test_common_tokens_are_the_first_of_the_vocabulary_without_special_ones() -> None:
    ids = common_token_ids(COMMON_TOKENS, 50_000, WordTokenizer()).tolist()
    assert sorted(ids) == list(range(2, COMMON_TOKENS + 2))
    assert EOS not in ids
    with pytest.raises(MethodError, match="num_prompt_tokens: 95 is more than the 94 common tokens"):
        patched(PromptTuning, "llama", init="vocabulary", num_prompt_tokens=95)


def test_a_uniform_start_keeps_to_its_range() -> None:
    torch.manual_seed(0)
    for config, bound in (({}, 0.5), ({"init_range": 0.1}, 0.1)):
        method = PromptTuning(PromptTuning.Config(init="uniform", num_prompt_tokens=50, **config))
        prompt = prompt_of(method.patch(tiny_model("llama")))
        assert 0.95 * bound < float(prompt.detach().abs().max()) <= bound


def test_a_prompt_of_20_on_a_model_of_width_576_is_11520_parameters() -> None:
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_embd=576, n_layer=2, n_head=9)).requires_grad_(False)
    PromptTuning(PromptTuning.Config(num_prompt_tokens=20)).patch(model)
    assert sum(parameter.numel() for _, parameter in trained_parameters(model)) == 11_520


def test_what_is_kept_while_decoding_follows_the_prompt() -> None:
    method, model = patched_with(PromptTuning, "llama", num_prompt_tokens=2)
    _, other = patched_with(PromptTuning, "llama", num_prompt_tokens=2, init="vocabulary")
    tokens = torch.tensor([ROWS[0]])
    with torch.no_grad():
        assert not torch.equal(model(tokens).logits, other(tokens).logits)
        method.load_adapter_state(model, method.adapter_state(other))
        torch.testing.assert_close(model(tokens).logits, other(tokens).logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_std": 0.1}, "init_std has no effect with init: text"),
        ({"init": "uniform", "init_text": "hello"}, "init_text has no effect with init: uniform"),
        ({"init_range": 0.1}, "init_range has no effect with init: text"),
        ({"init_labels": ["a"]}, "init_labels has no effect with init: text"),
        ({"init": "labels"}, "init: labels needs init_labels, a list of texts"),
        ({"init": "labels", "init_labels": []}, "at least 1 item"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptTuning.Config(**settings)
