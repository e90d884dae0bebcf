"""Your own data: records from any kind of file into examples, by a mapping of columns or a template."""

from __future__ import annotations

import hashlib
import string
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import Field, field_validator

from bench.task import SPLITS, Example, Split, Task, TaskConfig, TaskError, linearise
from bench.tasks.rows import Facts

# Of a single file that is to be divided, the shares of dev and test, in percent.
DEV_PERCENT = 10
TEST_PERCENT = 10


class Record(NamedTuple):
    """One row of a file, and where it is, for messages."""

    where: str
    values: Mapping[str, Any]


class RecordConfig(TaskConfig):
    """How the columns of records become sources and references."""

    source: str = Field(
        "source",
        description="column with the source: a text, a list of facts such as [subject, relation, object], or a record; "
        "or a template that is filled from columns, e.g. '{name} lives in {city}'",
    )
    references: str | tuple[str, ...] = Field(
        "references", description="column or columns with the references: texts, or lists of texts"
    )
    id: str | None = Field(None, description="column with an id; None numbers the examples")
    tags: str | tuple[str, ...] = Field((), description="column or columns with tags, from coarse to fine")

    @field_validator("source")
    @classmethod
    def _is_template_or_column(cls, source: str) -> str:
        try:
            template_columns(source)
        except ValueError as error:
            raise ValueError(f"not a template: {error}; write {{{{ and }}}} for braces") from error
        return source


class RecordTask(Task):
    """A task over records. Subclasses say where they come from.

    Records with the same source are one example with all their references.
    """

    config: RecordConfig
    licence: ClassVar[str] = "yours"

    @abstractmethod
    def records(self, split: Split) -> Iterator[Record]:
        """The records of a split.

        Raises:
            TaskError: They cannot be read; the message names file and line.
        """

    def load(self, split: Split) -> list[Example]:
        grouped: dict[str, Example] = {}
        for number, record in enumerate(self.records(split), start=1):
            example = self.example(record, f"{split}-{number}")
            earlier = grouped.get(example.source)
            if earlier is not None:
                references = (*earlier.references, *example.references)
                example = Example(earlier.id, earlier.facts, earlier.source, references, earlier.tags)
            grouped[example.source] = example
        return list(grouped.values())

    def example(self, record: Record, default_id: str) -> Example:
        """The example that a record makes.

        Raises:
            TaskError: A column is missing or does not hold what it should.
        """
        source, facts = self._source(record)
        if not source.strip():
            raise TaskError(f"{record.where}: the source ({self.config.source!r}) is empty")
        return Example(
            id=_text(record, self.config.id) if self.config.id is not None else default_id,
            facts=facts,
            source=source,
            references=tuple(text for column in _names(self.config.references) for text in _texts(record, column)),
            tags=tuple(text for column in _names(self.config.tags) for text in _texts(record, column)),
        )

    def _source(self, record: Record) -> tuple[str, Facts]:
        columns = template_columns(self.config.source)
        if columns:
            values = {column: _text(record, column, may_be_empty=True) for column in columns}
            return self.config.source.format_map(values), tuple(values.items())
        value = _value(record, self.config.source)
        if isinstance(value, str):
            return value, ()
        facts = _facts(value)
        if facts is None:
            expected = "a text, a list of lists of texts, or an object of texts"
            raise TaskError(f"{record.where}: {self.config.source!r} must be {expected}, got {value!r}")
        return linearise(facts), facts


class FileTask(RecordTask):
    """Records from files: one for each split in a folder, or a single one that is divided."""

    @abstractmethod
    def read(self, location: str) -> Iterator[Record]:
        """The records of one file."""

    def records(self, split: Split) -> Iterator[Record]:
        files = self.data_files()
        if split not in files:
            raise TaskError(f"task.path: the {split} split is not there: no file {str(self._path(split))!r}")
        found = self.read(files[split])
        if self._is_single:
            found = (record for record in found if share_of(self._source(record)[0]) == split)
        return found

    def load(self, split: Split) -> list[Example]:
        examples = super().load(split)
        if not examples:
            what = f", whose {split} split is one source in ten" if self._is_single and split != "train" else ""
            raise TaskError(f"{self.data_files()[split]}: no examples{what}")
        return examples

    def data_files(self) -> Mapping[Split, str]:
        found = {split: str(path) for split in SPLITS if (path := self._path(split)).is_file()}
        if not found:
            raise TaskError(f"task.path: the train split is not there: no file {str(self._path('train'))!r}")
        return found

    @property
    def _is_single(self) -> bool:
        return Path(str(self._setting("path"))).expanduser().is_file()

    def _path(self, split: Split) -> Path:
        root = Path(str(self._setting("path"))).expanduser()
        return root if self._is_single else root / str(self._setting(split))

    def _setting(self, name: str) -> Any:
        return getattr(self.config, name)


def share_of(source: str) -> Split:
    """The split that a source of an undivided file falls to, decided by its text so that no seed is involved."""
    percent = int(hashlib.sha256(source.encode()).hexdigest()[:8], 16) % 100
    return "test" if percent < TEST_PERCENT else "dev" if percent < TEST_PERCENT + DEV_PERCENT else "train"


def template_columns(source: str) -> list[str]:
    """The columns that a template names; none where it is the name of a column.

    Raises:
        ValueError: Its braces do not match, or a place is not the name of a column.
    """
    parts = list(string.Formatter().parse(source))
    columns = [name for _, name, _, _ in parts if name is not None]
    for _, name, form, conversion in parts:
        if name is not None and (not name or form or conversion or set(name) & set(".[]")):
            raise ValueError(f"a place holds the name of a column and nothing else, got {{{name}}}")
    return list(dict.fromkeys(columns))


def _names(columns: str | Sequence[str]) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns)


def _value(record: Record, column: str) -> Any:
    if column not in record.values:
        raise TaskError(f"{record.where}: no column {column!r}; the columns are {', '.join(record.values)}")
    return record.values[column]


def _text(record: Record, column: str, may_be_empty: bool = False) -> str:
    value = _value(record, column)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if value is None and may_be_empty:
        return ""
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        raise TaskError(f"{record.where}: {column!r} must be a text that is not empty, got {value!r}")
    return value


def _texts(record: Record, column: str) -> list[str]:
    value = _value(record, column)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise TaskError(
            f"{record.where}: {column!r} must be a text or a list of at least one text, none empty, got {value!r}"
        )
    return texts


def _facts(value: Any) -> Facts | None:
    """Facts of a list of lists or of objects, or of one object; None where it is none of these."""
    if isinstance(value, Mapping):
        pairs = [(key, text) for key, text in value.items() if text is not None]
        return tuple((str(key), str(text)) for key, text in pairs) or None
    if not isinstance(value, list) or not value:
        return None
    rows = [list(row.values()) if isinstance(row, Mapping) else row for row in value]
    if not all(isinstance(row, list) and row and all(isinstance(part, str) for part in row) for row in rows):
        return None
    return tuple(tuple(row) for row in rows)
