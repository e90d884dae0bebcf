"""Tiny tokenizers of the kinds that checkpoints come with, made on the fly: no hub, no files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from conftest import CITIES, NAMES
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

TEXTS = [
    f"Data: {name} : home : {city}\nText: {name} lives in {city}. The home of {name} is {city}."
    for name in NAMES
    for city in CITIES
] + ["9"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _fast(tokenizer: Tokenizer, **names: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _around(tokenizer: Tokenizer, single: str) -> None:
    special = [(name, tokenizer.token_to_id(name)) for name in single.split() if name != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)


def byte_level(texts: Sequence[str] = TEXTS, single: str = "") -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3 (with ``single="<s> $A"``)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if single:
        _around(tokenizer, single)
    return _fast(tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def llama(texts: Sequence[str] = TEXTS, newline_is_a_space: bool = False) -> PreTrainedTokenizerFast:
    """As Llama 2, Gemma: BPE over ``▁`` without a pre-tokenizer, bytes for the rest, ``<s>`` in front."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    trained = Tokenizer(models.BPE())
    # Trained on words, so that no piece but a run of spaces reaches over one.
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=140, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    vocabulary = {piece: number for number, piece in enumerate([*special, *BYTES, *learned["vocab"]])}
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens(special)
    replaced = [normalizers.Replace("\n", " ")] if newline_is_a_space else []
    tokenizer.normalizer = normalizers.Sequence([*replaced, normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _around(tokenizer, "<s> $A")
    return _fast(tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def unigram(texts: Sequence[str] = TEXTS, single: str = "$A </s>") -> PreTrainedTokenizerFast:
    """As T5: Unigram over ``▁``, a line break is a space, ``</s>`` at the end."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace("\n", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<pad>", "<s>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    _around(tokenizer, single)
    return _fast(tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def word_piece(texts: Sequence[str] = TEXTS) -> PreTrainedTokenizerFast:
    """As BERT's decoders: lower case only, ``[CLS]`` and ``[SEP]`` around a text."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    _around(tokenizer, "[CLS] $A [SEP]")
    return _fast(tokenizer, bos_token="[CLS]", eos_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]")


def slow() -> Any:
    """As ByT5: bytes, in Python, so that there are no offsets."""
    return ByT5Tokenizer()


KINDS: dict[str, Callable[[], Any]] = {
    "byte-level": byte_level,
    "byte-level with a beginning": lambda: byte_level(single="<s> $A"),
    "llama": llama,
    "llama without line breaks": lambda: llama(newline_is_a_space=True),
    "unigram": unigram,
    "word pieces": word_piece,
    "slow": slow,
}
