"""From examples to batches: tokens, subsets, the order of training. Everything here is deterministic in its seeds.

B batch, T tokens, N target tokens of the batch.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.method import positions_of
from bench.spec import TrainSpec
from bench.task import Example, Split, Task, TaskConfig, TaskError

# Batches are cut from windows of this many batches that are sorted by length: next to no padding, while the order of
# training stays random.
WINDOW_BATCHES = 50


@dataclass(frozen=True)
class Pair:
    """One source with one reference, in tokens; the target ends with the end token."""

    source_ids: list[int]
    target_ids: list[int]

    @property
    def num_tokens(self) -> int:
        return len(self.source_ids) + len(self.target_ids)


@dataclass
class Tokenization:
    """Turns examples into tokens, and counts what had to be cut."""

    tokenizer: Any
    config: TaskConfig
    truncated_sources: int = field(default=0, init=False)
    truncated_targets: int = field(default=0, init=False)

    def source(self, example: Example) -> list[int]:
        """What the model reads. A source that is too long is cut inside the template, never the template itself."""
        before, _, after = self.config.template.partition("{source}")
        ids = self._ids(before + example.source)
        if len(ids) > self.config.max_source_tokens:
            self.truncated_sources += 1
            ids = ids[: self.config.max_source_tokens]
        return ids + self._ids(after)

    def target(self, reference: str) -> list[int]:
        """A space, the reference and the end token."""
        ids = self._ids(" " + reference)
        if len(ids) > self.config.max_target_tokens:
            self.truncated_targets += 1
            ids = ids[: self.config.max_target_tokens]
        return [*ids, self.tokenizer.eos_token_id]

    def pairs(self, examples: Iterable[Example], references: int | None = None) -> list[Pair]:
        """One pair for each of the first ``references`` references (None: all) of each example."""
        return [
            Pair(self.source(example), self.target(reference))
            for example in examples
            for reference in example.references[:references]
        ]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def subset(examples: Sequence[Example], size: int | None, seed: int, split: str) -> list[Example]:
    """``size`` examples drawn without replacement, in their original order.

    Raises:
        TaskError: There are fewer.
    """
    if size is None:
        return list(examples)
    if size > len(examples):
        raise TaskError(f"task.{split}_examples: {size} asked for, the {split} split has {len(examples)}")
    chosen = random.Random(f"{split} {seed}").sample(range(len(examples)), size)
    return [examples[index] for index in sorted(chosen)]


def training_examples(examples: Sequence[Example], size: int | None, seed: int) -> list[Example]:
    """Training pairs, each an example with a single reference, drawn as :func:`subset` does."""
    single = [
        Example(f"{example.id}/{number}", example.facts, example.source, (reference,), example.tags)
        for example in examples
        for number, reference in enumerate(example.references)
    ]
    return subset(single, size, seed, "train")


def drawn_examples(task: Task, split: Split) -> list[Example]:
    """What a trial uses of a split: all of it, or the subset that the task's settings ask for.

    Raises:
        TaskError: The data is malformed, or too small for the subset.
    """
    config, examples = task.config, task.load(split)
    if split == "train":
        return training_examples(examples, config.train_examples, config.subset_seed)
    size = config.dev_examples if split == "dev" else config.test_examples
    return subset(examples, size, config.subset_seed, split)


@dataclass(frozen=True)
class Batch:
    """Right-padded pairs. Logits are wanted only where a target token is predicted."""

    input_ids: torch.Tensor  # (B, T) int64
    attention_mask: torch.Tensor  # (B, T) int64, 1 at real tokens
    position_ids: torch.Tensor  # (B, T) int64
    predicting: torch.Tensor  # (N,) int64 into the flattened (B, T): the positions before each target token
    target_ids: torch.Tensor  # (N,) int64

    def to(self, device: torch.device) -> Batch:
        names = ("input_ids", "attention_mask", "position_ids", "predicting", "target_ids")
        return Batch(**{name: getattr(self, name).to(device, non_blocking=True) for name in names})


def collate(pairs: Sequence[Pair], pad_token_id: int) -> Batch:
    """Pad pairs on the right to the longest."""
    length = max(pair.num_tokens for pair in pairs)
    input_ids = torch.full((len(pairs), length), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros((len(pairs), length), dtype=torch.long)
    predicting: list[int] = []
    for row, pair in enumerate(pairs):
        input_ids[row, : pair.num_tokens] = torch.tensor(pair.source_ids + pair.target_ids)
        attention_mask[row, : pair.num_tokens] = 1
        first = row * length + len(pair.source_ids) - 1
        predicting.extend(range(first, first + len(pair.target_ids)))
    target_ids = torch.tensor([token for pair in pairs for token in pair.target_ids])
    return Batch(input_ids, attention_mask, positions_of(attention_mask), torch.tensor(predicting), target_ids)


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
