"""Which pairs each step trains on, in which order, and which of them a rank takes. Deterministic in its arguments."""

from __future__ import annotations

import random
from collections.abc import Sequence

from bench.schema.trial import TrainSpec

# Batches are cut from windows of this many batches that are sorted by length: next to no padding, while the order of
# training stays random.
WINDOW_BATCHES = 50


def num_steps(train: TrainSpec, num_pairs: int) -> int:
    """Optimiser steps of a trial; one epoch where the sweep names neither steps nor epochs."""
    if train.steps is not None:
        return train.steps
    return max(1, round((train.epochs or 1.0) * num_pairs / train.batch_size))


def training_order(lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Indices of the pairs of each step's batch: a stream of shuffled epochs, bucketed by length.

    The order depends on the arguments alone, so that any number of ranks trains on the same batches.
    """
    generator = random.Random(f"order {seed}")
    stream: list[int] = []
    while len(stream) < steps * batch_size:
        epoch = list(range(len(lengths)))
        generator.shuffle(epoch)
        stream.extend(epoch)
    batches: list[list[int]] = []
    window = WINDOW_BATCHES * batch_size
    for start in range(0, steps * batch_size, window):
        bucketed = sorted(stream[start : min(start + window, steps * batch_size)], key=lambda index: lengths[index])
        cut = [bucketed[at : at + batch_size] for at in range(0, len(bucketed), batch_size)]
        generator.shuffle(cut)
        batches.extend(cut)
    return batches


def micro_batches(batch: Sequence[int], rank: int, ranks: int, micro_batch_size: int) -> list[Sequence[int]]:
    """This rank's share of a batch, in forward passes. Shares are equal: the specification has checked it."""
    share = batch[rank::ranks]
    return [share[at : at + micro_batch_size] for at in range(0, len(share), micro_batch_size)]
