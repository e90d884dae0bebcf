"""Reads rows of a data set of the Hugging Face hub, for the tasks whose data may be there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from bench.schema.home import with_home
from bench.task import Split, TaskError
from bench.tasks.arrow_values import exact, has_short_floats
from bench.tasks.hub_commits import HubError, commit_of
from bench.tasks.records import Record


def pinned_revision(path: str, revision: str | None) -> str:
    """The present commit of a revision of a data set.

    Raises:
        TaskError: It cannot be found out.
    """
    try:
        return commit_of(path, revision, "dataset").sha
    except HubError as error:
        raise TaskError(f"revision: {revision or 'missing'} for {path!r}: {error}") from error


def commit_sha256(path: str, revision: str | None) -> str:
    """Hash over name and commit of a data set on the hub, which fix its content."""
    return hashlib.sha256(f"{path}@{revision}".encode()).hexdigest()


def no_examples(path: str, split: Split, left_out: str) -> TaskError:
    """What is wrong with a split that has none; ``left_out`` says what was not taken."""
    return TaskError(f"{path}: no examples in the {split} split{left_out}")


def hub_records(
    path: str,
    revision: str | None,
    subset: str | None,
    name: str,
    columns: Sequence[str],
    optional: Sequence[str] = (),
    by_number: Sequence[str] = (),
) -> Iterator[Record]:
    """The rows of a split, with classes by their names and short floats in their shortest notation.

    Args:
        path: Name on the hub, or a folder of that form.
        revision: Its commit; None for a folder.
        subset: Its configuration; None where it has one alone.
        name: The split's name, or a slice such as ``train[:90%]``.
        columns: Those that are read. Others may hold pictures and sounds, which would be decoded.
        optional: Further ones, which may be absent.
        by_number: Those whose classes keep their numbers, from 0 on.

    Raises:
        TaskError: It cannot be loaded, or lacks a column.
    """
    import datasets

    datasets.disable_progress_bars()
    where = f"{path}: {name}"
    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        rows = datasets.load_dataset(str(with_home(path)) if revision is None else path, subset, split=name, **options)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise TaskError(f"{where}: cannot be loaded: {error.__cause__ or error}") from error
    for column in columns:
        if column not in rows.column_names:
            raise TaskError(f"{where}: no column {column!r}; the columns are {', '.join(rows.column_names)}")
    read = [*columns, *(column for column in optional if column in rows.column_names and column not in columns)]
    unread = [column for column in rows.column_names if column not in read]
    rows = rows.select_columns(read)
    kinds = {name: rows.features.arrow_schema.field(name).type for name in read}
    short = {name: kind for name, kind in kinds.items() if has_short_floats(kind)}
    for number, values in enumerate(rows, start=1):
        corrected = {name: exact(values[name], kind) for name, kind in short.items()}
        named = {name: _with_classes(value, rows.features[name], name in by_number) for name, value in values.items()}
        yield Record(f"{where}: row {number}", {**named, **corrected}, unread)


def _with_classes(value: Any, feature: Any, by_number: bool) -> Any:
    """The value with the names of classes, or with their numbers; None for an unknown class."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        if value is None or value < 0:
            return None
        return value if by_number else feature.int2str(value)
    if isinstance(feature, datasets.List | datasets.LargeList) and isinstance(value, list):
        return [_with_classes(item, feature.feature, by_number) for item in value]
    if isinstance(feature, dict) and isinstance(value, dict):
        return {key: _with_classes(inner, feature[key], by_number) for key, inner in value.items()}
    return value
