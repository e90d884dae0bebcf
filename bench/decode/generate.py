"""Generates a text for each unique source, distributed over ranks.

The batched decoder (bench/decode/batched.py) continues decoder-only models, in a batch in which a source that ends
makes room for the next one. ``generate`` of transformers continues all others, in batches of about the same length.
Both find the same texts, and the record names the decoder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bench.decode import batched as decode_engine
from bench.decode.beam_search import DecodingSettings
from bench.decode.generate_hooks import DrawsTokens
from bench.decode.rows import rows_at_once
from bench.decode.sampling import draws_of
from bench.decode.stop_strings import StopStrings
from bench.measure.device_memory import device_memory
from bench.measure.phases import synchronize
from bench.models.architecture import Architecture, accepted_inputs, vocabulary_size
from bench.models.text_ends import end_token_ids, first_stop, stop_token_ids, text_of, until_stop
from bench.schema.record import DecodeCost, DecodeEngine
from bench.schema.trial import DecodeSpec, JsonDict


@dataclass(frozen=True)
class Decoded:
    """The texts that a rank has generated."""

    texts: dict[int, str]  # by index of the source
    truncated: list[int]  # sources whose text the length limit ended
    new_tokens: int  # including the tokens that end texts
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
    in_step: bool = False,
) -> Decoded:
    """Generate texts for this rank's share of the sources.

    A text ends at an end token or at the first stop string, for every method alike. In data-to-text that is a line
    break: without it an untouched base model would write on to the length limit, and its scores would measure that and
    not its text.

    Args:
        model: A patched language model in evaluation mode.
        tokenizer: Its tokenizer.
        architecture: Of the model.
        sources: Token ids of all unique sources.
        decode: Beams and limits.
        device: Of the model.
        rank: This rank.
        ranks: Number of ranks.
        progress: Called as sources are finished.
        in_step: Whether all ranks call the model equally often, which a model in shards needs. A rank without a batch
            of its own then computes something that does not count.
    """
    by_length = sorted(range(len(sources)), key=lambda index: (len(sources[index]), index), reverse=True)
    settings = decoding_settings(tokenizer, decode, model)
    end_tokens = end_token_ids(tokenizer, model.config, model.generation_config)
    batched = decode_engine.unsupported(model) is None
    own: Iterable[tuple[int, list[int]]]
    synchronize(device)
    started = time.perf_counter()
    if batched:
        mine = by_length[rank::ranks]
        found = decode_engine.decode(
            model,
            [sources[index] for index in mine],
            settings,
            rows_of(model, sources, decode, device),
            in_step,
            lambda finished: progress({"decoded": finished, "of": len(sources)}),
        )
        own = [(index, best.tokens) for index, (best, *_) in zip(mine, found, strict=True)]
    else:
        size = decode.padded_batch_size
        batches = [by_length[at : at + size] for at in range(0, len(sources), size)]
        own = _generated(
            model, architecture, sources, batches, settings, tokenizer.pad_token_id, rank, ranks, progress, in_step
        )
    texts: dict[int, str] = {}
    truncated: list[int] = []
    new_tokens = 0
    for index, tokens in own:
        new_tokens += len(tokens)
        ended = tokens[-1:] != [] and tokens[-1] in settings.ends
        # An end token is no part of the text. The token of a stop string may begin with the last full stop.
        text_tokens = tokens[:-1] if ended and tokens[-1] in end_tokens else tokens
        whole = text_of(tokenizer, text_tokens)
        texts[index] = until_stop(whole, decode.stop)
        if not ended and first_stop(whole, decode.stop) is None:
            truncated.append(index)
    synchronize(device)
    seconds = time.perf_counter() - started
    return Decoded(texts, truncated, new_tokens, seconds, "batched" if batched else "transformers")


def rows_of(model: Any, sources: Sequence[list[int]], decode: DecodeSpec, device: torch.device) -> int:
    """How many of these sources are decoded at once by the batched decoder."""
    config, longest = model.config.get_text_config(decoder=True), max(map(len, sources), default=0)
    on_cpu = device.type == "cpu"
    return rows_at_once(decode, config, model.dtype.itemsize, longest, device_memory(device), on_cpu)


def decode_cost(sources: int, new_tokens: int, seconds: float, engine: DecodeEngine | None) -> DecodeCost:
    """The cost of decoding for a record, without a rate if nothing was decoded."""
    rate = new_tokens / seconds if seconds else None
    return DecodeCost(sources=sources, new_tokens=new_tokens, tokens_per_second=rate, seconds=seconds, engine=engine)


def decoding_settings(tokenizer: Any, decode: DecodeSpec, model: Any = None) -> DecodingSettings:
    """The settings of a sweep, in tokens. Of a model's own settings only its end tokens count."""
    if model is None:
        ends, vocabulary = frozenset({tokenizer.eos_token_id}), None
    else:
        ends = end_token_ids(tokenizer, model.config, model.generation_config)
        vocabulary = vocabulary_size(model.config)
    ends |= stop_token_ids(tokenizer, tuple(decode.stop), vocabulary)
    spelled = [stop for stop in decode.stop if len(stop.encode()) > 1]
    return DecodingSettings(
        ends=tuple(sorted(ends - set(decode.banned_token_ids))),
        beams=decode.beams,
        max_new_tokens=decode.max_new_tokens,
        min_new_tokens=decode.min_new_tokens,
        length_penalty=decode.length_penalty,
        early_stopping=decode.early_stopping,
        no_repeat_ngram_size=decode.no_repeat_ngram_size,
        banned=tuple(decode.banned_token_ids),
        stops=StopStrings(tokenizer, spelled, vocabulary) if spelled else None,
        temperature=decode.temperature,
        top_p=decode.top_p,
        seed=decode.seed or 0,
    )


