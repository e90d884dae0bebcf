"""Predictions beside a record: one row for each source that was decoded."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic_core import from_json

from bench.schema.trial import JsonDict
from bench.task import Example

WRITTEN_FILE = "predictions.jsonl"
SAMPLES_FILE = "evaluations.jsonl"
KEPT_FILE = f"{WRITTEN_FILE}.gz"  # as the store packs it


def write_predictions(
    folder: Path,
    examples: Sequence[Example],
    predictions: Sequence[str],
    truncated: Sequence[bool],
    scores: Sequence[Mapping[str, float]],
    likelihoods: Sequence[Mapping[str, float]] | None = None,
) -> None:
    """Write the predictions of a trial into the outbox, in the order of the sources.

    Args:
        folder: The outbox of a rank.
        examples: The sources with their references.
        predictions: A text for each.
        truncated: Whether the length limit ended it.
        scores: Of each prediction by itself.
        likelihoods: Of the choices of each source, where predictions were chosen.
    """
    chosen = [{}] * len(examples) if likelihoods is None else [{"log_likelihoods": dict(one)} for one in likelihoods]
    lines = [
        json.dumps(
            {
                "id": example.id,
                "source": example.source,
                "prediction": prediction,
                "references": example.references,
                "tags": example.tags,
                "facts": example.facts,
                "truncated": cut,
                "scores": own,
                **more,
            },
            ensure_ascii=False,
        )
        for example, prediction, cut, own, more in zip(examples, predictions, truncated, scores, chosen, strict=True)
    ]
    (folder / WRITTEN_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_samples(folder: Path, samples: Sequence[JsonDict]) -> None:
    """Write the answers to an evaluation's questions into the outbox, a row for each, as the package logs them."""
    lines = [json.dumps(sample, ensure_ascii=False) for sample in samples]
    (folder / SAMPLES_FILE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def has_predictions(root: Path, trial_id: str) -> bool:
    """Whether predictions of a trial are kept. Arguments: see :func:`read_predictions`."""
    return _kept_file(root, trial_id).is_file()


def read_predictions(root: Path, trial_id: str) -> list[JsonDict] | None:
    """Rows as :func:`write_predictions` writes them; None if there are none. Old records have fewer fields.

    Args:
        root: Results folder of the sweep.
        trial_id: Of the trial.
    """
    path = _kept_file(root, trial_id)
    if not path.is_file():
        return None
    # A report reads the predictions of all trials, and reading line by line would take several times as long.
    lines = gzip.decompress(path.read_bytes()).strip(b"\n").replace(b"\n", b",")
    rows: list[JsonDict] = from_json(b"[%b]" % lines)
    return rows


def _kept_file(root: Path, trial_id: str) -> Path:
    return root / "trials" / trial_id / KEPT_FILE
