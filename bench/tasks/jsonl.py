"""Any data in JSON lines, or in a JSON array."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from pydantic import Field

from bench.task import Example
from bench.tasks.records import FileTask, Record, RecordConfig
from bench.tasks.rows import read_json_lines
from bench.tasks.values import is_missing


class JsonLines(FileTask):
    """Your own data: JSON lines, each an object with source and references, or an array of such objects.

    ``source`` is a text, a list of lists of texts, or an object; ``references`` a text or a list of texts. An object
    may have ``id``, ``facts`` (as a list that is a source) and ``tags`` as well.
    """

    endings = (".jsonl", ".json", ".ndjson")

    class Config(RecordConfig):
        """Settings of the task jsonl."""

        path: str = Field(description="folder with a file for each split, or one file that is divided 80 : 10 : 10")
        train: str = Field("train.jsonl", description="file of the training split, within path")
        dev: str = Field("dev.jsonl", description="file of the dev split, within path")
        test: str = Field("test.jsonl", description="file of the test split, within path")

    def read(self, location: str) -> Iterator[Record]:
        for number, values in read_json_lines(location):
            yield Record(f"{location}: line {number}", values)

    def example(self, record: Record, default_id: str, left_out: Counter[str]) -> Example | None:
        example = super().example(record, default_id, left_out)
        if example is None:
            return None
        has_tags = not self.config.tags and not is_missing(record.values.get("tags"))
        return replace(
            example,
            id=(self.text(record, "id", record.values.get("id")) if self.config.id is None else None) or example.id,
            facts=example.facts if is_missing(record.values.get("facts")) else self.facts(record, "facts", left_out),
            tags=tuple(self.tags(record, "tags")) if has_tags else example.tags,
        )
