"""What is raced on: models, batches, and the adapter that all contenders start from. Written once, read by all."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bench.models.base import EMBEDDED, embedded_model, load_tokenizer
from bench.models.tokens import tokenization
from bench.schema.trial import ModelSpec
from bench.tasks.e2e import E2E
from bench.tasks.splits import subset, training_examples
from bench.train.order import training_order
from race import ours

# What both sides have, with settings under which they compute the same: peft moves tokens behind a prefix, which is our
# shift_positions, and knows keys and values only. Learning rates are low enough for rounding to stay rounding.
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "prefix_tuning": ({"num_prompt_tokens": 10, "parametrization": "key_value", "shift_positions": True}, 1e-3),
    "prompt_tuning": ({"num_prompt_tokens": 20}, 1e-3),
    "lora": ({"rank": 4, "alpha": 32.0}, 1e-4),
    "full": ({}, 1e-6),
}
# Pairs that batches are cut from: as many as are sorted by length at a time (bench/models/tokens.py).
POOL_BATCHES = 50


def model_folder(name: str, scratch: Path) -> Path:
    """Folder of a model of the race, made on first use.

    Args:
        name: ``smollm2-135m``; ``gpt2-6-layers``, random weights of GPT-2's width and vocabulary; ``tiny``, a Llama of
            two layers for sweeps whose trials take a moment.
        scratch: Where models are made.
    """
    if name == EMBEDDED:
        return embedded_model()
    folder = scratch / name
    if not folder.is_dir():
        _make_model(name).save_pretrained(folder)
        load_tokenizer(ModelSpec()).save_pretrained(folder)
    return folder


def _make_model(name: str) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer(ModelSpec())
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    if name == "gpt2-6-layers":
        still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        # Their tokenizers differ, so that the vocabulary is the one of SmolLM2 (49,152 of GPT-2's 50,257).
        return GPT2LMHeadModel(GPT2Config(n_layer=6, vocab_size=len(tokenizer), **still, **ends))
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            initializer_range=0.2,  # for texts that differ
            **ends,
        )
    )


def e2e(folder: str | None) -> E2E:
    """The task; without a folder the public release is downloaded."""
    return E2E(E2E.Config(path=folder))


def write_batches(path: Path, task: E2E, model: Path, batch_size: int, steps: int) -> None:
    """Pairs of the training split, and the batches of two orders over the same pairs.

    ``grouped`` are batches by length as our order of training cuts them from a pool of 50 batches; ``random`` deals the
    same pairs out at random, as the defaults of the peers do.
    """
    spec = ModelSpec(path=str(model))
    tokens = tokenization(spec, task.config)
    pool = tokens.pairs(training_examples(task.load("train"), batch_size * POOL_BATCHES, 0))
    lengths = [pair.num_tokens for pair in pool]
    grouped = training_order(lengths, batch_size, POOL_BATCHES, seed=0)[:steps]
    shuffled = [index for batch in grouped for index in batch]
    random.Random(0).shuffle(shuffled)
    mixed = [shuffled[at : at + batch_size] for at in range(0, len(shuffled), batch_size)]
    targets = sum(len(pool[index].target_ids) for index in shuffled)
    useful = sum(lengths[index] for index in shuffled)
    orders = {"grouped": grouped, "random": mixed}
    content = {
        "pairs": [[pair.source_ids, pair.target_ids] for pair in pool],
        **orders,
        "tokens": {name: [sum(lengths[i] for i in batch) for batch in order] for name, order in orders.items()},
        "summary": {
            "pairs": len(shuffled),
            "batch_size": batch_size,
            "mean_tokens": useful / len(shuffled),
            "target_share": targets / useful,
            "useful_share": {name: _useful(lengths, order) for name, order in orders.items()},
        },
    }
    path.write_text(json.dumps(content))


def _useful(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    return sum(lengths[index] for batch in batches for index in batch) / padded


def write_start(folder: Path, method_name: str, model: Path) -> None:
    """The untrained adapter, in our terms and in peft's."""
    config, _ = METHODS[method_name]
    method, patched = ours.start_of(method_name, config, str(model))
    adapter = method.to_peft(patched)
    folder.mkdir(parents=True)
    for name, state in (("tuneoff", method.adapter_state(patched)), ("peft", adapter.state)):
        save_file(
            {key: tensor.detach().contiguous().clone() for key, tensor in state.items()}, folder / f"{name}.safetensors"
        )
    (folder / "config.json").write_text(json.dumps(adapter.config))


def sampled_sources(task: E2E, model: Path, size: int) -> list[dict[str, Any]]:
    """Unique sources of the test split, drawn with a fixed seed, with how many references each has."""
    spec = ModelSpec(path=str(model))
    tokens = tokenization(spec, task.config)
    return [
        {"ids": tokens.source(example), "references": len(example.references)}
        for example in subset(task.load("test"), size, 0, "test")
    ]


def write_sweep_data(folder: Path, task: E2E) -> None:
    """A small data set in JSON lines, which both sides of the sweep read."""
    folder.mkdir(parents=True)
    drawn = {
        "train": training_examples(task.load("train"), 160, 0),
        "dev": subset(task.load("dev"), 16, 0, "dev"),
        "test": subset(task.load("test"), 16, 0, "test"),
    }
    for split, examples in drawn.items():
        lines = [json.dumps({"source": example.source, "references": list(example.references)}) for example in examples]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
