"""Any data in JSON lines with a source and its references."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from bench.task import Example, Split, Task, TaskConfig, TaskError, existing_file
from bench.tasks.rows import read_json_lines


class JsonLines(Task):
    """Your own data: JSON lines with source and references.

    Each line is an object with ``source`` (text), ``references`` (a list of texts, at least one) and, if wanted,
    ``id`` (text), ``facts`` (a list of lists of text) and ``tags`` (a list of texts).
    """

    class Config(TaskConfig):
        """Settings of the task jsonl."""

        path: str = Field(description="folder with the files of the three splits")
        train: str = Field("train.jsonl", description="file of the training split, within path")
        dev: str = Field("dev.jsonl", description="file of the dev split, within path")
        test: str = Field("test.jsonl", description="file of the test split, within path")

    licence: ClassVar[str] = "yours"

    def data_files(self) -> Mapping[Split, str]:
        folder = Path(self.config.path).expanduser()
        names: dict[Split, str] = {"train": self.config.train, "dev": self.config.dev, "test": self.config.test}
        return {split: existing_file(folder / name, f"the {split} split") for split, name in names.items()}

    def load(self, split: Split) -> list[Example]:
        return read_examples(self.data_files()[split], split)


def read_examples(location: str, split: Split) -> list[Example]:
    """Examples of one file.

    Raises:
        TaskError: A line is malformed, an id or source occurs twice, or there is no line.
    """
    examples: list[Example] = []
    first_line: dict[str, int] = {}
    for number, row in read_json_lines(location):
        where = f"{location}: line {number}"
        source = _text(row, "source", where)
        if source in first_line:
            raise TaskError(f"{where}: the source of line {first_line[source]} again; put all references in one line")
        first_line[source] = number
        examples.append(
            Example(
                id=_text(row, "id", where) if "id" in row else f"{split}-{number}",
                facts=tuple(tuple(fact) for fact in row.get("facts", ())),
                source=source,
                references=tuple(_texts(row, "references", where)),
                tags=tuple(_texts(row, "tags", where)) if "tags" in row else (),
            )
        )
    if not examples:
        raise TaskError(f"{location}: no examples")
    return examples


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise TaskError(f"{where}: {key!r} must be a text that is not empty, got {value!r}")
    return value


def _texts(row: Mapping[str, Any], key: str, where: str) -> list[str]:
    values = row.get(key)
    if not isinstance(values, list) or not values or not all(isinstance(v, str) and v.strip() for v in values):
        raise TaskError(f"{where}: {key!r} must be a list of at least one text, none empty, got {values!r}")
    return values
