"""The batched decoder finds what ``generate`` of transformers finds: the same n-best lists, token for token."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from bench.conformance.tiny_models import WordTokenizer, tiny_model
from bench.decode import batched, generate
from bench.decode.beam_search import BeamSearch, DecodingSettings, Hypothesis
from bench.models.architecture import architecture_of
from bench.models.base import load_model, load_tokenizer
from bench.plugins.registry import load_method, targets
from bench.schema.record import TrialResult
from bench.schema.trial import DecodeSpec, ModelSpec

PAD = 0
# Many ends, so that a random model's texts end at different lengths.
ENDS = (1, 5, 9, 13, 17, 32, 45, 52, 61, 76, 88)


def patched(family: str, name: str = "none", attention: str = "sdpa") -> Any:
    model = tiny_model(family)
    model.set_attn_implementation(attention)
    method_class = load_method(targets("method")[name])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return method_class(method_class.Config(), WordTokenizer()).patch(model).eval()


def random_sources(count: int, seed: int) -> list[list[int]]:
    generator = random.Random(seed)
    # Few different words, so that n-grams do repeat.
    return [[generator.randrange(20, 28) for _ in range(generator.randrange(3, 12))] for _ in range(count)]


def generated(model: Any, sources: list[list[int]], settings: DecodingSettings) -> list[list[Hypothesis]]:
    """The oracle's n-best lists, each source by itself so that padding plays no part."""
    lists = []
    for source in sources:
        with torch.no_grad():
            output = model.generate(
                input_ids=torch.tensor([source]),
                attention_mask=torch.ones(1, len(source), dtype=torch.long),
                num_return_sequences=settings.beams,
                pad_token_id=PAD,
                return_dict_in_generate=True,
                output_scores=True,
                **settings.for_transformers(),
            )
        scores = output.sequences_scores.tolist() if settings.beams > 1 else [0.0]
        texts = [settings.until_end(row) for row in output.sequences[:, len(source) :].tolist()]
        lists.append([Hypothesis(text, score) for text, score in zip(texts, scores, strict=True)])
    return lists


def assert_same(computed: list[list[Hypothesis]], expected: list[list[Hypothesis]]) -> None:
    assert [[text.tokens for text in texts] for texts in computed] == [
        [text.tokens for text in row] for row in expected
    ]
    for texts, row in zip(computed, expected, strict=True):
        assert [text.score for text in texts] == pytest.approx([text.score for text in row], rel=1e-6)


SETTINGS = {
    "greedy": {"beams": 1},
    "greedy, constrained": {"beams": 1, "no_repeat_ngram_size": 2, "min_new_tokens": 6, "banned": (30, 44)},
    "beams": {"beams": 4},
    "long texts preferred": {"beams": 3, "length_penalty": 2.0},
    "short texts preferred": {"beams": 3, "length_penalty": -1.0},
    "no length penalty": {"beams": 3, "length_penalty": 0.0},
    "early stopping": {"beams": 4, "early_stopping": True},
    "never stopping early": {"beams": 3, "early_stopping": "never", "length_penalty": 0.8},
    "no repeated bigrams": {"beams": 3, "no_repeat_ngram_size": 2},
    "no repeated words": {"beams": 2, "no_repeat_ngram_size": 1},
    "minimum length": {"beams": 3, "min_new_tokens": 9},
    "banned tokens": {"beams": 3, "banned": (22, 30, 44)},
    "one new token": {"beams": 3, "max_new_tokens": 1},
    "everything": {"beams": 4, "no_repeat_ngram_size": 3, "min_new_tokens": 4, "banned": (7,), "early_stopping": True},
}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("name", SETTINGS)
def test_n_best_lists_are_those_of_transformers(name: str, family: str) -> None:
    settings = DecodingSettings(**{"ends": ENDS, "max_new_tokens": 20, **SETTINGS[name]})
    model, sources = patched(family), random_sources(7, seed=len(name))
    assert_same(batched.decode(model, sources, settings), generated(model, sources, settings))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("method", "attention"),
    [("prefix_tuning", "eager"), ("prefix_tuning", "sdpa"), ("prompt_tuning", "sdpa"), ("none", "eager")],
)
def test_patched_models_of_both_families(method: str, attention: str, family: str) -> None:
    model, sources = patched(family, method, attention), random_sources(5, seed=1)
    for beams in (1, 3):
        settings = DecodingSettings(ends=ENDS, beams=beams, max_new_tokens=20)
        assert_same(batched.decode(model, sources, settings), generated(model, sources, settings))
    assert model.config._attn_implementation == attention, "the attention that a model came with is put back"


