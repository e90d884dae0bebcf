"""The work of a trial in tokens: its micro-batches, its dev pairs and its sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.models.architecture import Architecture, Pair
from bench.schema.trial import TrialSpec
from bench.task import Split
from bench.train.order import micro_batches, num_steps, rows_evaluated_at_once, rows_trained_at_once, training_order


class MicroBatch(NamedTuple):
    """Rows that one rank passes through the model together."""

    rows: int
    padded_tokens: int
    target_tokens: int

    @property
    def length(self) -> float:
        """Tokens of a row, padding included."""
        return self.padded_tokens / self.rows


@dataclass(frozen=True)
class Workload:
    """The sizes of a trial's work."""

    steps: int
    accumulation: int  # micro-batches of a rank in one step
    micro_batches: tuple[MicroBatch, ...]  # of all steps and ranks
    source_tokens: float  # of a pair, mean
    target_tokens: float
    dev_tokens: int  # of all dev pairs together
    evaluations: int
    decoded_sources: int
    chosen_tokens: float = 0.0  # of all choices with their sources, where labels are chosen and nothing is written
    test_tokens: int = 0  # of all test pairs together, where the trial reads them
    dev_batches: tuple[MicroBatch, ...] = ()  # forward passes over all dev pairs, of all ranks
    test_batches: tuple[MicroBatch, ...] = ()

    @property
    def micro_batch_tokens(self) -> int:
        """Of a micro-batch, padding included; the mean."""
        return round(sum(micro.padded_tokens for micro in self.micro_batches) / len(self.micro_batches))


def workload(
    spec: TrialSpec,
    architecture: Architecture,
    pairs: Mapping[Split, Sequence[Pair]],
    decoded_sources: int,
    choices: int = 0,
) -> Workload:
    """The work of a trial, batch by batch as it will be trained.

    Args:
        spec: Of the trial.
        architecture: Of its base model, which pads.
        pairs: By split, in tokens.
        decoded_sources: Sources that are decoded at the end.
        choices: Of a source; 0: texts are written.
    """
    train, ranks = spec.train, spec.resources.ranks
    chosen = pairs["train"]
    steps = num_steps(train, len(chosen))
    order = training_order([pair.num_tokens for pair in chosen], train.batch_size, steps, spec.seed)
    order = order[: spec.stop_after_steps]
    micro_batch_size = rows_trained_at_once(train, ranks)
    found = []
    for batch in order:
        for rank in range(ranks):
            for micro in micro_batches(batch, rank, ranks, micro_batch_size):
                found.append(_batch([chosen[index] for index in micro], architecture))
    source_tokens = sum(len(pair.source_ids) for pair in chosen) / len(chosen)
    target_tokens = sum(len(pair.target_ids) for pair in chosen) / len(chosen)
    evaluated_at_once = rows_evaluated_at_once(train, ranks)
    dev, test = pairs["dev"], pairs.get("test", ())
    return Workload(
        steps=len(order),
        accumulation=train.batch_size // (micro_batch_size * ranks),
        micro_batches=tuple(found),
        source_tokens=source_tokens,
        target_tokens=target_tokens,
        dev_tokens=sum(pair.num_tokens for pair in dev),
        evaluations=-(-len(order) // (train.evaluate_every_steps or len(order))),
        decoded_sources=0 if choices else decoded_sources,
        chosen_tokens=decoded_sources * choices * (source_tokens + target_tokens),
        test_tokens=sum(pair.num_tokens for pair in test),
        dev_batches=_evaluated(dev, evaluated_at_once, architecture),
        test_batches=_evaluated(test, evaluated_at_once, architecture),
    )


def _evaluated(pairs: Sequence[Pair], at_once: int, architecture: Architecture) -> tuple[MicroBatch, ...]:
    """The batches whose losses :func:`bench.train.loop.mean_losses` takes."""
    by_length = sorted(pairs, key=lambda pair: pair.num_tokens)
    return tuple(_batch(by_length[at : at + at_once], architecture) for at in range(0, len(by_length), at_once))


def _batch(pairs: Sequence[Pair], architecture: Architecture) -> MicroBatch:
    targets = sum(len(pair.target_ids) for pair in pairs)
    return MicroBatch(len(pairs), architecture.padded_tokens(pairs), targets)
