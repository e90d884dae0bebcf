"""Subsets are the same for every method and keep proportions; sources that would spoil scores are counted."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.task import Example, Split, Task, TaskConfig, TaskError
from bench.tasks.splits import load_splits, oddities, oddity_sentences, subset, training_examples


def examples(count: int, tags: tuple[str, ...] = ()) -> list[Example]:
    return [Example(f"e{n}", (), f"source {n}", (f"first {n}", f"second {n}"), tags) for n in range(count)]


class Listed(Task):
    """A task of given examples."""

    def __init__(self, config: TaskConfig, splits: dict[Split, list[Example]]) -> None:
        super().__init__(config)
        self.splits = splits

    def data_files(self) -> dict[Split, str]:
        return {}

    def load(self, split: Split) -> list[Example]:
        return self.splits[split]


def test_subsets_are_the_same_for_every_method_and_differ_by_seed() -> None:
    everything = examples(20)
    assert subset(everything, 5, 0, "dev") == subset(everything, 5, 0, "dev")
    assert subset(everything, 5, 0, "dev") != subset(everything, 5, 1, "dev")
    pairs = training_examples(everything, 7, 0)
    assert len(pairs) == 7
    assert all(len(pair.references) == 1 for pair in pairs)
    with pytest.raises(TaskError, match=r"task.dev_examples: 21 asked for, the dev split has 20"):
        subset(everything, 21, 0, "dev")


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=60), st.integers(0, 5), st.data())
def test_subsets_are_stratified(kinds: list[str], seed: int, data: st.DataObject) -> None:
    everything = [Example(f"{n}", (), f"{n}", ("x",), ("seen", kind, f"{n}")) for n, kind in enumerate(kinds)]
    size = data.draw(st.integers(1, len(kinds)))
    drawn = subset(everything, size, seed, "test")
    assert len({example.id for example in drawn}) == size
    assert [example.id for example in drawn] == sorted((example.id for example in drawn), key=int)
    counts = Counter(example.tags[1] for example in drawn)
    for kind, number in Counter(kinds).items():
        assert abs(counts[kind] - size * number / len(kinds)) < 1


def test_the_training_subset_has_a_seed_of_its_own() -> None:
    data: dict[Split, list[Example]] = {"train": examples(40), "dev": examples(9), "test": examples(9)}

    def drawn(**seeds: int) -> dict[Split, list[Example]]:
        return load_splits(Listed(TaskConfig(train_examples=6, dev_examples=4, test_examples=4, **seeds), data))

    first, second = drawn(), drawn(train_seed=1)
    assert first["train"] != second["train"]
    assert (first["dev"], first["test"]) == (second["dev"], second["test"])
    assert drawn(subset_seed=1)["test"] != first["test"]


def test_overlap_and_repetition_are_counted() -> None:
    def of(*facts: tuple[str, str]) -> Example:
        return Example(str(facts), facts, " | ".join(map(str, facts)), ("x",))

    a, b, c = ("a", "1"), ("b", "2"), ("c", "3")
    splits: dict[Split, list[Example]] = {
        "train": [of(a, b)],
        "dev": [of(c), of(c)],
        "test": [of(b, a), of(a), of(b, c), of(c, b), of(c)],
    }
    found = {
        "dev_sources_in_train": 0,
        "repeated_dev_sources": 1,
        "test_sources_in_train": 1,
        "repeated_test_sources": 1,
        "test_sources_in_dev": 1,
    }
    assert oddities(splits) == found
    assert [sentence.split(":")[0] for sentence in oddity_sentences(found)] == [
        "1 test sources are in the training data too",
        "1 test sources are in the dev data too",
        "1 dev sources occur more than once",
        "1 test sources occur more than once",
    ]
    one = [Example("a", (), "the same\nwords", ("x",))]
    assert oddities({"dev": one, "test": [Example("b", (), "the  same words", ("y",))]})["test_sources_in_dev"] == 1


def test_an_empty_split_and_equal_ids_are_errors() -> None:
    with pytest.raises(TaskError, match="the train split is empty"):
        load_splits(Listed(TaskConfig(), {"train": []}))
    with pytest.raises(TaskError, match="the train split has two examples with the id 'e0'"):
        load_splits(Listed(TaskConfig(), {"train": examples(1) * 2}))
