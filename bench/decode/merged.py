"""What decoding costs with an adapter folded into the base weights, against the same adapter beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bench.decode.generate import Decoded, decode_cost, generate
from bench.method import Method
from bench.models.architecture import Architecture
from bench.schema.record import DecodeCost, MergedDecode
from bench.schema.trial import DecodeSpec

# Enough for two batches of the default size, so that each way goes first once.
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
    """Decode each batch merged and unmerged; which goes first alternates, so that neither gains by its place.

    Only decoding is timed; merging and its undoing are not.

    Args:
        method: One that is mergeable.
        model: Patched with it, with its trained state, unmerged and in evaluation mode; left as it was.
        tokenizer: Of the model.
        architecture: Of the model.
        sources: Token ids of this rank's sources; there may be none.
        decode: Beams and limits.
        device: Of the model.
    """
    found: dict[bool, list[Decoded]] = {True: [], False: []}
    for number, at in enumerate(range(0, len(sources), decode.batch_size)):
        batch = sources[at : at + decode.batch_size]
        for merged in (True, False) if number % 2 == 0 else (False, True):
            if merged:
                method.merge(model)
            found[merged].append(generate(model, tokenizer, architecture, batch, decode, device, rank=0, ranks=1))
            if merged:
                method.unmerge(model)
    pairs = zip(found[True], found[False], strict=True)
    return MergedDecode(
        merged=_cost(found[True]),
        unmerged=_cost(found[False]),
        equal_texts=sum(one.texts[index] == other.texts[index] for one, other in pairs for index in one.texts),
    )


def _cost(decoded: Sequence[Decoded]) -> DecodeCost:
    """Of batches that one rank decoded one after the other."""
    return decode_cost(
        sources=sum(len(one.texts) for one in decoded),
        new_tokens=sum(one.new_tokens for one in decoded),
        seconds=sum(one.seconds for one in decoded),
        engine=decoded[0].engine if decoded else None,
    )


def over_ranks(shares: Sequence[MergedDecode]) -> MergedDecode:
    """What all ranks found together; the slowest of them tells the time."""
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
