"""Rows of data files, read and cached through ``datasets``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bench.task import Example, TaskError


def read_lines(location: str) -> Sequence[str]:
    """Lines of a text file or URL, which may be compressed.

    Raises:
        TaskError: It cannot be read.
    """
    return [row["text"] for row in _load("text", location)]


def read_csv(location: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file or URL with these columns, values as text.

    Raises:
        TaskError: It cannot be read, a column is missing, or a value is empty.
    """
    rows = _load("csv", location, keep_default_na=False)
    for column in columns:
        if column not in rows.column_names:
            raise TaskError(f"{location}: no column {column!r}; the columns are {', '.join(rows.column_names)}")
    wanted = [{column: str(row[column]) for column in columns} for row in rows]
    for number, row in enumerate(wanted, start=1):
        if empty := [column for column, value in row.items() if not value.strip()]:
            raise TaskError(f"{location}: row {number}: column {empty[0]!r} is empty")
    return wanted


def read_json_lines(location: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every line that is not blank.

    Raises:
        TaskError: A line is not a JSON object.
    """
    for number, line in enumerate(read_lines(location), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise TaskError(f"{location}: line {number}: not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise TaskError(f"{location}: line {number}: expected an object, got {type(row).__name__}")
        yield number, row


def group_by_source(rows: Iterable[tuple[str, tuple[tuple[str, ...], ...], str]], split: str) -> list[Example]:
    """Examples from rows of (source, facts, one reference), in order of first appearance."""
    references: dict[str, list[str]] = {}
    facts_of: dict[str, tuple[tuple[str, ...], ...]] = {}
    for source, facts, reference in rows:
        references.setdefault(source, []).append(reference)
        facts_of[source] = facts
    return [
        Example(id=f"{split}-{number}", facts=facts_of[source], source=source, references=tuple(texts))
        for number, (source, texts) in enumerate(references.items())
    ]


def _load(kind: str, location: str, **options: Any) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(kind, data_files={"rows": location}, split="rows", **options)
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError, UnicodeDecodeError) as error:
        cause = error.__cause__ or error
        raise TaskError(f"{location}: cannot be read as {kind}: {cause}") from error
