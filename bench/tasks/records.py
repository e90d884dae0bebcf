"""Your own data: turns records from any kind of file into examples, by names of columns or a template."""

from __future__ import annotations

import functools
import hashlib
import string
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import Field, field_validator

from bench.schema.home import with_home
from bench.task import SPLITS, Example, Split, Task, TaskConfig, TaskError
from bench.tasks.choices import choices_in
from bench.tasks.file_forms import PACKED_ENDINGS
from bench.tasks.values import (
    CellError,
    Facts,
    KeyOrder,
    facts_of,
    holds_records,
    is_missing,
    keys_in_order,
    refuse_conversation,
    text_of,
)

# Separates the parts of a template. A part whose columns are all empty is left out.
PART_SEPARATOR = " | "

# Replaces a tag that a row lacks, so that the following tags keep their positions.
NO_TAG = "untagged"

# The order of these keys is fixed, because files that sort keys by alphabet would reverse a triple.
TRIPLE_KEYS = ("subject", "property", "predicate", "relation", "object")

# Reasons for which data are left out, and counted.
EMPTY_REFERENCES = "empty references"
WITHOUT_REFERENCE = "rows without a reference"
WITHOUT_SOURCE = "rows without a source"
FACTS_WITHOUT_VALUE = "facts without a value"

# The shares of dev and test when a single file is divided, in percent.
DEV_PERCENT = 10
TEST_PERCENT = 10


class Record(NamedTuple):
    """One row of a file, its place for messages, and the columns that were not read."""

    where: str
    values: Mapping[str, Any]
    unread: Sequence[str] = ()


