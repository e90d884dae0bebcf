"""Drawn texts: their distribution, and that a source's text depends on the model, the source and the seed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import trial, varied
from pydantic import ValidationError

from bench.conformance.tiny_models import tiny_model
from bench.decode import batched, generate
from bench.decode.beam_search import DecodingSettings
from bench.decode.sampling import drawn, draws_of
from bench.models.architecture import architecture_of
from bench.models.base import load_model, load_tokenizer
from bench.schema.trial import DecodeSpec, ModelSpec

CPU = torch.device("cpu")


@pytest.fixture(params=["llama", "t5"], scope="module")
def arguments(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> tuple[Any, ...]:
    """A model that our decoder serves, and one that it does not, with sources of several lengths."""
    spec = ModelSpec(path=str(tiny_models[request.param]))
    tokenizer, model = load_tokenizer(spec), load_model(spec, torch.float32)
    texts = [f"{name} lives in {city}" for name in ("Ann", "Bob and Eve") for city in ("Rome", "Oslo", "Lima or Kyiv")]
    return model, tokenizer, architecture_of(model.config), [tokenizer(text)["input_ids"] for text in texts]


def texts_of(arguments: tuple[Any, ...], **decode: Any) -> dict[int, str]:
    settings = DecodeSpec(**{"max_new_tokens": 8, "stop": [], **decode})
    return generate.generate(*arguments, settings, CPU, 0, 1).texts


def test_a_text_depends_on_its_source_and_the_seed_and_not_on_its_batch(arguments: tuple[Any, ...]) -> None:
    together = texts_of(arguments, temperature=1.0, seed=3, batch_size=6)
    assert texts_of(arguments, temperature=1.0, seed=3, batch_size=1) == together
    *model, sources = arguments
    backwards = texts_of((*model, sources[::-1]), temperature=1.0, seed=3, batch_size=4)
    assert [backwards[5 - number] for number in range(6)] == [together[number] for number in range(6)]
    assert len(set(together.values())) == 6
    others = texts_of(arguments, temperature=1.0, seed=4)
    assert all(others[number] != together[number] for number in range(6))


def test_without_warmth_the_likeliest_is_drawn(arguments: tuple[Any, ...]) -> None:
    greedy = texts_of(arguments)
    assert texts_of(arguments, temperature=1e-6) == greedy
    assert texts_of(arguments, temperature=3.0, top_p=1e-6) == greedy
    assert texts_of(arguments, temperature=3.0) != greedy


def test_both_decoders_draw_the_same(arguments: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"temperature": 1.3, "top_p": 0.9, "seed": 1, "no_repeat_ngram_size": 2, "min_new_tokens": 5}
    here = texts_of(arguments, **settings)
    monkeypatch.setattr(batched, "unsupported", lambda model: "for a test")
    assert texts_of(arguments, **settings) == here


def test_the_first_token_follows_the_softmax() -> None:
    model, source, count = tiny_model("llama", dtype=torch.float32), [7, 21, 5, 40], 4000
    with torch.inference_mode():
        logits = model(torch.tensor([source])).logits[0, -1]
    draws = torch.cat([draws_of([source], seed, 1)[:, 0] for seed in range(count)])
    for temperature, top_p in ((0.5, 1.0), (2.0, 1.0), (2.0, 0.6)):
        expected = (logits.double() / temperature).softmax(-1)
        if top_p < 1:
            ordered = sorted(expected.tolist(), reverse=True)
            fewest = next(n for n in range(1, 97) if sum(ordered[:n]) >= top_p)
            expected = torch.where(expected >= ordered[fewest - 1], expected, 0.0)
            expected /= expected.sum()
            assert 1 < fewest < 96
        tokens = drawn(logits.expand(count, -1), draws, temperature, top_p)
        found = torch.bincount(tokens, minlength=96) / count
        assert (found[expected == 0] == 0).all()
        assert (found - expected).abs().max() < 4 * 0.5 / count**0.5  # four standard errors of the widest
    settings = [DecodingSettings(ends=(), max_new_tokens=1, temperature=2.0, seed=seed) for seed in range(5)]
    decoded = [batched.decode(model, [source], each)[0][0].tokens for each in settings]
    assert decoded == drawn(logits.expand(5, -1), draws[:5], 2.0, 1.0)[:, None].tolist()


def test_a_draw_of_nearly_one_is_the_last_token_that_is_possible() -> None:
    logits = torch.tensor([[0.0, 1.0, float("-inf")]])
    assert drawn(logits, torch.tensor([1.0], dtype=torch.float64), 1.0, 1.0).tolist() == [1]
    assert drawn(logits, torch.tensor([0.0], dtype=torch.float64), 1.0, 1.0).tolist() == [0]
    first_forbidden = torch.tensor([[float("-inf"), 1.0, 1.0]])
    assert drawn(first_forbidden, torch.zeros(1, dtype=torch.float64), 1.0, 1.0).tolist() == [1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.7, "beams": 4}, "set beams: 1, or leave temperature out"),
        ({"top_p": 0.9}, "top_p has no effect with temperature: 0"),
        ({"seed": 3}, "seed has no effect with temperature: 0"),
    ],
)
def test_what_has_no_effect_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DecodeSpec(**settings)


def test_drawing_is_a_part_of_the_identity_and_its_seed_is_recorded() -> None:
    ids = {varied(trial(), decode=decode).trial_id for decode in ({}, {"temperature": 0.7}, {"temperature": 0.8})}
    assert len(ids) == 3 and trial().trial_id in ids
    assert varied(trial(seed=5), decode={"temperature": 0.7}).drawing.seed == 5
    assert varied(trial(seed=5), decode={"temperature": 0.7, "seed": 2}).drawing.seed == 2
    assert trial(seed=5).drawing.seed is None
