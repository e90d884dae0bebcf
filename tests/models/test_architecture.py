"""Batches of pairs for a decoder, and for an encoder with a decoder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from bench.conformance.tiny_models import WordTokenizer, tiny_model
from bench.models.architecture import (
    ArchitectureError,
    DecoderOnly,
    EncoderDecoder,
    Pair,
    Side,
    architecture_of,
    special_tokens_around,
)
from bench.models.base import ModelError, architecture, empty_model, load_model, load_tokenizer
from bench.models.tokens import Tokenization
from bench.schema.trial import ModelSpec
from bench.task import Example, TaskConfig
from bench.train.loss import TargetLoss

PAIRS = [Pair([5, 6], [7, 1]), Pair([8], [9, 3, 4, 1])]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_decoder_reads_source_and_target_as_one_sequence(side: Side) -> None:
    batch = DecoderOnly().batch(PAIRS, pad_token_id=0, side=side)
    rows = {"right": [5, 6, 7, 1, 0], "left": [0, 5, 6, 7, 1]}
    assert batch.inputs["input_ids"].tolist() == [rows[side], [8, 9, 3, 4, 1]]
    assert batch.inputs["position_ids"].tolist()[1] == [0, 1, 2, 3, 4]
    assert batch.target_ids.tolist() == [7, 1, 9, 3, 4, 1]
    flat = batch.inputs["input_ids"].flatten()
    assert torch.equal(flat[batch.predicting + 1], batch.target_ids)
    assert DecoderOnly().padded_tokens(PAIRS) == batch.inputs["input_ids"].numel()


def test_an_encoder_reads_the_source_and_the_decoder_the_shifted_target() -> None:
    batch = EncoderDecoder(decoder_start_token_id=2).batch(PAIRS, pad_token_id=0)
    assert batch.inputs["input_ids"].tolist() == [[5, 6], [8, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch.inputs["decoder_input_ids"].tolist() == [[2, 7, 0, 0], [2, 9, 3, 4]]
    assert batch.predicting.tolist() == [0, 1, 4, 5, 6, 7]
    assert batch.target_ids.tolist() == [7, 1, 9, 3, 4, 1]
    assert EncoderDecoder(2).padded_tokens(PAIRS) == 2 * 2 + 2 * 4
    with pytest.raises(ValueError, match="padded on the right"):
        EncoderDecoder(2).batch(PAIRS, pad_token_id=0, side="left")


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_loss_of_an_encoder_decoder_is_what_transformers_makes_of_labels(family: str) -> None:
    model = tiny_model(family)
    labels = torch.tensor([[7, 1, -100, -100], [9, 3, 4, 1]])
    batch = architecture_of(model.config).batch(PAIRS, pad_token_id=0)
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    expected = model(input_ids=ids, attention_mask=mask, labels=labels).loss * 6
    torch.testing.assert_close(TargetLoss(model).of(batch).double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [DecoderOnly(), EncoderDecoder(2)])
def test_what_generate_adds_is_new(kind: Any) -> None:
    inputs = kind.generation_inputs([[5, 6], [8]], pad_token_id=0)
    assert inputs["input_ids"].tolist() == ([[5, 6], [0, 8]] if kind == DecoderOnly() else [[5, 6], [8, 0]])
    given = inputs["input_ids"] if kind == DecoderOnly() else torch.tensor([[2], [2]])
    output = torch.cat([given, torch.tensor([[3, 1], [4, 1]])], dim=1)
    assert kind.new_tokens(output, inputs).tolist() == [[3, 1], [4, 1]]


class BartLikeTokenizer(WordTokenizer):
    """Puts <s> and </s> around a text."""

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        ids = super().__call__(text)["input_ids"]
        return {"input_ids": [2, *ids, self.eos_token_id] if add_special_tokens else ids}


def test_an_encoder_decoder_sees_the_special_tokens_of_its_pre_training() -> None:
    assert special_tokens_around(BartLikeTokenizer()) == ([2], [1])
    config = TaskConfig(template="Data: {source} Text:", max_target_tokens=2)
    example = Example("x", (), "a b", ("one two three",))
    for tokenizer, before in ((BartLikeTokenizer(), [2]), (WordTokenizer(), [])):
        (pair,) = Tokenization(tokenizer, config, EncoderDecoder(0)).pairs([example])
        ids = tokenizer("Data: a b Text:")["input_ids"]
        assert pair.source_ids == ([2, *ids, 1] if before else ids)
        assert pair.target_ids == [*before, *tokenizer("one two")["input_ids"], 1], "it ends, whoever adds the end"


def test_the_kind_of_a_model_folder_decides_how_it_loads(tiny_models: dict[str, Path]) -> None:
    for family, kind in (("t5", EncoderDecoder(0)), ("llama", DecoderOnly())):
        spec = ModelSpec(path=str(tiny_models[family]))
        assert type(architecture(spec)) is type(kind)
        assert type(load_model(spec, torch.float32)) is type(empty_model(spec))
    tokenizer: PreTrainedTokenizerFast = load_tokenizer(ModelSpec(path=str(tiny_models["t5"])))
    assert special_tokens_around(tokenizer) == ([], [tokenizer.eos_token_id])


def test_a_decoder_that_does_not_know_its_start_is_refused(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    config = SimpleNamespace(is_encoder_decoder=True, decoder_start_token_id=None, model_type="t5")
    with pytest.raises(ArchitectureError, match=r"t5 is an encoder-decoder whose config\.json has no decoder_start"):
        architecture_of(config)
    for path in tiny_models["t5"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = tmp_path / "config.json"
    settings.write_text(settings.read_text().replace('"decoder_start_token_id": 0', '"decoder_start_token_id": null'))
    with pytest.raises(ModelError, match=r"model.path: .* no decoder_start_token_id"):
        architecture(ModelSpec(path=str(tmp_path)))