def _generated(
    model: Any,
    architecture: Architecture,
    sources: Sequence[list[int]],
    batches: Sequence[Sequence[int]],
    settings: DecodingSettings,
    pad_token_id: int,
    rank: int,
    ranks: int,
    progress: Callable[[JsonDict], None],
    in_step: bool,
) -> Iterator[tuple[int, list[int]]]:
    """Source and tokens of this rank's batches."""
    finished = 0
    for first in range(0, len(batches), ranks):
        counts = first + rank < len(batches)
        if not counts and not in_step:
            return
        batch = batches[first + rank] if counts else batches[0]
        inputs = [sources[index] for index in batch]
        tokens = _batch_generated(model, architecture, inputs, settings, pad_token_id, in_step)
        if not counts:
            return
        yield from zip(batch, tokens, strict=True)
        finished += len(batch)
        progress({"decoded": finished, "of": len(sources)})


def _batch_generated(
    model: Any,
    architecture: Architecture,
    sources: Sequence[list[int]],
    settings: DecodingSettings,
    pad_token_id: int,
    in_step: bool,
) -> list[list[int]]:
    """Tokens up to and including the end, by ``generate`` of transformers."""
    from transformers import GenerationConfig

    inputs = architecture.generation_inputs(sources, pad_token_id)
    arguments = settings.for_transformers()
    processors, criteria = arguments.pop("logits_processor") or [], arguments.pop("stopping_criteria")
    if settings.temperature:
        draws = draws_of(sources, settings.seed, settings.max_new_tokens)
        processors.append(DrawsTokens(draws, settings.temperature, settings.top_p))
    config = GenerationConfig(
        pad_token_id=pad_token_id, use_cache=True, **architecture.generation_settings, **arguments
    )
    with torch.inference_mode(), _own_settings_hidden(model):
        output = model.generate(
            **{name: tensor.to(model.device) for name, tensor in accepted_inputs(model, inputs).items()},
            generation_config=config,
            logits_processor=processors,
            stopping_criteria=criteria,
            synced_gpus=in_step,
        )
    return [settings.until_end(tokens) for tokens in architecture.new_tokens(output, inputs).tolist()]


@contextmanager
def _own_settings_hidden(model: Any) -> Iterator[None]:
    """Inside the block a model has no settings of its own, from which ``generate`` would fill those that are not set.

    A wrapper of peft uses that of the model inside it, so that every module that has a ``generation_config`` gets an
    empty one.
    """
    from transformers import GenerationConfig

    own = {module: module.generation_config for module in model.modules() if "generation_config" in vars(module)}
    for module in own:
        module.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for module, config in own.items():
            module.generation_config = config
