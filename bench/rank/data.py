"""What a trial trains on and is scored by, as a rank reads it."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass

from bench.models.split_data import Pairs, SplitData
from bench.models.token_cache import read_split
from bench.models.tokens import Tokenization, tokenization
from bench.plugins.registry import make_task
from bench.schema.trial import TrialSpec
from bench.task import Split, Task


@dataclass(frozen=True)
class TrialData:
    """The task of a trial with its splits, tokenised. Trials that share a launch share it."""

    task: Task
    splits: dict[Split, SplitData]
    tokens: Tokenization

    @functools.cached_property
    def pairs(self) -> dict[Split, Pairs]:
        """What is trained on and what losses are taken of."""
        return {split: data.pairs for split, data in self.splits.items()}


def read_data(spec: TrialSpec) -> TrialData:
    """Read and tokenise the splits that a trial needs.

    Raises:
        TaskError: The data cannot be read, or have changed since the sweep was started.
    """
    task = make_task(spec.task)
    tokens = tokenization(spec.scored_model, task.config)
    splits = {split: read_split(spec.task, task, split, tokens, _log) for split in spec.splits}
    return TrialData(task, splits, tokens)


def _log(message: str) -> None:
    """Write a line into the rank's log."""
    print(message, file=sys.stderr)  # noqa: T201
