"""A random model with a tokenizer, and a task, for trials that measure a device. Nothing is downloaded."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Size:
    """How large model, data and training are on a kind of device."""

    width: int
    layers: int
    inner: int
    vocabulary: int
    batch_size: int
    steps: int
    words: int  # of a source; targets have a quarter of them
    sources: int  # of each of dev and test
    max_new_tokens: int
    lanes: tuple[int, ...]  # how many trials are trained in one pass


SIZES = {
    "cuda": Size(1536, 16, 4096, 32000, 16, 30, 96, 32, 64, (2, 4, 8)),
    "cpu": Size(64, 2, 128, 512, 4, 12, 8, 6, 6, (2,)),
}
HEAD_SIZE = 64
WORDS = ("river", "stone", "house", "bright", "small", "seven", "walks", "under", "green", "market", "old", "quiet")


def make_model(folder: Path, size: Size) -> None:
    """A Llama with random weights in fp32, whose tokenizer reads words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<end>", "<unknown>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", unk_token="<unknown>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    heads = max(2, size.width // HEAD_SIZE)
    config = LlamaConfig(
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        intermediate_size=size.inner,
        vocab_size=size.vocabulary,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def make_task(folder: Path, size: Size) -> None:
    """Files of the task jsonl. A target repeats every fourth word of its source: something to learn."""
    folder.mkdir(parents=True)
    drawn = random.Random(0)
    counts = {"train": size.batch_size * size.steps, "dev": size.sources, "test": size.sources}
    for split, count in counts.items():
        rows = []
        for _ in range(count):
            words = drawn.choices(WORDS, k=drawn.randint(size.words // 2, size.words))
            rows.append({"source": " ".join(words), "references": [" ".join(words[::4])]})
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