class RecordConfig(TaskConfig):
    """Settings that say which columns of records become sources and references."""

    source: str = Field(
        "source",
        description="column with the source: a text, a list of facts such as [subject, relation, object], or a record; "
        "or a template that is filled from columns, e.g. '{name} lives in {city}'. docs/use/tasks.md says how other "
        "types are written",
    )
    references: str | tuple[str, ...] = Field(
        "references", description="column or columns with the references: texts, or lists of texts"
    )
    keys: tuple[str, ...] = Field(
        (),
        description="keys of records in the order in which they are read, whatever order a file has them in; others "
        "follow as they first come in the training split",
    )
    id: str | None = Field(None, description="column with an id; null: rows are numbered")
    tags: str | tuple[str, ...] = Field((), description="column or columns with tags, from coarse to fine")

    @field_validator("references")
    @classmethod
    def _names_a_column(cls, references: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not references:
            raise ValueError("name at least one column")
        return references

    @field_validator("source")
    @classmethod
    def _is_template_or_column(cls, source: str) -> str:
        try:
            template_columns(source)
        except ValueError as error:
            raise ValueError(f"not a template: {error}; write {{{{ and }}}} for braces") from error
        return source


class RecordTask(Task):
    """A task whose data are records. Subclasses read them.

    Records with the same source are one example with all their references. Empty values are left out and counted.
    """

    config: RecordConfig
    licence: ClassVar[str] = "yours"
    has_columns = True
    stop = ("\n",)

    def __init__(self, config: RecordConfig) -> None:
        super().__init__(config)
        self._left_out: dict[Split, Counter[str]] = {}

    @abstractmethod
    def records(self, split: Split) -> Iterator[Record]:
        """The records of a split.

        Raises:
            TaskError: They cannot be read. The message names file and line.
        """

    def belongs(self, source: str | None, split: Split) -> bool:
        """Whether a record that was read for a split belongs to it; ``source`` is None if it is empty."""
        return True

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the settings name, each once."""
        config = self.config
        source = template_columns(config.source) or [config.source]
        choices = None if config.choices is None else config.choices.column
        named = [
            *source,
            *names_of(config.references),
            *names_of(config.id),
            *names_of(config.tags),
            *names_of(choices),
        ]
        return tuple(dict.fromkeys(named))

    def load(self, split: Split) -> list[Example]:
        grouped: dict[tuple[str, tuple[str, ...]], Example] = {}
        left_out: Counter[str] = Counter()
        unseen, first = set(template_columns(self.config.source)), None
        for number, record in enumerate(self.records(split), start=1):
            if first is None:
                first = record
                self._check_places(record)
            unseen -= record.values.keys()
            example = self._example_of(record, f"{split}-{number}", split, left_out)
            if example is None:
                continue
            question = example.source, example.choices
            if (earlier := grouped.get(question)) is not None:
                example = replace(earlier, references=(*earlier.references, *example.references))
            grouped[question] = example
        if first is not None and unseen:  # A row may lack some, but not every row the same one.
            raise _no_column(first, next(column for column in self.columns if column in unseen))
        self._left_out[split] = left_out
        return list(grouped.values())

    def _check_places(self, record: Record) -> None:
        """Refuse a template that names columns, which would stay as they are written.

        Raises:
            TaskError: It does.
        """
        self.data_columns |= {*record.values, *record.unread}
        template = self.config.template
        for column in sorted(self.data_columns - {"source", "bos"}):
            if f"{{{column}}}" in template:
                raise TaskError(
                    f"{record.where}: task.template: {{{column}}} would stay as it is written, because a template has "
                    f"the place {{source}} alone; columns are filled in by task.source, e.g. '{{{column}}} {{...}}'"
                )

    def skipped(self, split: Split) -> Mapping[str, int]:
        return dict(self._left_out.get(split, {}))

    def example(self, record: Record, default_id: str, left_out: Counter[str]) -> Example | None:
        """The example of a record; None if its source is empty. It may have no references.

        Args:
            record: One row.
            default_id: The id of the example if the row has none.
            left_out: The numbers of values that are left out are added to it.

        Raises:
            TaskError: A column holds values of a wrong kind.
        """
        source, facts = self._source(record, left_out)
        if not source.strip():
            left_out[WITHOUT_SOURCE] += 1
            return None
        own_id = None if self.config.id is None else self.text(record, self.config.id, cell(record, self.config.id))
        return Example(
            id=own_id or default_id,
            facts=facts,
            source=source,
            references=tuple(self._references(record, left_out)),
            tags=tuple(tag for column in names_of(self.config.tags) for tag in self.tags(record, column)),
            choices=self._choices(record),
        )

    def text(self, record: Record, column: str, value: Any) -> str | None:
        """The value of a column as text; None if it is missing.

        Raises:
            TaskError: Values of its type have no text.
        """
        if is_missing(value):
            return None
        try:
            return text_of(value, self._order_for(value))
        except CellError as error:
            raise column_error(record, column, error) from error

    def tags(self, record: Record, column: str) -> list[str]:
        """The tags in a column, which holds one tag or a list of tags.

        Raises:
            TaskError: There is no such column, or it holds a value without a text.
        """
        value = cell(record, column)
        if not isinstance(value, list | tuple):
            return [self.text(record, column, value) or NO_TAG]
        try:
            return [NO_TAG if is_missing(tag) else text_of(tag) for tag in value]
        except CellError as error:
            raise column_error(record, column, error) from error

    def facts(self, record: Record, column: str, left_out: Counter[str]) -> Facts:
        """The facts in a column.

        Raises:
            TaskError: A part of them has no text.
        """
        value = record.values[column]
        try:
            facts, missing = facts_of(value, self._order_for(value))
        except CellError as error:
            raise column_error(record, column, error) from error
        if missing:
            left_out[FACTS_WITHOUT_VALUE] += missing
        return facts

    def _example_of(self, record: Record, default_id: str, split: Split, left_out: Counter[str]) -> Example | None:
        """The example of a record; None if it does not belong to the split or has no reference."""
        own: Counter[str] = Counter()
        example = self.example(record, default_id, own)
        if not self.belongs(None if example is None else example.source, split):
            return None
        left_out.update(own)
        if example is not None and not example.references:
            left_out[WITHOUT_REFERENCE] += 1
            return None
        return example

    def _source(self, record: Record, left_out: Counter[str]) -> tuple[str, Facts]:
        if template_columns(self.config.source):
            return self._filled(record, left_out)
        column = self.config.source
        value = cell(record, column)
        if is_missing(value):
            return "", ()
        has_facts = isinstance(value, Mapping) or (
            isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value)
        )
        facts = self.facts(record, column, left_out) if has_facts else ()
        return self.text(record, column, value) or "", facts

    def _filled(self, record: Record, left_out: Counter[str]) -> tuple[str, Facts]:
        """The template filled with the row's cells, without parts whose cells are all missing."""
        columns = template_columns(self.config.source)
        texts = {column: self.text(record, column, record.values.get(column)) for column in columns}
        facts = tuple((column, text) for column, text in texts.items() if text is not None)
        if len(facts) < len(texts):
            left_out[FACTS_WITHOUT_VALUE] += len(texts) - len(facts)
        if not facts:
            return "", ()
        cells = {column: text or "" for column, text in texts.items()}
        if len(facts) == len(texts):
            return self.config.source.format_map(cells), facts
        parts = [part for part in _parts(self.config.source) if _has_something(part, cells)]
        return PART_SEPARATOR.join(parts).format_map(cells).strip(), facts

    def _references(self, record: Record, left_out: Counter[str]) -> Iterator[str]:
        for column in names_of(self.config.references):
            value = cell(record, column)
            for text in value if isinstance(value, list | tuple) and value else [value]:
                if is_missing(text):
                    left_out[EMPTY_REFERENCES] += 1
                    continue
                try:
                    yield _reference(text, value)
                except CellError as error:
                    raise column_error(record, column, error) from error

    def _choices(self, record: Record) -> tuple[str, ...]:
        """The labels of a record, where each has its own.

        Raises:
            TaskError: There is no such column, or no list of texts in it.
        """
        settings = self.config.choices
        if settings is None or settings.column is None:
            return ()
        names = names_of(settings.column)
        value = cell(record, names[0]) if len(names) == 1 else [cell(record, name) for name in names]
        try:
            return choices_in(value)
        except CellError as error:
            raise column_error(record, " and ".join(names), error) from error

    def _order_for(self, value: Any) -> KeyOrder:
        """The order of keys for a value. The data are searched for it only if the value has keys."""
        return self._key_order if holds_records(value) else KeyOrder(self.config.keys)

    @functools.cached_property
    def _key_order(self) -> KeyOrder:
        """The keys in the settings, those of triples, then those of the source's columns in order of occurrence.

        The first split with keys decides for all splits, so that equal sources have the same text in each.
        """
        columns = template_columns(self.config.source) or [self.config.source]
        for split in SPLITS:
            keys: dict[str, None] = {}
            try:
                for record in self.records(split):
                    keys.update(
                        dict.fromkeys(key for name in columns for key in keys_in_order(record.values.get(name)))
                    )
            except TaskError:
                continue  # loading that split raises the error
            if keys:
                return KeyOrder(tuple(dict.fromkeys((*self.config.keys, *TRIPLE_KEYS, *keys))))
        return KeyOrder(self.config.keys)


class SplitFiles(Task):
    """Records from files: one for each split in a folder, or a single one that is divided."""

    endings: ClassVar[tuple[str, ...]] = ()
    """The endings of such files' names. A file may have any of them."""

    @abstractmethod
    def read(self, location: str) -> Iterator[Record]:
        """The records of one file."""

    def records(self, split: Split) -> Iterator[Record]:
        """The records of the split's file, or of the single file, see :meth:`belongs`."""
        files = self.data_files()
        if split not in files:
            raise TaskError(f"task.path: the {split} split is not there: no file {str(self._path(split))!r}")
        return self.read(files[split])

    def belongs(self, source: str | None, split: Split) -> bool:
        """Each source of a single file belongs to one split. Records without a source count for the training split."""
        return not self._is_single or split == ("train" if source is None else share_of(source))

    def require_some(self, examples: Sequence[Example], split: Split) -> None:
        """Check that a split has examples.

        Raises:
            TaskError: It has none; the message says what was left out.
        """
        if not examples:
            what = f", whose {split} split is one source in ten" if self._is_single and split != "train" else ""
            raise TaskError(f"{self.data_files()[split]}: no examples{what}{omissions_text(self.skipped(split))}")

    def data_files(self) -> Mapping[Split, str]:
        files = {split: str(path) for split in SPLITS if (path := self._path(split)).is_file()}
        if not files:
            raise TaskError(f"task.path: the train split is not there: no file {str(self._path('train'))!r}")
        return files

    @property
    def _is_single(self) -> bool:
        return with_home(str(self._setting("path"))).is_file()

    def _path(self, split: Split) -> Path:
        """The split's file: with the name in the settings, with another ending of its format, or packed."""
        root = with_home(str(self._setting("path")))
        if self._is_single:
            return root
        named = root / str(self._setting(split))
        plain = [named]
        if named.suffix in self.endings:
            plain += [named.with_suffix(ending) for ending in self.endings if ending != named.suffix]
        packed = [path.with_name(path.name + ending) for path in plain for ending in PACKED_ENDINGS]
        return next((path for path in (*plain, *packed) if path.is_file()), named)

    def _setting(self, name: str) -> Any:
        return getattr(self.config, name)


class FileTask(SplitFiles, RecordTask):
    """Records from files, into examples by a mapping of columns."""

    def load(self, split: Split) -> list[Example]:
        examples = super().load(split)
        self.require_some(examples, split)
        return examples


def share_of(source: str) -> Split:
    """The split of a source of a single file. Its text decides, so that no seed is needed."""
    percent = int(hashlib.sha256(source.encode()).hexdigest()[:8], 16) % 100
    return "test" if percent < TEST_PERCENT else "dev" if percent < TEST_PERCENT + DEV_PERCENT else "train"


def template_columns(source: str) -> list[str]:
    """The columns that a template names; none if the text is the name of a column.

    Raises:
        ValueError: Braces do not match, or hold something else than the name of a column.
    """
    parts = list(string.Formatter().parse(source))
    columns = [name for _, name, _, _ in parts if name is not None]
    for _, name, form, conversion in parts:
        if name is not None and (not name or form or conversion or set(name) & set(".[]")):
            raise ValueError(f"a place holds the name of a column and nothing else, got {{{name}}}")
    return list(dict.fromkeys(columns))


def _reference(value: Any, cell: Any) -> str:
    """The text of one value of a cell with references.

    Raises:
        CellError: The value has no text.
    """
    refuse_conversation(cell)
    if isinstance(value, Mapping | list | tuple):
        raise CellError("must be a text or a list of texts")
    return text_of(value)


def _parts(template: str) -> list[str]:
    """The parts of a template between bars. A bar in the name of a column does not separate parts."""
    parts = template.split(PART_SEPARATOR)
    try:
        named = [column for part in parts for column in template_columns(part)]
    except ValueError:
        return [template]
    return parts if set(named) == set(template_columns(template)) else [template]


def _has_something(part: str, cells: Mapping[str, str]) -> bool:
    """Whether a part of a template has no columns, or one with a value."""
    columns = template_columns(part)
    return not columns or any(cells[column] for column in columns)


def names_of(columns: str | Sequence[str] | None) -> tuple[str, ...]:
    """Columns that a setting names, of which it may name one, several or none."""
    if columns is None:
        return ()
    return (columns,) if isinstance(columns, str) else tuple(columns)


def omissions_text(counts: Mapping[str, int]) -> str:
    """The end of a message that no examples remain: the numbers of values that were left out, if any."""
    return f"; left out: {', '.join(f'{number:,} {what}' for what, number in counts.items())}" if counts else ""


def cell(record: Record, column: str) -> Any:
    """The value of a column.

    Raises:
        TaskError: There is no such column.
    """
    if column not in record.values:
        raise _no_column(record, column)
    return record.values[column]


def _no_column(record: Record, column: str) -> TaskError:
    return TaskError(f"{record.where}: no column {column!r}; the columns are {', '.join(record.values)}")


def column_error(record: Record, column: str, error: CellError) -> TaskError:
    """What is wrong with a value, and where it is."""
    return TaskError(f"{record.where}: {column!r} {error}")
