"""Stop strings end texts wherever they are spelled, the same in both decoders and in both searches."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.decode import batched, generate
from bench.decode.stop_strings import StopStrings
from bench.models.architecture import architecture_of
from bench.models.base import load_model, load_tokenizer
from bench.models.text_ends import stop_token_ids, until_stop
from bench.schema.trial import DecodeSpec, ModelSpec

SOURCES = ("Ann lives in", "Bob Bob", "Cid : home")


def model_of(folder: Path) -> tuple[Any, Any]:
    spec = ModelSpec(path=str(folder))
    return load_tokenizer(spec), load_model(spec, torch.float32)


def decoded(tokenizer: Any, model: Any, **settings: Any) -> generate.Decoded:
    spec = DecodeSpec(**{"max_new_tokens": 14, "batch_size": 2, **settings})
    sources = [tokenizer(text)["input_ids"] for text in SOURCES]
    return generate.generate(
        model, tokenizer, architecture_of(model.config), sources, spec, torch.device("cpu"), rank=0, ranks=1
    )


def spelled_within(texts: dict[int, str]) -> str:
    """Four characters from the middle of the longest text, which no token spells alone."""
    text = max(texts.values(), key=len)
    return text[len(text) // 2 : len(text) // 2 + 4]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_stop_string_across_tokens_ends_the_text_in_both_decoders(
    family: str, beams: int, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, model = model_of(tiny_models[family])
    free = decoded(tokenizer, model, stop=[])
    stop = spelled_within(decoded(tokenizer, model, stop=[]).texts)
    assert len(stop) == 4
    assert not stop_token_ids(tokenizer, (stop,)), "one token spells it: this tests nothing"
    stopped = decoded(tokenizer, model, stop=[stop], beams=beams)
    assert all(stop not in text for text in stopped.texts.values())
    if beams == 1:
        assert stopped.texts == {index: until_stop(text, [stop]) for index, text in free.texts.items()}
        assert stopped.new_tokens < free.new_tokens, "decoding went on behind the stop string"
        assert len(stopped.truncated) < len(free.truncated)
    monkeypatch.setattr(batched, "unsupported", lambda model: "for a test")
    by_transformers = decoded(tokenizer, model, stop=[stop], beams=beams)
    assert by_transformers.texts == stopped.texts
    assert by_transformers.new_tokens == stopped.new_tokens
    assert by_transformers.truncated == stopped.truncated


@pytest.mark.parametrize("engine", ["batched", "transformers"])
def test_no_text_stops_before_it_is_long_enough(
    engine: str, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, model = model_of(tiny_models["gpt2"])
    stop = spelled_within(decoded(tokenizer, model, stop=[]).texts)
    if engine == "transformers":
        monkeypatch.setattr(batched, "unsupported", lambda model: "for a test")
    generated = decoded(tokenizer, model, stop=[stop], min_new_tokens=14)
    assert generated.new_tokens == 14 * len(SOURCES)
    assert all(stop not in text for text in generated.texts.values())


def test_texts_of_several_lines_are_kept_where_no_stop_string_is_set(tiny_models: dict[str, Path]) -> None:
    tokenizer, model = model_of(tiny_models["gpt2"])
    vocabulary = tokenizer.get_vocab()
    says = itertools.cycle([vocabulary["a"], next(iter(stop_token_ids(tokenizer, ("\n",))))])

    def take_turns(*arguments: Any) -> None:
        arguments[-1][..., next(says)] = 1000.0

    model.lm_head.register_forward_hook(take_turns)
    several = decoded(tokenizer, model, stop=[], max_new_tokens=6, batch_size=3)
    assert set(several.texts.values()) == {"a\na\na"}
    assert set(decoded(tokenizer, model, max_new_tokens=6, batch_size=3).texts.values()) == {"a"}


def test_completing_tokens_are_those_whose_text_completes_a_stop_string(tiny_models: dict[str, Path]) -> None:
    """Compared with the definition: every token is decoded after the same text."""
    tokenizer = load_tokenizer(ModelSpec(path=str(tiny_models["gpt2"])))
    spelled = ("lives in", "\n\n", "ome of")
    stops = StopStrings(tokenizer, spelled, None)
    alone = stop_token_ids(tokenizer, spelled)
    draw = random.Random(0)
    said = [tokenizer(f"The home of Ann{end}")["input_ids"][:-1] for end in ("", " l", " lives i", "\n", " lives")]
    said += [tokenizer(text)["input_ids"] for text in ("Ann lives i", "x\n", "Bob liv", "The h", "o")]
    completed = 0
    for tokens in draw.sample(said, len(said)):
        expected = {
            token
            for token in tokenizer.get_vocab().values()
            if stops.reached([*tokens, token]) and not stops.reached(tokens)
        }
        if not stops.reached(tokens):
            assert stops.completing(tokens) | alone == expected | alone
            completed += bool(expected - alone)
    assert completed >= 2


@pytest.mark.parametrize("engine", ["batched", "transformers"])
@pytest.mark.parametrize("stop", ["。", "no。", "<|end|>"])
def test_a_stop_string_ends_the_text_within_its_characters_and_as_a_special_token(
    stop: str, engine: str, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, model = model_of(tiny_models["gpt2"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    model.resize_token_embeddings(len(tokenizer))
    says = tokenizer(f"a{stop}b", add_special_tokens=False)["input_ids"]
    assert len(says) == (3 if stop == "<|end|>" else len(stop.encode()) + 2), "a token for each byte"
    spoken = itertools.cycle(says)

    def take_turns(*arguments: Any) -> None:
        arguments[-1][..., next(spoken)] = 1000.0

    model.lm_head.register_forward_hook(take_turns)
    if engine == "transformers":
        monkeypatch.setattr(batched, "unsupported", lambda model: "for a test")
    stopped = decoded(tokenizer, model, stop=[stop], batch_size=3)
    assert set(stopped.texts.values()) == {"a"}
    assert stopped.new_tokens == len(SOURCES) * (len(says) - 1), "decoding went on behind the stop string"
    assert stopped.truncated == []
