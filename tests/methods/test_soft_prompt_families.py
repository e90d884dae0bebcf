"""Prompts and prefixes in families whose attention differs from Llama's, compared with the same text typed in front.

Representative families here; ``full`` runs all that transformers has (tests/support/text_families.py).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from disturbed import disturb
from text_families import EOS, names, tiny_family

from bench.conformance.tiny_models import WordTokenizer
from bench.decode import batched
from bench.decode.beam_search import DecodingSettings
from bench.method import MethodError, positions_of, trained_parameters
from bench.models.architecture import Side, padded
from methods.llama_adapter import LlamaAdapter
from methods.parts.prefix_layers import PrefixTuningAttentionLayer
from methods.prefix_tuning import PrefixTuning
from methods.prompt_tuning import PromptTuning

TEXT = "write the facts"
WORDS: list[int] = WordTokenizer()(TEXT)["input_ids"]
ROWS: tuple[list[int], ...] = ([7, 21, 5, 40, 13, 2, 33], [11, 3, 60], [25, 8, 14, 90, 6])
TYPED = tuple([*WORDS, *row] for row in ROWS)
NEW_TOKENS = 3

# One of each kind: biases by distance in three forms, grouped and single key heads, rotations by table, keys that
# layers share, heads of two sizes, states and convolutions beside attention, a shared layer, states alone, windows.
PROMPTED = (
    "bloom",
    "mpt",
    "falcon_alibi",
    "falcon_grouped",
    "gptj",
    "gemma3n_text",
    "gemma4_text",
    "falcon_h1",
    "zamba2",
    "jamba",
    "qwen3_next",
    "lfm2",
    "bamba",
    "mamba",
    "gpt_oss",
)
PREFIXED = ("bloom", "mpt", "falcon", "falcon_alibi", "gpt_bigcode", "gptj", "codegen", "gemma3n_text", "gemma4_text")
HYBRID = ("jamba", "falcon_h1", "qwen3_next", "lfm2")


@functools.cache
def dtype_of(family: str) -> torch.dtype:
    """float64 where the base model can: with eager attention it makes padding no number, and some parts are float32."""
    ids, mask = padded(ROWS, 0, "left")
    try:
        read = logits(tiny_family(family), ids, mask)[mask == 1]
    except RuntimeError:
        return torch.float32
    return torch.float64 if torch.isfinite(read).all() else torch.float32


def base(family: str) -> Any:
    return tiny_family(family, dtype_of(family))


def close(computed: torch.Tensor, expected: torch.Tensor, family: str) -> None:
    """Rotary tables and some norms are float32 whatever the model is."""
    torch.testing.assert_close(computed, expected, atol=1e-5 if dtype_of(family) == torch.float64 else 3e-4, rtol=0)


def patched(method_class: Any, family: str, **config: Any) -> Any:
    torch.manual_seed(0)
    settings = {"num_prompt_tokens": len(WORDS), **({} if method_class is LlamaAdapter else {"init_text": TEXT})}
    method = method_class(method_class.Config(**{**settings, **config}), WordTokenizer())
    return method.patch(base(family)).eval()


def logits(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    arguments = {"input_ids": ids, "attention_mask": mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        arguments["position_ids"] = positions_of(mask)
    with torch.no_grad():
        read: torch.Tensor = model(**arguments).logits
    return read


def alone(model: Any, row: list[int]) -> torch.Tensor:
    return logits(model, torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long))[0]


def close_in_batches(model: Any, rows: Sequence[list[int]], expected: Sequence[torch.Tensor], family: str) -> None:
    """Rows have these logits in a batch that is padded on either side."""
    sides: tuple[Side, ...] = ("left", "right")
    for side in sides:
        ids, mask = padded(rows, 0, side)
        computed_logits = logits(model, ids, mask)
        for row, wanted in enumerate(expected):
            close(computed_logits[row][mask[row] == 1], wanted, family)


def generated(model: Any, rows: Any, beams: int, use_cache: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """New tokens, and the logits that each step chose by."""
    ids, mask = padded(rows, 0, "left")
    settings = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0, "eos_token_id": EOS}
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            num_beams=beams,
            use_cache=use_cache,
            output_logits=True,
            return_dict_in_generate=True,
            disable_compile=True,
            **settings,
        )
    return output.sequences[:, ids.shape[1] :], torch.stack(output.logits[:NEW_TOKENS], dim=1)


def check_prompt(family: str) -> None:
    model, typing = patched(PromptTuning, family), base(family)
    expected = [alone(typing, row)[len(WORDS) :] for row in TYPED]
    for row, wanted in zip(ROWS, expected, strict=True):
        close(alone(model, row), wanted, family)
    close_in_batches(model, ROWS, expected, family)
    for use_cache in (True, False):
        tokens, steps = generated(model, ROWS, 1, use_cache)
        typed_tokens, typed_steps = generated(typing, TYPED, 1, use_cache)
        assert torch.equal(tokens, typed_tokens)
        close(steps, typed_steps, family)
    assert torch.equal(generated(model, ROWS, 3, True)[0], generated(typing, TYPED, 3, True)[0])
    if batched.unsupported(model) is None:
        settings = DecodingSettings(ends=(EOS,), beams=3, max_new_tokens=NEW_TOKENS)
        of_prompt, of_text = (
            batched.decode(each, [list(row) for row in rows], settings)
            for each, rows in ((model, ROWS), (typing, TYPED))
        )
        assert [texts[0].tokens for texts in of_prompt] == [texts[0].tokens for texts in of_text]


def check_contract(model: Any, family: str) -> None:
    """Causal, indifferent to padding and cache; every trained tensor has a gradient and an effect."""
    plain = alone(base(family), ROWS[0])
    disturb(model)
    expected = [alone(model, row) for row in ROWS]
    assert (expected[0] - plain).abs().max() > 1e-3, "what is trained has no effect"
    close(alone(model, [*ROWS[0][:-1], 50])[:-1], expected[0][:-1], family)
    close_in_batches(model, ROWS, expected, family)
    close(generated(model, ROWS, 1, True)[1], generated(model, ROWS, 1, False)[1], family)
    ids, mask = padded(ROWS, 0, "right")
    model.train()
    model(input_ids=ids, attention_mask=mask, use_cache=False).logits.logsumexp(-1).sum().backward()
    model.eval()
    for name, parameter in trained_parameters(model):
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert parameter.grad.abs().max() > 0, f"{name} gets no gradient"


def check_prefix(family: str, parametrization: str) -> Any:
    check_contract(model := patched(PrefixTuning, family, parametrization=parametrization), family)
    if parametrization != "embedding":
        return
    literal = patched(PrefixTuning, family, path="literal")
    for trained, other in zip(trained_parameters(literal), trained_parameters(model), strict=True):
        trained[1].data.copy_(other[1].data)
    sides: tuple[Side, ...] = ("left", "right")
    for side in sides:
        ids, mask = padded(ROWS, 0, side)
        close(logits(literal, ids, mask)[mask == 1], logits(model, ids, mask)[mask == 1], family)
    close(generated(literal, ROWS, 1, True)[1], generated(model, ROWS, 1, True)[1], family)


def check_start(family: str, **config: Any) -> None:
    """With untrained words as prefix, a token in sight of all of them reads what it would read of the text typed."""
    model, typing = patched(PrefixTuning, family, **config), base(family)
    rows = ([11],) if family.startswith("gemma") else ROWS  # their windows hold four tokens
    expected = [alone(typing, [*WORDS, *row])[len(WORDS) :] for row in rows]
    close_in_batches(model, rows, expected, family)


@pytest.mark.parametrize("family", PROMPTED)
def test_a_prompt_is_text_typed_in_front(family: str) -> None:
    check_prompt(family)


@pytest.mark.parametrize("family", PREFIXED)
def test_a_prefix_keeps_the_contract_and_its_paths_agree(family: str) -> None:
    check_prefix(family, "embedding")
    check_start(family, **({"shift_positions": True} if family == "gpt_bigcode" else {}))


@pytest.mark.parametrize("family", HYBRID)
def test_a_prefix_of_a_hybrid_is_in_its_attention_layers(family: str) -> None:
    check_prefix(family, "embedding")
    layers = [part for part in patched(PrefixTuning, family).modules() if isinstance(part, PrefixTuningAttentionLayer)]
    assert len(layers) == (2 if family == "falcon_h1" else 1), "two layers, of which one has attention, or both"


@pytest.mark.parametrize("family", ["gemma4_text", "mpt", "gptj"])
def test_free_keys_and_values_start_as_text_typed_in_front(family: str) -> None:
    check_prefix(family, "key_value")
    check_start(family, parametrization="key_value")


@pytest.mark.parametrize("family", ["bloom", "gptj"])
def test_an_mlp_serves_layers_that_their_decoder_tells_nothing(family: str) -> None:
    check_prefix(family, "mlp")
    method = PrefixTuning(PrefixTuning.Config(num_prompt_tokens=3, parametrization="mlp"), WordTokenizer())
    model = method.patch(base(family)).eval()
    disturb(model)
    expected = alone(model, ROWS[0])
    fresh = PrefixTuning(PrefixTuning.Config(num_prompt_tokens=3, parametrization="mlp"), WordTokenizer())
    other = fresh.patch(base(family)).eval()
    fresh.load_adapter_state(other, method.adapter_state(model))
    close(alone(other, ROWS[0]), expected, family)


def test_layers_that_share_keys_see_the_prefix_of_the_layer_that_makes_them() -> None:
    """Gemma 3n: layers 2 and 3 of four attend to the keys of layers 0 and 1."""
    model = patched(PrefixTuning, "gemma3n_text")
    own = [part for part in model.modules() if isinstance(part, PrefixTuningAttentionLayer)]
    assert [layer.base_attention_layer.layer_idx for layer in own] == [0, 1]
    with pytest.raises(MethodError, match="layers: Gemma3nTextAttention 3 attends to the keys of an earlier layer"):
        patched(PrefixTuning, "gemma3n_text", layers=[-1])
    check_contract(patched(PrefixTuning, "gemma3n_text", layers=[1]), "gemma3n_text")


def test_embeddings_of_single_layers_are_part_of_a_prompt() -> None:
    """Gemma 3n and Gemma 4 tell every layer of every token: two tensors are trained and stored."""
    shapes = [tuple(tensor.shape) for _, tensor in trained_parameters(patched(PromptTuning, "gemma4_text"))]
    assert shapes == [(3, 32), (3, 4 * 8)]


@pytest.mark.parametrize(
    ("method_class", "family", "config", "message"),
    [
        (PrefixTuning, "mamba", {}, "MambaForCausalLM has no attention layer to patch"),
        (
            PrefixTuning,
            "bloom",
            {"infix": True},
            "infix is not for BloomForCausalLM: its scores fall with the distance",
        ),
        (PrefixTuning, "mpt", {"shift_positions": True}, "shift_positions changes nothing in MptForCausalLM"),
        (PrefixTuning, "gptj", {"infix": True}, "infix is not for GPTJForCausalLM: it looks rotations up in a table"),
        (PrefixTuning, "gptj", {"shift_positions": True}, "shift_positions changes nothing in GPTJForCausalLM"),
        (PrefixTuning, "falcon", {"infix": True}, "FalconAttention 0 was not told which tokens see the prompt"),
        (PrefixTuning, "deepseek_v32", {}, "keeps more than keys and values of its tokens"),
        (PrefixTuning, "zamba2", {}, "a prefix needs an attention layer for each"),
        (PromptTuning, "rwkv", {}, "RwkvModel remembers tokens in 'state'"),
        (PromptTuning, "bart", {}, "padding in front of a text changes what BartForCausalLM makes of it"),
        (PromptTuning, "deepseek_v4", {}, "DeepseekV4ForCausalLM cannot be read as a decoder of transformers"),
        (LlamaAdapter, "gemma3n_text", {}, "attends to the keys of an earlier layer"),
        (LlamaAdapter, "bloom", {}, "does not attend through the attention functions of transformers"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(
    method_class: Any, family: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(MethodError, match=message):
        patched(method_class, family, **config)


def test_a_decoder_that_sees_later_tokens_is_refused() -> None:
    import transformers

    config = transformers.BertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    model = transformers.BertLMHeadModel(config).eval()
    with pytest.raises(MethodError, match=r"is_decoder: true in their config\.json"):
        PromptTuning(PromptTuning.Config(), WordTokenizer()).patch(model)


@pytest.mark.parametrize("family", ["bloom", "mpt", "falcon_alibi", "gptj", "gemma4_text", "jamba", "mamba"])
@pytest.mark.parametrize("method_class", [PromptTuning, PrefixTuning, LlamaAdapter])
def test_without_weights_the_same_is_patched_or_refused(method_class: Any, family: str) -> None:
    def shapes(device: str) -> dict[str, tuple[int, ...]] | str:
        model = tiny_family(family, torch.float32, device)
        try:
            method_class(method_class.Config(num_prompt_tokens=3), WordTokenizer()).patch(model)
        except MethodError:
            return "refused"
        return {name: tuple(tensor.shape) for name, tensor in trained_parameters(model)}

    assert shapes("meta") == shapes("cpu")


# Padding in front of a text, or a cache, changes what the base model makes of it; or its memory is no cache.
WRONG_BASES = {
    "bart",
    "bigbird_pegasus",
    "blenderbot",
    "blenderbot-small",
    "marian",
    "mbart",
    "minimax",
    "mvp",
    "pegasus",
    "plbart",
    "prophetnet",
    "recurrent_gemma",
    "reformer",
    "roformer",
    "rwkv",
    "trocr",
    "whisper",
    "xlm",
    "xlnet",
}
REFUSED = {
    "prompt": WRONG_BASES | {"deepseek_v4"},
    "prefix": WRONG_BASES
    | {"big_bird", "ctrl", "gpt_neo", "hrm_text", "longcat_flash", "openai-gpt", "zamba", "zamba2"}
    | {"mamba", "mamba2", "falcon_mamba", "inkling_text", "zaya"}
    | {"axk2", "deepseek_v32", "deepseek_v4", "dots3_note_text", "glm_moe_dsa", "hy_v4"},
}
# Behind its window the base model decodes otherwise with its cache than without.
UNUSABLE = {"moshi"}


@pytest.mark.full
@pytest.mark.parametrize("kind", ["prompt", "embedding", "key_value", "mlp", "llama_adapter"])
@pytest.mark.parametrize("family", [name for name in names() if name not in UNUSABLE])
def test_every_family_works_or_says_why_not(family: str, kind: str) -> None:
    try:
        if kind == "prompt":
            check_prompt(family)
        elif kind == "llama_adapter":
            check_contract(patched(LlamaAdapter, family), family)
        else:
            check_prefix(family, kind)
    except MethodError:
        works = False
    else:
        works = True
    if kind != "llama_adapter":
        assert works == (family not in REFUSED["prompt" if kind == "prompt" else "prefix"])
