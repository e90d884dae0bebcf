"""From examples to batches: tokens, subsets, the order of training. Everything here is deterministic in its seeds."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.architecture import Architecture, Pair, plain_ids
from bench.spec import TrainSpec
from bench.task import Example, Split, Task, TaskConfig, TaskError

# Batches are cut from windows of this many batches that are sorted by length: next to no padding, while the order of
# training stays random.
WINDOW_BATCHES = 50


@dataclass
class Tokenization:
    """Turns examples into tokens, and counts what had to be cut."""

    tokenizer: Any
    config: TaskConfig
    architecture: Architecture
    truncated_sources: int = field(default=0, init=False)
    truncated_targets: int = field(default=0, init=False)

    def source(self, example: Example) -> list[int]:
        """What the model reads. A source that is too long is cut inside the template, never the template itself."""
        before, _, after = self.config.template.partition("{source}")
        ids = plain_ids(self.tokenizer, before + example.source)
        if len(ids) > self.config.max_source_tokens:
            self.truncated_sources += 1
            ids = ids[: self.config.max_source_tokens]
        return self.architecture.whole_source(self.tokenizer, ids + plain_ids(self.tokenizer, after))

    def target(self, reference: str) -> list[int]:
        """The reference and the end token."""
        ids = plain_ids(self.tokenizer, self.architecture.before_target + reference)
        if len(ids) > self.config.max_target_tokens:
            self.truncated_targets += 1
            ids = ids[: self.config.max_target_tokens]
        return self.architecture.whole_target(self.tokenizer, ids)

    def pairs(self, examples: Iterable[Example], references: int | None = None) -> list[Pair]:
        """One pair for each of the first ``references`` references (None: all) of each example."""
        return [
            Pair(self.source(example), self.target(reference))
            for example in examples
            for reference in example.references[:references]
        ]


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
