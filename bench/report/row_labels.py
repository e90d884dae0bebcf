"""The label of each record, which is that of its row among the rows of its model, task and stage."""

from __future__ import annotations

from collections.abc import Iterable

from bench.schema.labels import Label, labels
from bench.schema.record import TrialResult
from bench.schema.same_answer import untrained


def row_labels(records: Iterable[TrialResult]) -> dict[str, Label]:
    """Trial id to label. Trials that differ only in their seed have the same label."""
    results = list(records)
    tables: dict[tuple[str, str, str], list[TrialResult]] = {}
    for result in results:
        spec = result.spec
        tables.setdefault((spec.model.path, spec.task.name, spec.stage), []).append(result)
    indifferent = untrained(results)
    return {
        result.trial_id: label
        for members in tables.values()
        for result, label in zip(members, labels([member.spec for member in members], indifferent), strict=True)
    }
