"""One split of a task in tokens, with its examples and with the data facts of a record.

Everything is in flat columns of Arrow, in memory or mapped from a file (:mod:`bench.models.token_cache`), so that
200,000 pairs take little more memory than their tokens.
"""

from __future__ import annotations

import hashlib
import itertools
from abc import abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, overload

import numpy

from bench.models.architecture import Pair
from bench.models.tokens import Tokenization
from bench.schema.trial import JsonDict, TaskSpec
from bench.task import Example, Split, Task, TaskError
from bench.tasks.splits import content_of, drawn_examples, oddities_of

# So many examples are tokenised at a time, and only their flat tokens are kept.
CHUNK = 2048

Made = TypeVar("Made")


class _MadeWhenAsked(Sequence[Made]):
    """A sequence that makes an element when it is read."""

    @abstractmethod
    def made(self, at: int) -> Made:
        """The element at this position, from 0."""

    @overload
    def __getitem__(self, index: int) -> Made: ...

    @overload
    def __getitem__(self, index: slice) -> list[Made]: ...

    def __getitem__(self, index: int | slice) -> Made | list[Made]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(index)
        return self.made(at)


class Pairs(_MadeWhenAsked[Pair]):
    """Pairs of tokens, each of which is made when it is read.

    Args:
        batch: Columns ``source_ids`` and ``target_ids``, each a large list of int32 without nulls.
    """

    def __init__(self, batch: Any) -> None:
        self._columns = [
            (column.offsets.to_numpy(), column.values.to_numpy())
            for column in (batch.column("source_ids"), batch.column("target_ids"))
        ]

    def __len__(self) -> int:
        return len(self._columns[0][0]) - 1

    def longest(self, joined: bool) -> int:
        """Tokens of the longest sequence: of a source with its target behind it, or of either of them."""
        sources, targets = (numpy.diff(offsets) for offsets, _ in self._columns)
        return int((sources + targets if joined else numpy.maximum(sources, targets)).max(initial=0))

    def made(self, at: int) -> Pair:
        source, target = (ids[offsets[at] : offsets[at + 1]].tolist() for offsets, ids in self._columns)
        return Pair(source, target)

    def __iter__(self) -> Iterator[Pair]:
        return map(self.made, range(len(self)))


class StoredExamples(_MadeWhenAsked[Example]):
    """Examples, each of which is made when it is read.

    Args:
        batch: A column for each field of :class:`bench.task.Example`, and others.
    """

    def __init__(self, batch: Any) -> None:
        self._batch = batch.select([field.name for field in fields(Example)])

    @property
    def reference_counts(self) -> list[int]:
        """The number of references of each example."""
        counts: list[int] = numpy.diff(self._batch.column("references").offsets.to_numpy()).tolist()
        return counts

    def all_references(self) -> Iterator[str]:
        """The references of all examples, one after the other, without the examples."""
        for start in range(0, len(self), CHUNK):
            yield from self._batch.column("references").slice(start, CHUNK).flatten().to_pylist()

    def __len__(self) -> int:
        return int(self._batch.num_rows)

    def made(self, at: int) -> Example:
        return next(self._rows(at, 1))

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self), CHUNK):
            yield from self._rows(start, CHUNK)

    def _rows(self, start: int, count: int) -> Iterator[Example]:
        for row in self._batch.slice(start, count).to_pylist():
            facts, turns = (tuple(map(tuple, row[name])) for name in ("facts", "turns"))
            references, tags, choices = (tuple(row[name]) for name in ("references", "tags", "choices"))
            yield Example(row["id"], facts, row["source"], references, tags, choices, turns)


@dataclass(frozen=True)
class SplitData:
    """A split in tokens.

    Attributes:
        pairs_batch: See :class:`Pairs`.
        examples_batch: See :class:`StoredExamples`. It also has ``content``, by which splits are compared, and
            ``source_ids``, the tokens that the model reads.
        summary: Counts and checksums for the record.
    """

    pairs_batch: Any
    examples_batch: Any
    summary: JsonDict

    @property
    def pairs(self) -> Pairs:
        """Sources with references, in tokens."""
        return Pairs(self.pairs_batch)

    @property
    def examples(self) -> StoredExamples:
        """The examples. Those of the training split have one reference each."""
        return StoredExamples(self.examples_batch)

    @property
    def longest_source(self) -> int:
        """The most tokens that the model reads for an example."""
        return max(self.source_lengths, default=0)

    @property
    def source_lengths(self) -> list[int]:
        """The number of tokens that the model reads for each example."""
        lengths: list[int] = numpy.diff(self.examples_batch.column("source_ids").offsets.to_numpy()).tolist()
        return lengths

    def sources(self) -> list[tuple[int, ...]]:
        """The tokens that the model reads for each example."""
        return [tuple(ids) for ids in self.examples_batch.column("source_ids").to_pylist()]


