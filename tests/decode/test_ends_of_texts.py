"""Where a text ends, by hand: tokens are letters here, and no model runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.decode import batched, generate, generate_hooks, merged, stop_strings
from bench.decode.beam_search import DecodingSettings
from bench.decode.generate import Decoded
from bench.decode.merged import decode_both_ways
from bench.decode.stop_strings import StopStrings
from bench.schema.trial import DecodeSpec

CPU = torch.device("cpu")


def letters(_: Any, tokens: Any) -> str:
    return "".join(chr(token) for token in tokens)


def tokens(text: str) -> list[int]:
    return [ord(letter) for letter in text]


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> StopStrings:
    """The stop string "xyz", which each of its letters may begin or end."""
    monkeypatch.setattr(stop_strings, "text_of", letters)
    monkeypatch.setattr(stop_strings, "tokens_beginning_with", lambda tokenizer, rest, vocabulary: frozenset(rest[:1]))
    monkeypatch.setattr(stop_strings, "last_bytes", lambda tokenizer, tokens, *_: letters(tokenizer, tokens).encode())
    return StopStrings(None, ["xyz"], None)


def test_a_text_is_as_long_as_its_first_stop_string(stops: StopStrings) -> None:
    assert stops.length_until_end(tokens("abxyz")) == 5
    assert stops.length_until_end(tokens("abxyzcxyz")) == 5
    assert stops.length_until_end(tokens("abxy")) == 4
    assert stops.length_until_end([]) == 0


def test_what_would_complete_a_stop_string(stops: StopStrings) -> None:
    assert stops.completing(tokens("abx")) == {ord("y")}
    assert stops.completing(tokens("abxy")) == {ord("z")}
    assert stops.completing(tokens("abxyc")) == frozenset()
    assert stops.completing([]) == frozenset()


def test_transformers_ends_a_row_at_its_stop_string_and_not_at_that_of_the_source(stops: StopStrings) -> None:
    ends = generate_hooks.StopsInText(stops)
    source, other = tokens("axyz"), tokens("bxyz")

    def ended(first: str, second: str) -> list[bool]:
        found: list[bool] = ends(torch.tensor([source + tokens(first), other + tokens(second)]), None).tolist()
        return found

    assert ended("x", "c") == [False, False]
    assert ended("xy", "cd") == [False, False]
    assert ended("xyz", "cde") == [True, False]
    at_once = generate_hooks.StopsInText(StopStrings(None, ["c"], None))
    assert at_once(torch.tensor([[*source, ord("c")], [*other, ord("d")]]), None).tolist() == [True, False]


def test_no_stop_string_is_completed_before_a_text_is_long_enough(stops: StopStrings) -> None:
    forbids = generate_hooks.NoStopYet(stops, min_new_tokens=2)
    scores, source = torch.zeros(1, 128), tokens("ax")
    assert torch.equal(forbids(torch.tensor([source]), scores), scores), "the source begins no stop string of the text"
    found = forbids(torch.tensor([[*source, ord("x")]]), scores)
    assert found[0].isinf().nonzero()[:, 0].tolist() == [ord("y")]
    assert not scores.isinf().any()
    assert torch.equal(forbids(torch.tensor([[*source, *tokens("xy")]]), scores), scores), "long enough"


def test_an_end_token_is_no_part_of_a_text_and_the_token_of_a_stop_string_is(monkeypatch: pytest.MonkeyPatch) -> None:
    written = {0: "ab#", 1: "cd.", 2: "ef", 3: "", 4: "#"}
    settings = SimpleNamespace(ends=(ord("#"), ord(".")))
    monkeypatch.setattr(generate, "decoding_settings", lambda tokenizer, decode, model: settings)
    monkeypatch.setattr(generate, "end_token_ids", lambda *_: frozenset({ord("#")}))
    monkeypatch.setattr(generate, "text_of", letters)
    monkeypatch.setattr(batched, "unsupported", lambda model: "for a test")

    def made(model: Any, architecture: Any, inputs: list[list[int]], *_: Any) -> list[list[int]]:
        return [tokens(written[number]) for (number,) in inputs]

    monkeypatch.setattr(generate, "_batch_generated", made)
    model: Any = SimpleNamespace(config=None, generation_config=None)
    sources = [[number] for number in written]
    spec = DecodeSpec(stop=["."], batch_size=2, max_new_tokens=3)
    generated = generate.generate(model, SimpleNamespace(pad_token_id=0), None, sources, spec, CPU, 0, 1)  # type: ignore[arg-type]
    assert generated.texts == {0: "ab", 1: "cd", 2: "ef", 3: "", 4: ""}
    assert sorted(generated.truncated) == [2, 3]
    assert generated.new_tokens == 9


@pytest.mark.parametrize("batch_size", [1, 3])
def test_texts_that_merging_changes_are_counted(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"merged": False}
    method: Any = SimpleNamespace(
        merge=lambda model: state.update(merged=True), unmerge=lambda model: state.update(merged=False)
    )

    def written(model: Any, tokenizer: Any, architecture: Any, batch: list[list[int]], *_: Any, **__: Any) -> Decoded:
        texts = {at: "same" if one[0] else str(state["merged"]) for at, one in enumerate(batch)}
        return Decoded(texts, [], len(batch), 2.0 if state["merged"] else 1.0, "batched")

    monkeypatch.setattr(merged, "generate", written)
    both_ways = decode_both_ways(method, None, None, None, [[0], [1], [2]], DecodeSpec(batch_size=batch_size), CPU)  # type: ignore[arg-type]
    assert both_ways.equal_texts == 2
    assert (both_ways.merged.sources, both_ways.unmerged.sources) == (3, 3)
    assert both_ways.time_ratio == 2.0
    assert both_ways.merged.engine == both_ways.unmerged.engine == "batched"
    nothing = decode_both_ways(method, None, None, None, [], DecodeSpec(), CPU)  # type: ignore[arg-type]
    assert (nothing.equal_texts, nothing.merged.sources, nothing.merged.engine) == (0, 0, None)


def test_tokens_up_to_the_first_end(stops: StopStrings) -> None:
    settings = DecodingSettings(ends=(ord("#"), ord(".")), stops=stops)
    assert settings.until_end(tokens("ab#cd.")) == tokens("ab#")
    assert settings.until_end(tokens("axyzb#")) == tokens("axyz")
    assert settings.until_end(tokens("ab")) == tokens("ab")
    with pytest.raises(ValueError, match=r"token ids \[46\] end a text and are banned as well"):
        DecodingSettings(ends=(46,), banned=(46, 47))
    with pytest.raises(ValueError, match="set either"):
        DecodingSettings(ends=(), beams=2, temperature=0.5)


def test_settings_reach_transformers_where_they_differ_from_its_defaults(stops: StopStrings) -> None:
    plain = DecodingSettings(ends=(7,)).for_transformers()
    assert plain == {
        "do_sample": False,
        "num_beams": 1,
        "max_new_tokens": 96,
        "min_new_tokens": None,
        "logits_processor": None,
        "stopping_criteria": None,
        "bad_words_ids": None,
        "eos_token_id": [7],
    }
    settings = DecodingSettings(
        ends=(), beams=3, min_new_tokens=5, length_penalty=0.5, no_repeat_ngram_size=2, banned=(1, 2), stops=stops
    )
    arguments = settings.for_transformers()
    assert (arguments["min_new_tokens"], arguments["eos_token_id"], arguments["bad_words_ids"]) == (5, None, [[1], [2]])
    assert (arguments["num_beams"], arguments["length_penalty"], arguments["early_stopping"]) == (3, 0.5, False)
    kinds = [type(one) for one in (*arguments["logits_processor"], *arguments["stopping_criteria"])]
    assert kinds == [generate_hooks.NoRepeatsInText, generate_hooks.NoStopYet, generate_hooks.StopsInText]
