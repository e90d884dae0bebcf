"""Sources and targets are the tokens that the tokenizer makes of whole texts, and decoding reads what training read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kinds_of_tokenizers import KINDS, llama, unigram

from bench.conformance.tiny_models import WordTokenizer
from bench.models.adapter import AdapterCard
from bench.models.architecture import ArchitectureError, DecoderOnly, EncoderDecoder, special_tokens_around
from bench.models.base import ModelError, empty_model, load_model, load_tokenizer
from bench.models.tokens import Tokenization, tokenization
from bench.schema.trial import MethodSpec, ModelSpec
from bench.task import Example, TaskConfig

EXAMPLE = Example("x", (), "Ann : home : Rome", ("Ann lives in Rome.", "The home of Ann is Rome.", "9"))
WHOLE = "Data: Ann : home : Rome\nText:"


def tokens_of(tokenizer: Any, template: str = "Data: {source}\nText:", **settings: Any) -> Tokenization:
    beginning_token = settings.pop("beginning_token", True)
    return Tokenization(tokenizer, TaskConfig(template=template, **settings), DecoderOnly(), beginning_token)


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_reads_and_learns_the_tokens_of_the_whole_text(kind: str) -> None:
    tokenizer = KINDS[kind]()
    before, after = special_tokens_around(tokenizer)
    tokens = tokens_of(tokenizer)

    def own(text: str) -> list[int]:
        ids: list[int] = tokenizer(text)["input_ids"]
        return ids[: len(ids) - len(after)]

    assert tokens.source(EXAMPLE) == own(WHOLE)
    assert tokens.source(EXAMPLE)[: len(before)] == before
    for reference, pair in zip(EXAMPLE.references, tokens.pairs([EXAMPLE]), strict=True):
        assert pair.source_ids == tokens.source(EXAMPLE), "decoding reads what training read"
        assert pair.source_ids + pair.target_ids == [*own(f"{WHOLE} {reference}"), tokenizer.eos_token_id]
        said = tokenizer.decode(pair.target_ids, skip_special_tokens=True).strip()
        assert said == (reference.lower() if kind == "word pieces" else reference)


def test_no_lone_space_stands_at_the_seams() -> None:
    tokenizer = llama()
    (pair, *_) = tokens_of(tokenizer).pairs([EXAMPLE])
    pieces = tokenizer.convert_ids_to_tokens(pair.source_ids + pair.target_ids)
    assert pieces[0] == "<s>"
    assert pieces[-1] == "</s>"
    assert "▁" not in pieces
    apart = tokenizer.convert_ids_to_tokens(tokenizer(" Ann", add_special_tokens=False)["input_ids"])
    assert "▁" in apart or "▁▁" in apart, "which is what the piece alone gives"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", ["{source} ", "{source}", "{source}{bos}", " {source} {bos}", "{source}\n\n"])
def test_what_is_trained_begins_with_what_is_read_whatever_the_template(kind: str, template: str) -> None:
    tokens = tokens_of(KINDS[kind](), template)
    ids = tokens.source(EXAMPLE)
    for pair, reference in zip(tokens.pairs([EXAMPLE]), EXAMPLE.references, strict=True):
        assert pair.source_ids == ids
        behind, end = tokens.behind_source(EXAMPLE, reference)[1], tokens.tokenizer.eos_token_id
        assert pair.target_ids == tokens.architecture.whole_target(behind, tokens.texts.around_targets, end)
        said = tokens.tokenizer.decode(pair.target_ids, skip_special_tokens=True).strip()
        assert said == (reference.lower() if kind == "word pieces" else reference)


class Joining(WordTokenizer):
    """Makes one token of the last word of a source and the first of a target, wherever a colon precedes it."""

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return super().__call__(text.replace(": ", ":"))


def test_a_target_that_would_be_joined_with_its_source_is_tokenised_behind_another_text() -> None:
    tokens = tokens_of(Joining(), "{source} Text:")
    (pair,) = tokens.pairs([Example("x", (), "a b", ("one two",))])
    assert pair.source_ids == Joining()("a b Text:")["input_ids"]
    assert pair.target_ids == [*Joining()("one two")["input_ids"], 1]


def test_the_beginning_token_can_be_left_out_and_is_never_doubled() -> None:
    tokenizer = llama()
    begin, whole = tokenizer.bos_token_id, tokenizer(WHOLE)["input_ids"]
    assert tokens_of(tokenizer, beginning_token=False).source(EXAMPLE) == whole[1:]
    (pair, *_) = tokens_of(tokenizer, beginning_token=False).pairs([EXAMPLE])
    assert begin not in pair.source_ids + pair.target_ids
    said = tokens_of(tokenizer, "{bos}Data: {source}\nText:").source(EXAMPLE)
    assert said.count(begin) == 1
    assert said[0] == begin
    said = tokens_of(tokenizer, "{bos}Data: {source}\nText:", beginning_token=False).source(EXAMPLE)
    assert said[0] == begin, "a template that asks for it gets it"


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_source_is_cut_inside_the_template(kind: str) -> None:
    tokenizer = KINDS[kind]()
    example = Example("x", (), "Ann : home : Rome " * 40, ("Ann lives in Rome.",))
    limit = 40
    tokens = tokens_of(tokenizer, max_source_tokens=limit)
    ids = tokens.source(example)
    assert tokens.truncated_sources == 1
    read = tokenizer.decode(ids, skip_special_tokens=True).lower().replace(" ", "")
    assert read.startswith("data:ann:home:rome")
    assert read.endswith("text:")
    before, _ = special_tokens_around(tokenizer)
    template = len(tokenizer("Data: \nText:", add_special_tokens=False)["input_ids"])
    assert limit - 10 <= len(ids) <= limit + template + len(before)
    (pair,) = tokens.pairs([example])
    assert pair.source_ids == ids
    assert tokens_of(tokenizer, max_source_tokens=4000).pairs([example])[0].source_ids != ids


def test_an_encoder_reads_the_tokenizers_own_call_and_targets_are_texts_of_their_own() -> None:
    tokenizer = unigram()
    tokens = Tokenization(tokenizer, TaskConfig(template="Data: {source}\nText:"), EncoderDecoder(0))
    for pair, reference in zip(tokens.pairs([EXAMPLE]), EXAMPLE.references, strict=True):
        assert pair.source_ids == tokenizer(WHOLE)["input_ids"]
        assert pair.target_ids == tokenizer(reference)["input_ids"]


class TwoVocabularies(WordTokenizer):
    """As Marian's: targets have pieces of their own."""

    def _switch_to_target_mode(self) -> None:
        raise AssertionError("only called by transformers")

    def __call__(
        self, text: str | None = None, add_special_tokens: bool = False, text_target: str | None = None
    ) -> dict[str, list[int]]:
        if text is not None:
            return super().__call__(text)
        assert text_target is not None
        end = [self.eos_token_id] if add_special_tokens else []
        return {"input_ids": [*(90 + len(word) for word in text_target.split()), *end]}


