"""Data sets that ship with Tuneoff, written for it and in the public domain."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from bench.task import SPLITS, Example, Split, Task, existing_file
from bench.tasks.rows import read_json_lines


class ShippedTask(Task):
    """A task over JSON lines in a folder of the package."""

    licence: ClassVar[str] = "CC0 1.0"
    folder: ClassVar[Path]
    """With ``SPLIT.jsonl.gz``."""

    @abstractmethod
    def example(self, row: Mapping[str, Any]) -> Example:
        """The example of a row."""

    def data_files(self) -> Mapping[Split, str]:
        return {split: existing_file(self.folder / f"{split}.jsonl.gz", f"the {split} split") for split in SPLITS}

    def load(self, split: Split) -> list[Example]:
        return [self.example(row) for _, row in read_json_lines(self.data_files()[split])]
