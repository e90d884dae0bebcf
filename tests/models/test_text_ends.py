"""The end of generated texts. No other setting of a checkpoint has an effect on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from bench.decode import batched, generate
from bench.models.architecture import architecture_of
from bench.models.base import load_model, load_tokenizer
from bench.models.text_ends import end_token_ids, last_bytes, stop_token_ids, tokens_beginning_with, until_stop
from bench.schema.trial import DecodeSpec, ModelSpec

# A value of every field that would change a text, or end it in an error, if a checkpoint's own were listened to.
HOSTILE: dict[str, Any] = {
    "_from_model_config": True,
    "assistant_confidence_threshold": 0.9,
    "assistant_early_exit": 1,
    "assistant_ensemble_weight": 0.5,
    "assistant_lookbehind": 1,
    "bad_words_ids": [[token] for token in range(2, 300)],
    "begin_suppress_tokens": list(range(2, 300)),
    "bos_token_id": 7,
    "cache_config": {"backend": "none"},
    "cache_implementation": "quantized",
    "compile_config": {"fullgraph": True},
    "constraints": ["a"],
    "continuous_batching_config": {"block_size": 1},
    "decoder_start_token_id": 9,
    "disable_compile": False,
    "diversity_penalty": 3.0,
    "do_sample": True,
    "dola_layers": "high",
    "early_stopping": True,
    "encoder_no_repeat_ngram_size": 1,
    "encoder_repetition_penalty": 9.0,
    "epsilon_cutoff": 0.5,
    "eta_cutoff": 0.5,
    "exponential_decay_length_penalty": (1, 9.0),
    "force_words_ids": [[11]],
    "forced_bos_token_id": 12,
    "forced_eos_token_id": 13,
    "guidance_scale": 5.0,
    "is_assistant": True,
    "length_penalty": -9.0,
    "low_memory": True,
    "max_cache_len": 1,
    "max_length": 2,
    "max_matching_ngram_size": 1,
    "max_new_tokens": 1,
    "max_time": 1e-9,
    "min_length": 60,
    "min_new_tokens": 11,
    "min_p": 0.9,
    "no_repeat_ngram_size": 1,
    "num_assistant_tokens": 1,
    "num_assistant_tokens_schedule": "heuristic",
    "num_beam_groups": 2,
    "num_beams": 2,
    "num_return_sequences": 2,
    "output_attentions": True,
    "output_hidden_states": True,
    "output_logits": True,
    "output_scores": True,
    "pad_token_id": 300,
    "penalty_alpha": 0.9,
    "prefill_chunk_size": 1,
    "prompt_lookup_num_tokens": 2,
    "remove_invalid_values": True,
    "renormalize_logits": True,
    "repetition_penalty": 9.0,
    "return_dict_in_generate": True,
    "sequence_bias": [[[14], 99.0]],
    "speculation_type": "dflash",
    "stop_strings": ["a", "e", "i", " "],
    "suppress_tokens": list(range(2, 300)),
    "target_lookbehind": 1,
    "temperature": 9.0,
    "token_healing": True,
    "top_h": 0.1,
    "top_k": 1,
    "top_p": 0.1,
    "transformers_version": "0.0.1",
    "typical_p": 0.1,
    "use_cache": False,
    "use_mtp": True,
    "watermarking_config": {"bias": 9.0},
    "a_field_of_a_remote_model": 5,
}
FIELDS = set(vars(GenerationConfig())) - {"eos_token_id", "_original_object_hash"}


def test_every_field_has_a_hostile_value() -> None:
    assert set(HOSTILE) >= FIELDS, "a field that a newer transformers has"


def decoded(model: Any, tokenizer: Any, **settings: Any) -> generate.Decoded:
    sources = [tokenizer(f"{name} lives in")["input_ids"] for name in ("Ann", "Bob Bob", "Cid")]
    spec = DecodeSpec(**{"max_new_tokens": 12, "batch_size": 2, **settings})
    generated = generate.generate(
        model, tokenizer, architecture_of(model.config), sources, spec, torch.device("cpu"), rank=0, ranks=1
    )
    return replace(generated, seconds=0.0)


@pytest.mark.parametrize(
    ("family", "beams", "fields"),
    [
        *(
            pytest.param(family, beams, tuple(HOSTILE), id=f"{family}-{beams}")
            for family in ("gpt2", "t5")
            for beams in (1, 3)
        ),
        *(pytest.param("t5", 1, (name,), marks=pytest.mark.full, id=name) for name in HOSTILE),
    ],
)
def test_only_the_sweep_decides_how_texts_are_generated(
    family: str, beams: int, fields: tuple[str, ...], tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(path=str(tiny_models[family]))
    tokenizer, model = load_tokenizer(spec), load_model(spec, torch.float32)
    expected = decoded(model, tokenizer, beams=beams)
    assert expected.new_tokens > len(expected.texts)
    for name in fields:
        setattr(model.generation_config, name, HOSTILE[name])
    assert decoded(model, tokenizer, beams=beams) == expected
    monkeypatch.setattr(batched, "unsupported", lambda model: "for a test")
    generated = decoded(model, tokenizer, beams=beams)
    assert (generated.texts, generated.new_tokens) == (expected.texts, expected.new_tokens)
    assert all(getattr(model.generation_config, name) == HOSTILE[name] for name in fields), "a model keeps its settings"


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("engine", ["batched", "transformers"])
def test_the_end_tokens_of_a_checkpoint_end_a_text(
    engine: str, beams: int, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(path=str(tiny_models["gpt2"]))
    tokenizer, model = load_tokenizer(spec), load_model(spec, torch.float32)
    source = tokenizer("Ann lives in")["input_ids"]
    with torch.no_grad():
        turn_end = int(model(input_ids=torch.tensor([source])).logits[0, -1].argmax())
    model.generation_config.eos_token_id = [1, turn_end]
    if engine == "transformers":
        monkeypatch.setattr(batched, "unsupported", lambda model: "for a test")
    spec = DecodeSpec(beams=beams, max_new_tokens=20)
    arguments = (model, tokenizer, architecture_of(model.config), [source], spec, torch.device("cpu"), 0, 1)
    generated = generate.generate(*arguments)
    assert generated.engine == engine
    with torch.no_grad():
        oracle = model.generate(torch.tensor([source]), num_beams=beams, max_new_tokens=20, pad_token_id=0)
    assert generated.new_tokens == oracle.shape[1] - len(source)
    if beams == 1:
        assert generated.new_tokens == 1
        assert generated.texts == {0: ""}, "an end token is no part of the text"
        assert generated.truncated == []


def test_end_tokens_of_tokenizer_config_and_generation_config_are_united(tiny_models: dict[str, Path]) -> None:
    spec = ModelSpec(path=str(tiny_models["gpt2"]))
    tokenizer, model = load_tokenizer(spec), load_model(spec, torch.float32)
    config = model.config
    assert end_token_ids(tokenizer, config, GenerationConfig(eos_token_id=[7, 8])) == {1, 7, 8}
    assert end_token_ids(tokenizer, config, GenerationConfig(eos_token_id=None)) == {1}
    assert end_token_ids(tokenizer, config, None) == {1}
    config.eos_token_id = [9, 50256]
    assert end_token_ids(tokenizer, config, GenerationConfig(eos_token_id=7)) == {1, 7, 9}, "50256 cannot be said"


def metaspace(tokens: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer as SentencePiece makes them, with byte tokens, that reads a line break as a space."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *tokens]
    model = models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace("\n", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>")


def test_a_token_is_a_line_break_only_if_it_decodes_to_one() -> None:
    tokens = ["▁", "▁a", "a", "b", ".", "\n", "\n\n", ".\n", "\r\n", "\r", "\u2028", "\x0b", "\x0c", "\u0085"]
    tokenizer = metaspace(tokens)
    vocabulary = tokenizer.get_vocab()
    assert tokenizer("\n", add_special_tokens=False)["input_ids"] == [vocabulary["▁"]]
    says_breaks = {vocabulary[token] for token in ("<0x0A>", "\n", "\n\n", ".\n", "\r\n")}
    assert stop_token_ids(tokenizer, ("\n",)) == says_breaks
    assert stop_token_ids(tokenizer, ("\n",), vocabulary["\n"]) == {vocabulary["<0x0A>"]}
    plain = metaspace(["▁", "▁a", "a"])
    bytes_alone = {plain.get_vocab()["<0x0A>"]}
    assert stop_token_ids(plain, ("\n",)) == bytes_alone


def test_byte_level_tokens_that_hold_a_line_break_are_found() -> None:
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "ĊĊ", ".Ċ", "čĊ", "Ġ."])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ"), (".", "Ċ"), ("č", "Ċ"), ("Ġ", ".")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    tokenizer.add_tokens([AddedToken("<br>\n", normalized=False)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    expected = {vocabulary[piece] for piece in ("Ċ", "ĊĊ", ".Ċ", "čĊ")} | {len(vocabulary) + 1}
    assert stop_token_ids(fast, ("\n",)) == expected


def test_bytes_of_a_character_that_is_not_whole_are_known() -> None:
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    ((merged, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("é")
    vocabulary = {piece: number for number, piece in enumerate([*pieces, f"a{merged[0]}"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", merged[0])]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    byte_level = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="a")
    of_sentencepiece = metaspace(["▁", "▁a", "a"])
    names = of_sentencepiece.get_vocab()
    first, second = "é".encode()
    begun_word = [vocabulary[f"a{merged[0]}"]]
    assert last_bytes(byte_level, begun_word, 9) == b"a" + bytes([first])
    assert tokens_beginning_with(byte_level, bytes([second])) == {vocabulary[merged[1]]}
    begun = [names["▁a"], names[f"<0x{first:02X}>"]]
    assert last_bytes(of_sentencepiece, begun, 9) == b"a" + bytes([first])
    assert tokens_beginning_with(of_sentencepiece, bytes([second])) == {names[f"<0x{second:02X}>"]}
    assert last_bytes(of_sentencepiece, [names["a"], names["a"]], 9) == b"aa"
    spelled = [names[f"<0x{byte:02X}>"] for byte in "éé a".encode()]
    assert last_bytes(of_sentencepiece, spelled, 1) == "éé a".encode(), "a run is read from its beginning"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Ann lives in Rome. \nBob", "Ann lives in Rome."),
        ("Ann lives in Rome.\r\nBob", "Ann lives in Rome."),
        ("\n\nBob", ""),
        ("", ""),
        *((f"Ann{mark}lives", f"Ann{mark}lives") for mark in "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e\r"),
    ],
)
def test_only_a_line_break_cuts_a_text(text: str, expected: str) -> None:
    assert until_stop(text, ["\n"]) == expected
