"""A source that ends makes room for the next one, and every text is that of its source decoded alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from disturbed import disturb
from fakes import trial
from test_decode import ENDS, SETTINGS, assert_same, generated, patched

from bench.conformance.tiny_models import tiny_model
from bench.decode import batched, generate
from bench.decode.beam_search import DecodingSettings
from bench.decode.rows import MOST_HYPOTHESES_ON_CPU, SHARE_OF_MEMORY, decode_bytes, rows_at_once
from bench.models.architecture import architecture_of
from bench.models.base import load_model, load_tokenizer
from bench.schema.trial import DecodeSpec, ModelSpec

CPU = torch.device("cpu")


def sources_of_all_lengths(count: int, seed: int) -> list[list[int]]:
    """From one token on, in no order of length."""
    drawn = random.Random(seed)
    lengths = [1 + 3 * number for number in range(count)]
    return [[drawn.randrange(20, 28) for _ in range(length)] for length in drawn.sample(lengths, count)]


class Calls:
    """What a model is called with: rows and tokens of each call."""

    def __init__(self, model: Any) -> None:
        self.shapes: list[tuple[int, int]] = []
        model.register_forward_pre_hook(self._told, with_kwargs=True)

    def _told(self, _: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.shapes.append(tuple(kwargs["input_ids"].shape))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ["greedy, constrained", "everything", "never stopping early", "one new token"])
def test_texts_are_those_of_sources_decoded_alone(name: str, rows: int) -> None:
    settings = DecodingSettings(**{"ends": ENDS, "max_new_tokens": 20, **SETTINGS[name]})
    model, sources = patched("llama"), sources_of_all_lengths(9, seed=rows)
    assert_same(batched.decode(model, sources, settings, rows=rows), generated(model, sources, settings))


@pytest.mark.parametrize(
    ("method", "family", "attention"),
    [
        ("prefix_tuning", "gpt2", "sdpa"),
        ("prefix_tuning", "llama", "eager"),
        ("prompt_tuning", "gpt2", "eager"),
        ("prompt_tuning", "llama", "sdpa"),
        ("mam", "llama", "sdpa"),
        ("llama_adapter", "llama", "sdpa"),
    ],
)
def test_prefixes_and_prompts_are_in_front_of_every_source(method: str, family: str, attention: str) -> None:
    model, sources = patched(family, method, attention), sources_of_all_lengths(7, seed=4)
    disturb(model)
    for beams in (1, 3):
        settings = DecodingSettings(ends=ENDS, beams=beams, max_new_tokens=14)
        assert_same(batched.decode(model, sources, settings, rows=3), generated(model, sources, settings))


def test_rows_are_full_as_long_as_sources_wait() -> None:
    model, sources = patched("llama"), sources_of_all_lengths(24, seed=0)
    settings = DecodingSettings(ends=ENDS, max_new_tokens=24)
    tokens = [len(texts[0].tokens) for texts in batched.decode(model, sources, settings)]
    assert min(tokens) < 4 and max(tokens) == 24, "texts of all lengths"
    calls = Calls(model)
    batched.decode(model, sources, settings, rows=4)
    steps = sum(1 for _, count in calls.shapes if count == 1)
    assert len(calls.shapes) - steps >= 10, "sources are read while others are decoded"
    # A source's first token comes with reading it, and the last sources are decoded without others.
    assert steps <= (sum(tokens) - len(tokens)) / 4 + max(tokens)
    in_fours = sorted(range(24), key=lambda source: -len(sources[source]))
    assert steps < 0.9 * sum(max(tokens[source] for source in in_fours[at : at + 4]) - 1 for at in range(0, 24, 4))


def test_sources_are_read_together_up_to_a_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, settings = patched("gpt2"), DecodingSettings(ends=ENDS, max_new_tokens=2)
    monkeypatch.setattr(batched, "READ_TOKENS", 30)
    calls = Calls(model)
    batched.decode(model, [[20] * length for length in (5, 40, 9, 10, 6)], settings)
    assert [shape for shape in calls.shapes if shape[1] > 1] == [(1, 40), (3, 10), (1, 5)]


@pytest.mark.parametrize("beams", [1, 3])
def test_rows_that_have_held_no_source_have_a_position(beams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, drawn = patched("gpt2"), random.Random(6)
    sources = [[drawn.randrange(20, 28) for _ in range(8)] for _ in range(10)]
    settings = DecodingSettings(ends=(), beams=beams, max_new_tokens=4)
    monkeypatch.setattr(batched, "READ_TOKENS", 30)  # 3 + 3 + 3 are read, and one idle row is too few to read on
    assert_same(batched.decode(model, sources, settings, rows=10), generated(model, sources, settings))


def test_rows_at_the_limit_have_a_position_in_a_model_that_ends_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model = patched("gpt2")
    to_the_end = [20 + place % 8 for place in range(model.config.n_positions - 4)]
    settings = DecodingSettings(ends=(40,), max_new_tokens=5)
    # The second text ends before the first, and the third, which takes its place, goes on when the first is done.
    sources = [to_the_end, [21, 50, 73], [21, 20, 46]]
    monkeypatch.setattr(batched, "IDLE_FRACTION", 1.0)
    computed = batched.decode(model, sources, settings, rows=2)
    assert [len(texts[0].tokens) for texts in computed] == [5, 4, 5]
    assert_same(computed, generated(model, sources, settings))


@pytest.mark.parametrize("beams", [1, 3])
def test_trials_decode_as_many_as_fit_unless_they_say_how_many(
    beams: int, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(path=str(tiny_models["llama"]))
    tokenizer, model = load_tokenizer(spec), load_model(spec, torch.float32)
    sources = [tokenizer(" ".join(["Ann lives in Rome"] * times))["input_ids"] for times in (1, 4, 2, 3, 5)]

    def decoded(rows: int | None, rank: int = 0, ranks: int = 1) -> generate.Decoded:
        decode = DecodeSpec(beams=beams, max_new_tokens=9, batch_size=rows)
        return generate.generate(model, tokenizer, architecture_of(model.config), sources, decode, CPU, rank, ranks)

    calls = Calls(model)
    whole = decoded(None)
    assert calls.shapes[0][0] == 5, "all are read at once"
    calls.shapes.clear()
    few = decoded(2)
    assert max(rows for rows, _ in calls.shapes) == 2
    shares = [decoded(2, rank, 2) for rank in range(2)]
    monkeypatch.setattr(batched, "unsupported", lambda model: "for a test")
    theirs = decoded(None)
    assert (whole.engine, theirs.engine) == ("batched", "transformers")
    assert whole.texts == few.texts == theirs.texts == {**shares[0].texts, **shares[1].texts}
    assert not set(shares[0].texts) & set(shares[1].texts)
    assert set(whole.truncated) == set(few.truncated) == set(theirs.truncated)


def test_as_many_sources_as_a_share_of_memory_holds() -> None:
    config = tiny_model("llama").config
    free, said = DecodeSpec(beams=2, max_new_tokens=10), DecodeSpec(batch_size=3)
    heads = config.num_key_value_heads * config.head_dim
    row = 2 * config.num_hidden_layers * heads * 4 * (30 + 2 * 10) + 3 * 4 * 2 * config.vocab_size
    assert decode_bytes(free, config, 4, 1, 30) == row
    drawing = DecodeSpec(temperature=1.0, max_new_tokens=10)
    of_cache = 2 * config.num_hidden_layers * heads * 4 * (30 + 10)
    assert decode_bytes(drawing, config, 4, 2, 30) == 2 * (of_cache + (3 * 4 + 5 * 8) * config.vocab_size)
    memory = round(7 * row / SHARE_OF_MEMORY)
    assert rows_at_once(free, config, 4, 30, memory, on_cpu=True) == 7
    assert rows_at_once(free, config, 4, 30, memory // 100, on_cpu=True) == 1
    assert rows_at_once(free, config, 4, 30, 1000 * memory, on_cpu=True) == MOST_HYPOTHESES_ON_CPU // 2
    assert rows_at_once(free, config, 4, 30, 1000 * memory, on_cpu=False) == 7000
    assert rows_at_once(said, config, 4, 30, memory, on_cpu=True) == 3


def test_a_number_of_rows_that_is_not_set_changes_no_id() -> None:
    spec = trial("lora")
    ids = {size: spec.model_copy(update={"decode": DecodeSpec(batch_size=size)}).trial_id for size in (None, 16, 8)}
    assert ids[None] == ids[16] != ids[8]


def test_what_is_drawn_for_a_source_is_drawn_in_whatever_row_it_is_read_into() -> None:
    model, sources = patched("gpt2"), sources_of_all_lengths(9, seed=5)
    settings = DecodingSettings(ends=ENDS, max_new_tokens=12, temperature=1.5, top_p=0.95, seed=3)
    alone = [batched.decode(model, [source], settings)[0] for source in sources]
    assert batched.decode(model, sources, settings, rows=3) == alone
    assert len({len(texts[0].tokens) for texts in alone}) > 3
