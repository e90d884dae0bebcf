"""The committed facts data set: what it promises, checked row by row."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from typing import Any

import pytest

from bench.tools import build_facts

DATA = build_facts.HERE / "data"
Row = dict[str, Any]


def read(split: str) -> str:
    return gzip.decompress((DATA / f"{split}.jsonl.gz").read_bytes()).decode("utf-8")


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Row]]:
    return {split: [json.loads(line) for line in read(split).splitlines()] for split in build_facts.COUNTS}


@pytest.fixture(scope="module")
def knowledge() -> build_facts.Knowledge:
    return build_facts.load_knowledge()


def relations(rows: list[Row]) -> set[str]:
    return {relation for row in rows for _, relation, _ in row["triples"]}


def facts(rows: list[Row]) -> set[tuple[str, ...]]:
    return {tuple(triple) for row in rows for triple in row["triples"]}


def sources(rows: list[Row]) -> list[frozenset[tuple[str, ...]]]:
    return [frozenset(tuple(triple) for triple in row["triples"]) for row in rows]


def test_the_builder_makes_the_committed_files() -> None:
    for split, text in build_facts.build().items():
        assert read(split) == text, f"run python -m bench.tools.build_facts: {split}"


def test_counts_of_rows(splits: dict[str, list[Row]]) -> None:
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2400, "dev": 300, "test": 400}
    assert Counter(row["tags"][0] for row in splits["test"]) == {"seen": 300, "unseen": 100}


def test_counts_of_relations_and_entities(splits: dict[str, list[Row]]) -> None:
    everything = [row for rows in splits.values() for row in rows]
    assert len(relations(everything)) >= 36
    assert len(relations(splits["train"])) >= 30
    assert len({subject for row in everything for subject, _, _ in row["triples"]}) >= 450


def test_unseen_tags_say_what_training_lacks(splits: dict[str, list[Row]]) -> None:
    trained = relations(splits["train"])
    for split, rows in splits.items():
        for row in rows:
            assert row["tags"][0] == ("seen" if relations([row]) <= trained else "unseen")
            assert split == "test" or row["tags"][0] == "seen"


def test_no_source_twice_and_no_fact_in_two_splits(splits: dict[str, list[Row]]) -> None:
    all_sources = [source for rows in splits.values() for source in sources(rows)]
    assert len(all_sources) == len(set(all_sources))
    assert not facts(splits["train"]) & (facts(splits["dev"]) | facts(splits["test"]))
    assert not facts(splits["dev"]) & facts(splits["test"])


def test_ids_are_unique(splits: dict[str, list[Row]]) -> None:
    ids = [row["id"] for rows in splits.values() for row in rows]
    assert len(ids) == len(set(ids))
    assert set().union(*(row.keys() for rows in splits.values() for row in rows)) == {
        "id",
        "triples",
        "references",
        "tags",
    }


def test_triples_of_a_source_hang_together(splits: dict[str, list[Row]]) -> None:
    for rows in splits.values():
        for row in rows:
            assert 1 <= len(row["triples"]) <= 4
            left = [{subject, value} for subject, _, value in row["triples"]]
            reached = left.pop()
            while near := [pair for pair in left if pair & reached]:
                reached |= near[0]
                left.remove(near[0])
            assert not left, row["id"]


def test_each_row_has_references_that_differ(splits: dict[str, list[Row]]) -> None:
    for rows in splits.values():
        for row in rows:
            assert len(row["references"]) == len(set(row["references"])) >= 3


def test_every_entity_is_mentioned(splits: dict[str, list[Row]], knowledge: build_facts.Knowledge) -> None:
    for rows in splits.values():
        for row in rows:
            for name in {name for subject, _, value in row["triples"] for name in (subject, value)}:
                said = knowledge.say(name)
                pattern = re.compile(rf"(?<!\w){re.escape(said)}(?!\w)", re.IGNORECASE if said != name else 0)
                for text in row["references"]:
                    # A form that opens a sentence is capitalised.
                    assert pattern.search(text) or said[0].upper() + said[1:] in text, (row["id"], name, text)


def test_punctuation(splits: dict[str, list[Row]]) -> None:
    slip = re.compile(r"  |\s[,.](?!\w)|\.\.|,,|,\.|[{}^|]|\ba\(n\)|\ban? the\b|\bthe the\b|^\s|\s$|\b(\w+) \1\b", re.I)
    for rows in splits.values():
        for row in rows:
            for text in row["references"]:
                assert not slip.search(text), (row["id"], text)
                assert text.endswith(".")
                assert text[0] == text[0].upper()
