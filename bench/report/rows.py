"""Records as flat rows, one per trial, failed ones included. An absent value is missing, never zero."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.report.column import Column, Shown, Value, is_finite
from bench.report.columns import LABEL, columns_with_scores, csv_columns
from bench.report.row_labels import row_labels
from bench.schema.labels import Label
from bench.schema.record import TrialResult
from bench.schema.trial import JsonDict
from bench.store.kept_sweep import divided, read_kept
from bench.store.records import Store

if TYPE_CHECKING:
    import pandas as pd

ASKED_FOR = "asked_for"


def load(root: Path, everything: bool = False) -> pd.DataFrame:
    """One row per trial that the sweep of a results folder asks for, failed ones included; the columns of results.csv.

    With ``everything`` also what earlier versions of the sweep have left.

    Columns of whole numbers are of pandas' type ``Int64``, in which a missing value is missing.
    """
    kept = read_kept(root)
    current_records, others = divided(Store(root).read_all(), None if kept is None else kept.asks)
    return frame(current_records, others if everything else ())


def frame(results: Sequence[TrialResult], others: Sequence[TrialResult] = ()) -> pd.DataFrame:
    """One row per trial. Absent values are missing, never zero.

    Args:
        results: What the sweep asks for.
        others: Further records; with any, a last column ``asked_for`` says which rows are not of these.
    """
    import pandas as pd  # imported late, because it takes half a second

    records = [*results, *others]
    called = row_labels(records)
    made = {}
    for column in csv_columns(records):
        values = column_values(column, records, called)
        made[column.name] = pd.Series(values, dtype=_dtype(values))
    if others:
        made[ASKED_FOR] = pd.Series([number < len(results) for number in range(len(records))], dtype="boolean")
    return pd.DataFrame(made)


def column_values(column: Column, records: Sequence[TrialResult], called: Mapping[str, Label]) -> list[Value]:
    """A value for each record. The label is that of its row, which tells it from the other rows.

    Args:
        column: Of these values.
        records: In order.
        called: Trial id to label.
    """
    if column is LABEL:
        return [called[record.trial_id].text for record in records]
    return [column.of(record) for record in records]


def _dtype(values: Iterable[object]) -> str:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "boolean"
    if kinds == {int}:
        return "Int64"
    return "float64" if kinds and kinds <= {int, float} else "str"


def row_columns(results: Iterable[TrialResult]) -> tuple[str, ...]:
    """Names of the columns of results.csv, in order."""
    return tuple(column.name for column in csv_columns(results))


def row(result: TrialResult) -> JsonDict:
    """A record as a flat row, without the cost of trials that shared a launch or were continued.

    What is not finite is absent; :func:`not_finite` names it.
    """
    return {column.name: value for column in columns_with_scores(result) if (value := column.of(result)) is not None}


def not_finite(result: TrialResult) -> list[str]:
    """The values of a record that are NaN or infinite, by column, in the order of tables."""
    lost = [column for column in columns_with_scores(result) if not is_finite(column.read(result))]
    lost.sort(key=lambda column: not column.shown & Shown.CONFIGURATIONS)
    return list(dict.fromkeys(column.name for column in lost))
