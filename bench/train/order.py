"""Assigns pairs to steps and ranks. The result depends only on the arguments."""

from __future__ import annotations

import random
from collections.abc import Sequence

from bench.schema.trial import TrainSpec

# The pairs of so many batches are sorted by length together before they are divided into batches. That needs nearly no
# padding and keeps the order of training random.
WINDOW_BATCHES = 50
# A pass without gradients keeps one layer at a time, so that it holds more rows than one of training; so many times.
ROWS_WITHOUT_GRADIENTS = 4


def num_steps(train: TrainSpec, num_pairs: int) -> int:
    """Optimiser steps of a trial; those of one epoch if the sweep names neither steps nor epochs."""
    if train.steps is not None:
        return train.steps
    return max(1, round((train.epochs or 1.0) * num_pairs / train.batch_size))


def training_order(lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Indices of the pairs in each step's batch, from a stream of shuffled epochs, grouped by length.

    Only the arguments decide the order, so that any number of ranks trains on the same batches.
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
    """This rank's share of a batch, divided into forward passes. All shares are equal, which the sweep has checked."""
    share = batch[rank::ranks]
    return [share[at : at + micro_batch_size] for at in range(0, len(share), micro_batch_size)]


def rows_trained_at_once(train: TrainSpec, ranks: int) -> int:
    """Pairs of one trial in a forward pass of one rank in training."""
    return train.micro_batch_size or train.batch_size // ranks


def rows_evaluated_at_once(train: TrainSpec, ranks: int) -> int:
    """Pairs in a forward pass of one rank that only takes losses: no more than a batch, and than fit beside training.

    A trial whose micro-batches are small, because no more fits, has to be evaluated in small passes as well.
    """
    return min(train.batch_size, ROWS_WITHOUT_GRADIENTS * rows_trained_at_once(train, ranks))