def test_targets_of_an_encoder_decoder_are_tokenised_as_targets() -> None:
    tokens = Tokenization(TwoVocabularies(), TaskConfig(template="{source}"), EncoderDecoder(0))
    (pair,) = tokens.pairs([Example("x", (), "a b", ("one three",))])
    assert pair.source_ids == WordTokenizer()("a b")["input_ids"]
    assert pair.target_ids == [93, 95, 1]


def test_a_tokenizer_whose_special_tokens_cannot_be_told_is_refused() -> None:
    class Odd(WordTokenizer):
        def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
            return super().__call__(text + "s" if add_special_tokens else text)

    with pytest.raises(ArchitectureError, match="the tokenizer reads 'text' as"):
        special_tokens_around(Odd())


def test_adapters_of_the_time_before_read_their_sources_without_a_beginning_token() -> None:
    card = AdapterCard(
        method=MethodSpec(name="full", target="methods.full:Full"), model=ModelSpec(path="m"), template="{source}"
    )
    assert AdapterCard.model_validate_json(card.model_dump_json()).model.beginning_token
    old = card.model_dump()
    del old["model"]["beginning_token"]
    assert not AdapterCard.model_validate(old).model.beginning_token


@pytest.mark.parametrize("kind", ["beyond", "missing"])
def test_padding_is_a_token_that_the_embedding_has(kind: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    for path in tiny_models["gpt2"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    spec = ModelSpec(path=str(tmp_path))
    tokenizer = load_tokenizer(spec)
    rows = len(tokenizer)
    if kind == "beyond":
        tokenizer.add_special_tokens({"pad_token": "<new pad>"})
        assert tokenizer.pad_token_id == rows
    else:
        tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(spec).pad_token_id == tokenizer.eos_token_id
    tokenizer.add_special_tokens({"eos_token": "<new end>"})
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has the end token '<new end>' with the id \d+, and the embedding has \d+"):
        load_tokenizer(spec)


def test_a_token_without_a_row_in_the_embedding_is_an_error_wherever_it_is(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    for path in tiny_models["gpt2"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    spec = ModelSpec(path=str(tmp_path))
    tokenizer = load_tokenizer(spec)
    tokenizer.add_tokens(["Ann"])
    tokenizer.save_pretrained(tmp_path)
    tokens = tokenization(spec, TaskConfig())
    tokens.pairs([Example("x", (), "Bob : home : Rome", ("Bob lives in Rome.",))])
    for example in (EXAMPLE, Example("x", (), "Bob", ("Ann",))):
        with pytest.raises(ModelError, match=r"makes 'Ann' \(id \d+\) of the data, and the embedding has"):
            tokens.pairs([example])


def test_a_configuration_with_a_padding_token_beyond_the_embedding_loads(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    for path in tiny_models["llama"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["pad_token_id"] = config["vocab_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = ModelSpec(path=str(tmp_path))
    ids = torch.tensor([[5, 9, 3]])
    plain = load_model(ModelSpec(path=str(tiny_models["llama"])), torch.float32)
    assert torch.equal(load_model(spec, torch.float32)(ids).logits, plain(ids).logits)
    assert empty_model(spec).config.pad_token_id is None