def tokenised(spec: TaskSpec, task: Task, split: Split, tokens: Tokenization) -> SplitData:
    """Read a split and tokenise it.

    Raises:
        TaskError: The data cannot be read, or have changed since the sweep was started.
    """
    if spec.data_sha256 is not None and (sha256 := task.data_sha256()) != spec.data_sha256:
        raise TaskError(
            f"task {spec.name}: the data have changed since the sweep was started: their hash is {sha256}, it was "
            f"{spec.data_sha256}; start the command again, and the trials of now are others"
        )
    examples = drawn_examples(task, split)
    tokens = replace(tokens)  # a copy whose counts begin at 0
    references = None if split == "train" else task.config.loss_references
    columns = [_Lists() for _ in range(3)]
    for start in range(0, len(examples), CHUNK):
        chunk = examples[start : start + CHUNK]
        found_pairs = tokens.pairs(chunk, references)
        for pair in found_pairs:
            columns[0].append(pair.source_ids)
            columns[1].append(pair.target_ids)
        firsts = itertools.accumulate((len(one.references[:references]) for one in chunk[:-1]), initial=0)
        for first in firsts:
            columns[2].append(found_pairs[first].source_ids)
    summary = {
        "truncated_sources": tokens.truncated_sources,
        "truncated_targets": tokens.truncated_targets,
        "left_out_turns": tokens.left_out_turns,
        "left_out": dict(task.skipped(split)),
        "files": task.checksums([split]),
    }
    return SplitData(
        _batch({"source_ids": columns[0].column(), "target_ids": columns[1].column()}),
        _examples_batch(examples, columns[2]),
        summary,
    )


def data_summary(splits: Mapping[Split, SplitData]) -> JsonDict:
    """The facts of a record about its data: counts, oddities, truncations, omissions, and checksums of files."""
    left_out = sum(data.summary["left_out_turns"] for data in splits.values())
    contents = {split: data.examples_batch.column("content").to_pylist() for split, data in splits.items()}
    return {
        **({"train_pairs": len(splits["train"].pairs)} if "train" in splits else {}),
        **{f"{split}_sources": len(data.examples) for split, data in splits.items() if split != "train"},
        "truncated_sources": sum(data.summary["truncated_sources"] for data in splits.values()),
        "truncated_targets": sum(data.summary["truncated_targets"] for data in splits.values()),
        **({"left_out_turns": left_out} if left_out else {}),
        **oddities_of(contents),
        "left_out": {split: data.summary["left_out"] for split, data in splits.items() if data.summary["left_out"]},
        "files": {name: sha256 for data in splits.values() for name, sha256 in data.summary["files"].items()},
    }


class _Lists:
    """A growing column of lists of token ids."""

    def __init__(self) -> None:
        self.offsets, self.ids = array("q", [0]), array("i")

    def append(self, ids: Sequence[int]) -> None:
        self.ids.extend(ids)
        self.offsets.append(len(self.ids))

    def column(self) -> Any:
        import pyarrow

        offsets = pyarrow.array(memoryview(self.offsets), pyarrow.int64())
        return pyarrow.LargeListArray.from_arrays(offsets, pyarrow.array(memoryview(self.ids), pyarrow.int32()))


def _examples_batch(examples: Sequence[Example], sources: _Lists) -> Any:
    import pyarrow

    content = [hashlib.blake2b(content_of(example).encode(), digest_size=16).digest() for example in examples]
    text = pyarrow.large_string()
    texts = pyarrow.large_list(text)
    return _batch(
        {
            "id": pyarrow.array([example.id for example in examples], text),
            "facts": pyarrow.array([example.facts for example in examples], pyarrow.large_list(texts)),
            "source": pyarrow.array([example.source for example in examples], text),
            "references": pyarrow.array([example.references for example in examples], texts),
            "tags": pyarrow.array([example.tags for example in examples], texts),
            "choices": pyarrow.array([example.choices for example in examples], texts),
            "turns": pyarrow.array([example.turns for example in examples], pyarrow.large_list(texts)),
            "content": pyarrow.array(content, pyarrow.binary(16)),
            "source_ids": sources.column(),
        }
    )


def _batch(columns: Mapping[str, Any]) -> Any:
    import pyarrow

    return pyarrow.record_batch(list(columns.values()), names=list(columns))
