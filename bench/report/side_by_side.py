"""Predictions of several configurations for the same sources, limited by the size of a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.report.configurations import Configuration, chosen_of_methods
from bench.schema.trial import JsonDict
from bench.store.predictions import read_predictions

MOST_CONFIGURATIONS = 12
MOST_REFERENCES = 5
# Of JSON text; a page of fifty trials stays well below five megabytes.
MOST_BYTES = 1_500_000


@dataclass(frozen=True)
class SideBySide:
    """Sources with the predictions of every configuration."""

    configurations: tuple[str, ...]
    trials: tuple[str, ...]  # whose predictions these are: the first completed seed of each configuration
    sources: tuple[JsonDict, ...]  # id, source, tags, references, predictions and scores by configuration
    num_sources: int  # all of them; the above are an even sample


def side_by_side(
    root: Path, configurations: Sequence[Configuration], most_bytes: int = MOST_BYTES
) -> SideBySide | None:
    """Predictions of each method's configuration with the lowest dev loss; None where no predictions are kept.

    Args:
        root: Results folder of the sweep.
        configurations: Best first.
        most_bytes: Limit on the JSON text of all sources. What is over it is left out evenly, and counted.
    """
    read: list[tuple[Configuration, str, dict[str, JsonDict]]] = []
    for configuration in chosen_of_methods(configurations):
        for result, _ in configuration.completed:
            if len(read) == MOST_CONFIGURATIONS:
                break
            if (rows := read_predictions(root, result.trial_id)) is not None:
                read.append((configuration, result.trial_id, {str(row["id"]): row for row in rows}))
                break
    if not read:
        return None
    ids = list(dict.fromkeys(key for *_, lines in read for key in lines))
    sources = [_source(key, [lines.get(key) for *_, lines in read]) for key in ids]
    total = sum(len(json.dumps(source)) for source in sources)
    step = max(1, -(-total // most_bytes))
    return SideBySide(
        configurations=tuple(configuration.name for configuration, *_ in read),
        trials=tuple(trial_id for _, trial_id, _ in read),
        sources=tuple(sources[::step]),
        num_sources=len(sources),
    )


def _source(key: str, lines: Sequence[JsonDict | None]) -> JsonDict:
    first = next(line for line in lines if line is not None)
    references = first.get("references", [])
    return {
        "id": key,
        "source": first["source"],
        "tags": first.get("tags", []),
        "references": references[:MOST_REFERENCES],
        "more_references": max(0, len(references) - MOST_REFERENCES),
        "predictions": [None if line is None else line["prediction"] for line in lines],
        "scores": [None if line is None else line.get("scores") for line in lines],
    }
