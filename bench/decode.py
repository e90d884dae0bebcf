"""Generation: unique sources, sorted by length, batched, shared out over ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.architecture import Architecture
from bench.measure import synchronize
from bench.spec import DecodeSpec, JsonDict


def generate(
    model: Any,
    tokenizer: Any,
    architecture: Architecture,
    sources: Sequence[list[int]],
    decode: DecodeSpec,
    device: torch.device,
    rank: int,
    ranks: int,
    progress: Callable[[JsonDict], None] = lambda event: None,
) -> tuple[dict[int, str], int, float]:
    """Texts for this rank's share of the sources.

    A text ends at the end token or at the first line break, for every method alike; an untouched base model would
    otherwise ramble on to the length limit and be punished for that rather than for what it says.

    Args:
        model: A patched language model in evaluation mode.
        tokenizer: Its tokenizer.
        architecture: Of the model.
        sources: Token ids of all unique sources.
        decode: Beams and limits.
        device: Of the model.
        rank: This rank.
        ranks: Number of ranks.
        progress: Called after each batch.

    Returns:
        Index of the source to text; new tokens up to and including the end; seconds.
    """
    by_length = sorted(range(len(sources)), key=lambda index: (len(sources[index]), index), reverse=True)
    batches = [by_length[at : at + decode.batch_size] for at in range(0, len(sources), decode.batch_size)]
    ends = end_token_ids(tokenizer)
    texts: dict[int, str] = {}
    new_tokens = 0
    synchronize(device)
    started = time.perf_counter()
    for batch in batches[rank::ranks]:
        inputs = architecture.generation_inputs([sources[index] for index in batch], tokenizer.pad_token_id)
        output = _generate_batch(model, tokenizer, inputs, decode, ends)
        for index, tokens in zip(batch, architecture.new_tokens(output, inputs).tolist(), strict=True):
            length = next((n + 1 for n, token in enumerate(tokens) if token in ends), len(tokens))
            new_tokens += length
            texts[index] = first_line(tokenizer.decode(tokens[:length], skip_special_tokens=True))
        progress({"decoded": len(texts), "of": len(sources)})
    synchronize(device)
    return texts, new_tokens, time.perf_counter() - started


def _generate_batch(
    model: Any, tokenizer: Any, inputs: dict[str, torch.Tensor], decode: DecodeSpec, ends: list[int]
) -> torch.Tensor:
    """What the model's own ``generate`` returns for a batch, on the model's device."""
    beam_settings = {"length_penalty": decode.length_penalty} if decode.beams > 1 else {}
    with torch.inference_mode():
        output: torch.Tensor = model.generate(
            **{name: tensor.to(model.device) for name, tensor in inputs.items()},
            do_sample=False,
            num_beams=decode.beams,
            max_new_tokens=decode.max_new_tokens,
            min_new_tokens=decode.min_new_tokens or None,
            no_repeat_ngram_size=decode.no_repeat_ngram_size or None,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
            **beam_settings,
        )
    return output


def end_token_ids(tokenizer: Any) -> list[int]:
    """The end token, and single tokens that are line breaks."""
    breaks = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("\n", "\n\n"))
    return sorted({tokenizer.eos_token_id, *(ids[0] for ids in breaks if len(ids) == 1)})


def first_line(text: str) -> str:
    """The text up to its first line break, without white space around it."""
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else ""
