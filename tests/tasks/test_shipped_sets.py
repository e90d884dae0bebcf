"""The sets that ship beside the facts: what they promise, checked row by row."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from fractions import Fraction
from types import ModuleType

import pytest

from bench.conformance.task_checks import verdicts
from bench.plugins.registry import load_task, resolve
from bench.task import SPLITS, Example, Task
from bench.tasks.splits import load_splits, oddities
from bench.tools import build_requests, build_word_problems

BUILDERS = {"word_problems": build_word_problems, "requests": build_requests}


def task(name: str) -> Task:
    task_class = load_task(resolve("task", name))
    return task_class(task_class.Config())


@pytest.mark.parametrize("builder", BUILDERS.values())
def test_the_builder_makes_the_committed_files(builder: ModuleType) -> None:
    for split, text in builder.build().items():
        committed = gzip.decompress((builder.HERE / "data" / f"{split}.jsonl.gz").read_bytes()).decode()
        assert committed == text, f"run python -m {builder.__name__}: {split}"


@pytest.mark.parametrize(("name", "counts"), [("word_problems", (1500, 150, 300)), ("requests", (1500, 200, 400))])
def test_counts_and_splits(name: str, counts: tuple[int, ...]) -> None:
    splits = load_splits(task(name))
    assert tuple(len(splits[split]) for split in SPLITS) == counts
    unseen = Counter(one.tags[0] for one in splits["test"])["unseen"]
    assert unseen == counts[2] / 4
    assert {one.tags[0] for split in ("train", "dev") for one in splits[split]} == {"seen"}
    assert set(oddities(splits).values()) == {0}, "no source is in two splits, or twice in one"


@pytest.mark.parametrize("name", BUILDERS)
def test_they_keep_the_contract(name: str) -> None:
    assert {one.check: one.reason for one in verdicts(task(name)) if one.outcome != "pass"} == {}


def everything(name: str) -> list[Example]:
    return [one for some in load_splits(task(name)).values() for one in some]


def test_solutions_are_right() -> None:
    for one in everything("word_problems"):
        *steps, last = one.references[0].split("\n")
        assert one.tags[1] == f"{len(steps)} step{'s' * (len(steps) > 1)}"
        result = Fraction(0)
        for step in steps:
            (sum_,) = re.findall(r"(\d+(?: [-+*/] \d+)+) = (\d+)", step)
            result = Fraction(sum_[1])
            first, *rest = sum_[0].split()
            value = Fraction(first)
            for sign, number in zip(rest[::2], rest[1::2], strict=True):
                value = {"+": value + int(number), "-": value - int(number), "*": value * int(number)}.get(
                    sign, value / int(number)
                )
            assert value == result, one
        assert last == f"The answer is {result}."
        assert result > 0


def test_desks_are_as_common_as_they_say_and_single_words_mislead() -> None:
    rows = everything("requests")
    shares = Counter(one.references[0] for one in rows)
    for desk, percent in build_requests.SHARES.items():
        assert shares[desk] / len(rows) == pytest.approx(percent / 100, abs=0.04)
    for word, desk in (("return", "returns"), ("paid", "payment"), ("password", "account")):
        desks = Counter(one.references[0] for one in rows if word in one.source)
        assert len(desks) > 1, f"{word!r} would give {desk} away"
