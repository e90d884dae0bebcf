"""True, stable facts in English, written for this project and shipped with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from bench.task import Example, TaskConfig, linearise
from bench.tasks.shipped import ShippedTask


class Facts(ShippedTask):
    """One to four true facts about countries, elements, books, planets, ... in one short text.

    A part of the test split has relations that never occur in training, and the tag ``unseen``. No fact of the dev or
    test split occurs in training.
    """

    class Config(TaskConfig):
        """Settings of the task facts."""

    citation: ClassVar[str] = "shipped with Tuneoff; built by bench/tools/build_facts.py"
    folder = Path(__file__).parent / "data"
    stop = ("\n",)

    def example(self, row: Mapping[str, Any]) -> Example:
        return Example(
            id=row["id"],
            facts=tuple(tuple(triple) for triple in row["triples"]),
            source=linearise(row["triples"]),
            references=tuple(row["references"]),
            tags=tuple(row["tags"]),
        )
