"""Loads and checks the splits of a task, draws subsets for trials, and counts oddities such as repeated sources.

Imports no torch, because the command line reads data with this module, too.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from bench.task import SPLITS, Example, Split, Task, TaskError
from bench.tasks.choices import with_choices

Splits = dict[Split, list[Example]]


def load_split(task: Task, split: Split) -> list[Example]:
    """All examples of a split.

    Raises:
        TaskError: The data are malformed, the split is empty, or two examples have the same id.
    """
    examples = with_choices(task, split, task.load(split))
    if not examples:
        raise TaskError(f"task {type(task).__name__}: the {split} split is empty")
    twice = next((name for name, count in Counter(example.id for example in examples).items() if count > 1), None)
    if twice is not None:
        raise TaskError(f"task {type(task).__name__}: the {split} split has two examples with the id {twice!r}")
    return examples


def load_splits(task: Task, splits: Sequence[Split] = SPLITS) -> Splits:
    """The examples that a trial uses of these splits. Those of the train split are pairs with a single reference.

    Raises:
        TaskError: The data are malformed, or too small for the subsets in the task's settings.
    """
    return {split: drawn_examples(task, split) for split in splits}


def drawn_examples(task: Task, split: Split) -> list[Example]:
    """The examples that a trial uses of a split: all, or the subset in the task's settings.

    Raises:
        TaskError: The data are malformed, or too small for the subset.
    """
    config, examples = task.config, load_split(task, split)
    if split == "train":
        seed = config.subset_seed if config.train_seed is None else config.train_seed
        return training_examples(examples, config.train_examples, seed)
    size = config.dev_examples if split == "dev" else config.test_examples
    return subset(examples, size, config.subset_seed, split)


def subset(examples: Sequence[Example], size: int | None, seed: int, split: str) -> list[Example]:
    """``size`` examples drawn without replacement, in their original order.

    Strata, which are the first two tags, are represented in proportion to their size (largest remainders).

    Raises:
        TaskError: There are fewer.
    """
    if size is None:
        return list(examples)
    if size > len(examples):
        raise TaskError(f"task.{split}_examples: {size} asked for, the {split} split has {len(examples)}")
    strata: dict[tuple[str, ...], list[int]] = {}
    for index, example in enumerate(examples):
        strata.setdefault(example.tags[:2], []).append(index)
    chosen: list[int] = []
    for stratum, share in _shares({name: len(members) for name, members in strata.items()}, size).items():
        generator = random.Random(" ".join((split, str(seed), *stratum)))
        chosen += [strata[stratum][position] for position in generator.sample(range(len(strata[stratum])), share)]
    return [examples[index] for index in sorted(chosen)]


def _shares(sizes: Mapping[tuple[str, ...], int], total: int) -> dict[tuple[str, ...], int]:
    """The share of each stratum in ``total``: whole parts first, then the largest remainders."""
    everything = sum(sizes.values())
    exact = {name: total * size / everything for name, size in sizes.items()}
    shares = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (shares[name] - exact[name], name))
    for name in by_remainder[: total - sum(shares.values())]:
        shares[name] += 1
    return shares


def training_examples(examples: Sequence[Example], size: int | None, seed: int) -> list[Example]:
    """Training pairs, each an example with a single reference, drawn as :func:`subset` does."""
    single = [
        replace(example, id=f"{example.id}/{number}", references=(reference,))
        for example in examples
        for number, reference in enumerate(example.references)
    ]
    return subset(single, size, seed, "train")


# A sentence about each oddity for readers of scores. It follows the number.
ODDITY_SENTENCES = {
    "test_sources_in_train": "test sources are in the training data too: their scores may be remembered",
    "dev_sources_in_train": "dev sources are in the training data too: what is chosen on them may be overfitted",
    "test_sources_in_dev": "test sources are in the dev data too: settings were chosen on what is scored",
    "repeated_dev_sources": "dev sources occur more than once",
    "repeated_test_sources": "test sources occur more than once",
}

# Counts of what was too long for a model: what was cut, and the setting of the task that says where.
TRUNCATIONS = {
    "truncated_sources": ("sources", "max_source_tokens"),
    "truncated_targets": ("references", "max_target_tokens"),
}


def oddities(splits: Mapping[Split, Sequence[Example]]) -> dict[str, int]:
    """The numbers of sources that are in two splits, or more than once in a split. Readers of scores should know."""
    return oddities_of({split: list(map(content_of, examples)) for split, examples in splits.items()})


def oddities_of(contents: Mapping[Split, Sequence[str | bytes]]) -> dict[str, int]:
    """Like :func:`oddities`, for the results of :func:`content_of` for each source, or for their hashes."""
    counts: dict[str, int] = {}
    for split, of_split in contents.items():
        if split != "train":
            counts[f"{split}_sources_in_train"] = _shared(of_split, contents.get("train", []))
            counts[f"repeated_{split}_sources"] = len(of_split) - len(set(of_split))
    if "test" in contents and "dev" in contents:
        counts["test_sources_in_dev"] = _shared(contents["test"], contents["dev"])
    return counts


def oddity_sentences(counts: Mapping[str, int]) -> list[str]:
    """A sentence without a full stop for each oddity that occurs."""
    return [f"{counts[name]:,} {sentence}" for name, sentence in ODDITY_SENTENCES.items() if counts.get(name)]


def _shared(contents: Iterable[str | bytes], others: Iterable[str | bytes]) -> int:
    known = set(others)
    return sum(content in known for content in contents)


def content_of(example: Example) -> str:
    """A text that is equal for sources with the same facts in any order; without facts, with the same words.

    The labels to choose from are part of a source.
    """
    said = repr(sorted(set(example.facts))) if example.facts else " ".join(example.source.split())
    return f"{said}\n{example.choices!r}" if example.choices else said


def omission_lines(left_out: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A text for each split from which something was left out, with kinds and numbers."""
    return [
        f"{split}: {', '.join(f'{number:,} {what}' for what, number in counts.items())}"
        for split, counts in left_out.items()
        if counts
    ]
