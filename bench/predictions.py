"""Predictions beside a record: one row for each source that was decoded."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from bench.spec import JsonDict
from bench.store import Store

PREDICTIONS_FILE = "predictions.jsonl.gz"


def read_predictions(root: Path, trial_id: str) -> list[JsonDict] | None:
    """Rows with ``id``, ``source``, ``prediction``, ``references`` and ``tags``; None where none are kept.

    Args:
        root: Results folder of the sweep.
        trial_id: Of the trial.
    """
    path = Store(root).trials / trial_id / PREDICTIONS_FILE
    if not path.is_file():
        return None
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
