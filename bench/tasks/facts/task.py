"""True, stable facts in English, written for this project and shipped with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from bench.task import Example, Split, Task, TaskConfig, existing_file, linearise
from bench.tasks.rows import read_json_lines

DATA = Path(__file__).parent / "data"


class Facts(Task):
    """One to four true facts about countries, elements, books, planets, ... in one short text.

    A part of the test split has relations that never occur in training, and the tag ``unseen``. No fact of the dev or
    test split occurs in training.
    """

    class Config(TaskConfig):
        """Settings of the task facts."""

    licence: ClassVar[str] = "CC0 1.0"
    citation: ClassVar[str] = "shipped with Tuneoff; built by bench/tools/build_facts.py"
    stop = ("\n",)

    def data_files(self) -> Mapping[Split, str]:
        splits: tuple[Split, ...] = ("train", "dev", "test")
        return {split: existing_file(DATA / f"{split}.jsonl.gz", f"the {split} split") for split in splits}

    def load(self, split: Split) -> list[Example]:
        return [
            Example(
                id=row["id"],
                facts=tuple(tuple(triple) for triple in row["triples"]),
                source=linearise(row["triples"]),
                references=tuple(row["references"]),
                tags=tuple(row["tags"]),
            )
            for _, row in read_json_lines(self.data_files()[split])
        ]
