"""Generation: unique sources, sorted by length, batched, shared out over ranks.

Decoder-only models are continued by the batched decoder (bench/decode_engine.py), others by ``generate`` of
transformers; both search for the same texts, and the record says which it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench import decode_engine
from bench.architecture import Architecture, accepted_inputs
from bench.decode_search import SearchSettings
from bench.measure import synchronize
from bench.record import DecodeCost, DecodeEngine
from bench.spec import DecodeSpec, JsonDict


@dataclass(frozen=True)
class Decoded:
    """What a rank has generated."""

    texts: dict[int, str]  # by index of the source
    truncated: list[int]  # sources whose text the length limit ended
    new_tokens: int  # up to and including the ends
    seconds: float
    engine: DecodeEngine


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
) -> Decoded:
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
    """
    by_length = sorted(range(len(sources)), key=lambda index: (len(sources[index]), index), reverse=True)
    batches = [by_length[at : at + decode.batch_size] for at in range(0, len(sources), decode.batch_size)]
    settings = search_settings(tokenizer, decode)
    batched = decode_engine.unsupported(model) is None
    texts: dict[int, str] = {}
    truncated: list[int] = []
    new_tokens = 0
    synchronize(device)
    started = time.perf_counter()
    for batch in batches[rank::ranks]:
        inputs = [sources[index] for index in batch]
        if batched:
            results = [found[0].tokens for found in decode_engine.search(model, inputs, settings)]
        else:
            results = _generated(model, architecture, inputs, settings, tokenizer.pad_token_id)
        for index, tokens in zip(batch, results, strict=True):
            new_tokens += len(tokens)
            whole = tokenizer.decode(tokens, skip_special_tokens=True)
            texts[index] = first_line(whole)
            if len(whole.strip().splitlines()) < 2 and (not tokens or tokens[-1] not in settings.ends):
                truncated.append(index)
        progress({"decoded": len(texts), "of": len(sources)})
    synchronize(device)
    seconds = time.perf_counter() - started
    return Decoded(texts, truncated, new_tokens, seconds, "batched" if batched else "transformers")


def decode_cost(sources: int, new_tokens: int, seconds: float, engine: DecodeEngine | None) -> DecodeCost:
    """For a record; no rate where nothing was decoded."""
    rate = new_tokens / seconds if seconds else None
    return DecodeCost(sources=sources, new_tokens=new_tokens, tokens_per_second=rate, seconds=seconds, engine=engine)


def search_settings(tokenizer: Any, decode: DecodeSpec) -> SearchSettings:
    """What a sweep asks for, in tokens."""
    banned = tuple(decode.banned_token_ids)
    return SearchSettings(
        ends=tuple(end for end in end_token_ids(tokenizer) if end not in banned),
        beams=decode.beams,
        max_new_tokens=decode.max_new_tokens,
        min_new_tokens=decode.min_new_tokens,
        length_penalty=decode.length_penalty,
        early_stopping=decode.early_stopping,
        no_repeat_ngram_size=decode.no_repeat_ngram_size,
        banned=banned,
    )


def _generated(
    model: Any, architecture: Architecture, sources: Sequence[list[int]], settings: SearchSettings, pad_token_id: int
) -> list[list[int]]:
    """Tokens up to and including the end, by ``generate`` of transformers."""
    inputs = architecture.generation_inputs(sources, pad_token_id)
    with torch.inference_mode():
        output = model.generate(
            **{name: tensor.to(model.device) for name, tensor in accepted_inputs(model, inputs).items()},
            pad_token_id=pad_token_id,
            **settings.for_transformers(),
        )
    return [settings.until_end(tokens) for tokens in architecture.new_tokens(output, inputs).tolist()]


def end_token_ids(tokenizer: Any) -> list[int]:
    """The end token, and single tokens that are line breaks."""
    breaks = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("\n", "\n\n"))
    return sorted({tokenizer.eos_token_id, *(ids[0] for ids in breaks if len(ids) == 1)})


def first_line(text: str) -> str:
    """The text up to its first line break, without white space around it."""
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else ""
