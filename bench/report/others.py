"""Records that the sweep does not ask for any more. They are listed apart, and enter no table, test or mean."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from bench.report.column import ABSENT
from bench.report.columns import metric_columns
from bench.report.row_labels import row_labels
from bench.schema.record import Failed, TrialResult
from bench.schema.trial import JsonDict, titled

TITLE = "Records that this sweep does not ask for"
NOTE = (
    "Earlier versions of the sweep have left them. They are in no other table, no test and no mean; names say what "
    "they differ in, from each other and from the rows above."
)


def left_out_text(count: int, root: Path) -> str:
    """A sentence that says how many such records there are, and how to see them."""
    records = "1 record" if count == 1 else f"{count} records"
    is_of = "is" if count == 1 else "are"
    command = f"tuneoff report {shlex.quote(str(root))} --all"
    return (
        f"{records} in the folder {is_of} not asked for by the sweep as it is now: '{command}' lists what is left out."
    )


def other_rows(
    current_records: Sequence[TrialResult], others: Sequence[TrialResult]
) -> tuple[list[str], list[list[str]]]:
    """Heading and rows: trial, name, status, and the score that the records name first."""
    metrics = metric_columns(others)[:1]
    called = row_labels([*current_records, *others])
    body = []
    for record in others:
        status = record.outcome.reason if isinstance(record.outcome, Failed) else record.outcome.status
        scores = [ABSENT if (value := one.number(record)) is None else one.text(value) for one in metrics]
        name = titled(record.spec.method.name, called[record.trial_id].text)
        body.append([record.trial_id, name, str(record.spec.seed), status, *scores])
    return ["trial", "method", "seed", "status", *(one.title for one in metrics)], body


def other_document(others: Sequence[TrialResult]) -> list[JsonDict]:
    """The records for report.json."""
    return [
        {"trial_id": record.trial_id, "status": record.outcome.status, "stage": record.spec.stage} for record in others
    ]
