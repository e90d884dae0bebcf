"""An overview of a task: counts, oddities, licence, examples as the model sees them, lengths in tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.models.architecture import Architecture
from bench.models.tokens import Tokenization
from bench.task import CHAT, SPLITS, Example, Split, Task, TaskError
from bench.tasks.splits import load_split, oddities

NUM_EXAMPLES = 3
PERCENTILES = (50, 90, 99, 100)


@dataclass(frozen=True)
class SplitCounts:
    """Counts of one split."""

    sources: int
    references: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    """What was left out, by reason."""
    tags: Mapping[str, int] = field(default_factory=dict)
    """Sources of each first tag, e.g. seen and unseen."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of all sources (with their template) or references of a split, and how many are too long."""

    percentiles: Mapping[int, int]
    too_long: int
    total: int

    @property
    def truncated_fraction(self) -> float:
        return self.too_long / self.total


@dataclass(frozen=True)
class Overview:
    """The overview of a task."""

    counts: Mapping[Split, SplitCounts]
    missing: Mapping[Split, str]
    """Splits that cannot be loaded, and why."""
    oddities: Mapping[str, int]
    data_sha256: str | None
    examples: Sequence[tuple[str, str]]
    """What the model reads and what it is to write, for the first few sources of the first split that there is."""
    lengths: Mapping[Split, Mapping[str, Lengths]]


def overview(task: Task, tokenizer: Any = None, architecture: Architecture | None = None) -> Overview:
    """Load every split of a task and look at it. Subsets are not drawn.

    Args:
        task: With its settings.
        tokenizer: Of the model whose token lengths are wanted; None leaves them out.
        architecture: Of that model.

    Raises:
        TaskError: No split can be loaded.
    """
    splits: dict[Split, list[Example]] = {}
    missing: dict[Split, str] = {}
    for split in SPLITS:
        try:
            splits[split] = load_split(task, split)
        except TaskError as error:
            missing[split] = str(error)
    if not splits:
        raise TaskError(next(iter(missing.values())))
    tokens = None if tokenizer is None or architecture is None else Tokenization(tokenizer, task.config, architecture)
    return Overview(
        counts={split: _counts(examples, task.skipped(split)) for split, examples in splits.items()},
        missing=missing,
        oddities=oddities(splits),
        data_sha256=task.data_sha256(),
        examples=[as_the_model_sees(example, task, tokens) for example in next(iter(splits.values()))[:NUM_EXAMPLES]],
        lengths={} if tokens is None else {split: lengths(tokens, examples) for split, examples in splits.items()},
    )


def lengths(tokens: Tokenization, examples: Sequence[Example]) -> dict[str, Lengths]:
    """Lengths of sources and references in tokens, and what would be cut. What is measured is not cut itself."""
    limits = replace(tokens)
    limits.pairs(examples)
    no_limit = {"max_source_tokens": 10**9, "max_target_tokens": 10**9}
    whole = replace(tokens, config=tokens.config.model_copy(update=no_limit))
    sources = [len(whole.source(example)) for example in examples]
    references = [len(pair.target_ids) for pair in whole.pairs(examples)]
    return {
        "sources": Lengths(_percentiles(sources), limits.truncated_sources, len(sources)),
        "references": Lengths(_percentiles(references), limits.truncated_targets, len(references)),
    }


def as_the_model_sees(example: Example, task: Task, tokens: Tokenization | None) -> tuple[str, str]:
    """The text that the model reads and the one that it is to write: with special tokens where there is a tokenizer."""
    if tokens is None:
        template = task.config.template
        source = example.source if template == CHAT else template.replace("{source}", example.source)
        return source, example.references[0]
    (pair,) = tokens.pairs([example], 1)
    read, written = (
        tokens.tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (pair.source_ids, pair.target_ids)
    )
    return read, written


def _counts(examples: Sequence[Example], skipped: Mapping[str, int]) -> SplitCounts:
    return SplitCounts(
        sources=len(examples),
        references=sum(len(example.references) for example in examples),
        skipped=dict(skipped),
        tags=dict(Counter(example.tags[0] for example in examples if example.tags).most_common()),
    )


def _percentiles(values: Iterable[int]) -> dict[int, int]:
    ordered = sorted(values)
    return {percent: ordered[max(0, -(-len(ordered) * percent // 100) - 1)] for percent in PERCENTILES}
