"""Compares the cost of decoding with an adapter merged into the base weights and with the same adapter unmerged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bench.decode.generate import Decoded, decode_cost, generate
from bench.method import Method
from bench.models.architecture import Architecture
from bench.schema.record import DecodeCost, MergedDecode
from bench.schema.trial import DecodeSpec

# Two batches of the default size, so that merged and unmerged decoding each go first once.
MOST_SOURCES = 32


def decode_both_ways(
    method: Method,
    model: Any,
    tokenizer: Any,
    architecture: Architecture,
    sources: Sequence[list[int]],
    decode: DecodeSpec,
    device: torch.device,
) -> MergedDecode:
    """Decode each batch merged and unmerged, in alternating order, so that neither gains by being the second.

    Only decoding is timed, not merging and unmerging.

    Args:
        method: It must be mergeable.
        model: Patched by the method, with its trained state, unmerged and in evaluation mode. It is left as it was.
        tokenizer: Of the model.
        architecture: Of the model.
        sources: Token ids of this rank's sources; there may be none.
        decode: Beams and limits.
        device: Of the model.
    """
    decoded: dict[bool, list[Decoded]] = {True: [], False: []}
    size = decode.padded_batch_size
    for number, at in enumerate(range(0, len(sources), size)):
        batch = sources[at : at + size]
        for merged in (True, False) if number % 2 == 0 else (False, True):
            if merged:
                method.merge(model)
            decoded[merged].append(generate(model, tokenizer, architecture, batch, decode, device, rank=0, ranks=1))
            if merged:
                method.unmerge(model)
    pairs = zip(decoded[True], decoded[False], strict=True)
    return MergedDecode(
        merged=_cost(decoded[True]),
        unmerged=_cost(decoded[False]),
        equal_texts=sum(one.texts[index] == other.texts[index] for one, other in pairs for index in one.texts),
    )


def _cost(decoded: Sequence[Decoded]) -> DecodeCost:
    """The cost of batches that one rank has decoded one after the other."""
    return decode_cost(
        sources=sum(len(one.texts) for one in decoded),
        new_tokens=sum(one.new_tokens for one in decoded),
        seconds=sum(one.seconds for one in decoded),
        engine=decoded[0].engine if decoded else None,
    )


def over_ranks(shares: Sequence[MergedDecode]) -> MergedDecode:
    """The result of all ranks together. The time is that of the slowest rank."""
    return MergedDecode(
        merged=_slowest([share.merged for share in shares]),
        unmerged=_slowest([share.unmerged for share in shares]),
        equal_texts=sum(share.equal_texts for share in shares),
    )


def _slowest(costs: Sequence[DecodeCost]) -> DecodeCost:
    return decode_cost(
        sources=sum(cost.sources for cost in costs),
        new_tokens=sum(cost.new_tokens for cost in costs),
        seconds=max(cost.seconds for cost in costs),
        engine=costs[0].engine,
    )
