"""The table that each record belongs to, and its label there, among the rows of its model, task and stage."""

from __future__ import annotations

from collections.abc import Iterable

from bench.schema.labels import Label, labels
from bench.schema.record import TrialResult
from bench.schema.same_answer import untrained
from bench.schema.trial import TrialSpec


class TableModels:
    """What tables call the models of records: by one path, wherever the same weights lay.

    A sweep that goes on with another path to its model, on another machine or spelt otherwise, goes on in its tables.

    Args:
        records: All of which tables are made.
    """

    def __init__(self, records: Iterable[TrialResult]) -> None:
        self._first_paths: dict[str, str] = {}  # weights to the path under which they were trained first
        for record in sorted(records, key=lambda record: record.started_at):
            if record.spec.model.weights_sha256 is not None:
                self._first_paths.setdefault(record.spec.model.weights_sha256, record.spec.model.path)

    def table(self, spec: TrialSpec) -> tuple[str, str]:
        """Model and task of the table that a trial belongs to."""
        path = spec.model.path
        return self._first_paths.get(spec.model.weights_sha256 or "", path), spec.task.name


def row_labels(records: Iterable[TrialResult]) -> dict[str, Label]:
    """Trial id to label. Trials that differ only in their seed have the same label."""
    results = list(records)
    tables: dict[tuple[str, str, str], list[TrialResult]] = {}
    models = TableModels(results)
    for result in results:
        tables.setdefault((*models.table(result.spec), result.spec.stage), []).append(result)
    indifferent = untrained(results)
    return {
        result.trial_id: label
        for members in tables.values()
        for result, label in zip(members, labels([member.spec for member in members], indifferent), strict=True)
    }
