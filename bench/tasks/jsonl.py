"""Any data in JSON lines."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from bench.task import Example, TaskError
from bench.tasks.records import FileTask, Record, RecordConfig
from bench.tasks.rows import Facts, read_json_lines


class JsonLines(FileTask):
    """Your own data: JSON lines, each an object with source and references.

    ``source`` is a text, a list of lists of texts, or an object; ``references`` a text or a list of texts. An object
    may have ``id`` (text), ``facts`` (list of lists of texts) and ``tags`` (list of texts) as well.
    """

    class Config(RecordConfig):
        """Settings of the task jsonl."""

        path: str = Field(description="folder with a file for each split, or one file that is divided 80 : 10 : 10")
        train: str = Field("train.jsonl", description="file of the training split, within path")
        dev: str = Field("dev.jsonl", description="file of the dev split, within path")
        test: str = Field("test.jsonl", description="file of the test split, within path")

    def read(self, location: str) -> Iterator[Record]:
        for number, values in read_json_lines(location):
            yield Record(f"{location}: line {number}", values)

    def example(self, record: Record, default_id: str) -> Example:
        found = super().example(record, default_id)
        own_id = record.values.get("id") if self.config.id is None else None
        tags = record.values.get("tags") if not self.config.tags else None
        return Example(
            id=own_id if isinstance(own_id, str) and own_id.strip() else found.id,
            facts=_facts(record) or found.facts,
            source=found.source,
            references=found.references,
            tags=tuple(str(tag) for tag in tags) if isinstance(tags, list) else found.tags,
        )


def _facts(record: Record) -> Facts:
    facts = record.values.get("facts", [])
    if not isinstance(facts, list) or not all(
        isinstance(fact, list) and all(isinstance(part, str) for part in fact) for fact in facts
    ):
        raise TaskError(f"{record.where}: 'facts' must be a list of lists of texts, got {facts!r}")
    return tuple(tuple(fact) for fact in facts)