def test_which_models_are_left_to_transformers() -> None:
    from transformers import (
        BloomConfig,
        BloomForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    small = {"vocab_size": 96, "hidden_size": 16}
    mistral = MistralConfig(**small, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, sliding_window=8)
    models = {
        None: tiny_model("llama"),
        "it has an encoder": T5ForConditionalGeneration(
            T5Config(vocab_size=96, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
        ),
        "BloomForCausalLM does not take masks and positions as transformers' newer decoders do": BloomForCausalLM(
            BloomConfig(**small, n_layer=1, n_head=2)
        ),
        "not all of its layers attend to all tokens": MistralForCausalLM(mistral),
    }
    assert {reason: batched.unsupported(model) for reason, model in models.items()} == {
        reason: reason for reason in models
    }
    models[None].config._attn_implementation = "flex_attention"
    assert batched.unsupported(models[None]) == "attention 'flex_attention' takes no mask of its own"


@pytest.mark.parametrize("method", ["none", "prefix_tuning", "lora"])
@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3"])
def test_flash_attention_is_decoded_by_masks(method: str, attention: str) -> None:
    model, sources = patched("llama", method), random_sources(5, seed=1)
    settings = DecodingSettings(ends=ENDS, max_new_tokens=12)
    expected = batched.decode(model, sources, settings)
    model.config._attn_implementation = attention  # which this machine need not have, as nothing calls it
    assert batched.unsupported(model) is None
    assert batched.decode(model, sources, settings) == expected
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("beams", [1, 3])
def test_both_engines_give_the_texts_and_say_which_they_are(
    beams: int, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(path=str(tiny_models["gpt2"]))
    tokenizer, model = load_tokenizer(spec), load_model(spec, torch.float32)
    # A model that proposes things of its own: what a trial decodes is what its sweep says.
    model.generation_config.repetition_penalty = 5.0
    sources = [
        tokenizer(f"{name} lives in {city}")["input_ids"] for name in ("Ann", "Bob") for city in ("Rome", "Oslo")
    ]
    settings = DecodeSpec(beams=beams, max_new_tokens=12, batch_size=3, banned_token_ids=[40], no_repeat_ngram_size=3)
    arguments = (model, tokenizer, architecture_of(model.config), sources, settings, torch.device("cpu"), 0, 1)
    ours = generate.generate(*arguments)
    monkeypatch.setattr(batched, "unsupported", lambda model: "for a test")
    theirs = generate.generate(*arguments)
    assert (ours.engine, theirs.engine) == ("batched", "transformers")
    assert ours.texts == theirs.texts
    assert ours.new_tokens == theirs.new_tokens
    assert len(ours.texts) == len(sources)


def test_what_a_text_ends_with_cannot_be_banned() -> None:
    with pytest.raises(ValueError, match=r"token ids \[5\] end a text and are banned as well"):
        DecodingSettings(ends=(1, 5), banned=(5, 6))
    with pytest.raises(ValidationError, match="early_stopping has no effect with beams: 1"):
        DecodeSpec(early_stopping=True)


def test_settings_that_came_later_change_the_identity_only_where_they_are_used() -> None:
    folder = Path(__file__).parents[1] / "data" / "records"
    record = TrialResult.model_validate_json((folder / "v1-completed.json").read_text())
    for change in ({"banned_token_ids": [7]}, {"early_stopping": True, "beams": 2}):
        changed = record.spec.model_copy(update={"decode": DecodeSpec(**change)})
        assert changed.trial_id != record.spec.trial_id


@pytest.mark.parametrize("beams", [1, 3])
def test_a_text_may_say_what_its_source_says_but_not_twice(beams: int) -> None:
    def bigrams(tokens: list[int]) -> list[tuple[int, int]]:
        return list(pairwise(tokens))

    model, sources = patched("llama"), random_sources(12, seed=2)
    settings = DecodingSettings(ends=(1,), beams=beams, max_new_tokens=16, no_repeat_ngram_size=2)
    # The model's own first tokens become the source, so that it wants to say them again.
    again = [
        source + texts[0].tokens[:6]
        for source, texts in zip(sources, batched.decode(model, sources, settings), strict=True)
    ]
    texts = [found[0].tokens for found in batched.decode(model, again, settings)]
    assert all(len(set(bigrams(text))) == len(bigrams(text)) for text in texts)
    assert any(set(bigrams(text)) & set(bigrams(source)) for text, source in zip(texts, again, strict=True))


@pytest.mark.parametrize(
    ("early_stopping", "length_penalty", "worst_finished", "done"),
    [
        ("never", 1.0, -0.3, False),  # at ten tokens the open beam would have -0.1
        (False, 1.0, -0.3, True),  # at its present two it has -0.5
        ("never", -1.0, -3.0, False),  # longer is worse: -2 at two tokens, -10 at ten
        ("never", -1.0, -1.5, True),
        (False, -1.0, -3.0, False),
        (True, 1.0, -0.7, True),  # as soon as all have finished
        (False, 1.0, -0.7, False),
    ],
)
def test_an_open_beam_is_judged_at_the_length_that_favours_it_most(
    early_stopping: Any, length_penalty: float, worst_finished: float, done: bool
) -> None:
    settings = DecodingSettings(
        ends=(0,), beams=2, max_new_tokens=10, early_stopping=early_stopping, length_penalty=length_penalty
    )
    search = BeamSearch(settings, 1, torch.device("cpu"))
    search.lengths = torch.tensor([2])
    search.open_scores = torch.tensor([[-1.0, -1.2]])
    search.finished_scores = torch.tensor([[worst_finished / 2, worst_finished]])
    search.is_finished = torch.tensor([[True, True]])
    assert search._done().tolist() == [done]
