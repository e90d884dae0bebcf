"""Predictions of several configurations for the same sources, limited by the size of a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.report.configurations import Comparison, Configuration, chosen_of_methods, told_apart
from bench.schema.trial import JsonDict
from bench.store.predictions import read_predictions

MOST_CONFIGURATIONS = 12
MOST_REFERENCES = 5
# Of JSON text; a page of fifty trials stays well below five megabytes.
MOST_BYTES = 1_500_000

# Of a source: its id and its text.
Key = tuple[str, str]


@dataclass(frozen=True)
class SideBySide:
    """Sources with the predictions of every configuration."""

    configurations: tuple[str, ...]
    trials: tuple[str, ...]  # whose predictions these are: the first completed seed of each configuration
    sources: tuple[JsonDict, ...]  # id, source, tags, references, predictions and scores by configuration
    num_sources: int  # all of them; the above are an even sample


def side_by_side(root: Path, comparisons: Sequence[Comparison], most_bytes: int = MOST_BYTES) -> SideBySide | None:
    """Predictions of each method's configuration with the lowest dev loss; None where no predictions are kept.

    Of several models or tasks each method has one in each, by a name that says where. Sources are the same if their
    texts are, too: data may count theirs alike.

    Args:
        root: Results folder of the sweep.
        comparisons: Their configurations best first.
        most_bytes: Limit on the JSON text of all sources. What is over it is left out evenly, and counted.
    """
    told = told_apart((comparison.model, comparison.task) for comparison in comparisons)
    most = max(1, MOST_CONFIGURATIONS // max(1, len(comparisons)))
    read = [
        (told[comparison.model, comparison.task] + configuration.name, *found)
        for comparison in comparisons
        for configuration, found in _kept(root, comparison.scored, most)
    ]
    if not read:
        return None
    keys = list(dict.fromkeys(key for *_, lines in read for key in lines))
    sources = [_source(key[0], [lines.get(key) for *_, lines in read]) for key in keys]
    total = sum(len(json.dumps(source)) for source in sources)
    step = max(1, -(-total // most_bytes))
    return SideBySide(
        configurations=tuple(name for name, *_ in read),
        trials=tuple(trial_id for _, trial_id, _ in read),
        sources=tuple(sources[::step]),
        num_sources=len(sources),
    )


def _kept(
    root: Path, scored: Sequence[Configuration], most: int
) -> Iterator[tuple[Configuration, tuple[str, dict[Key, JsonDict]]]]:
    """The first configurations that were chosen, with a trial and its predictions."""
    found = 0
    for configuration in chosen_of_methods(scored):
        for result, _ in configuration.completed:
            if found == most:
                return
            if (rows := read_predictions(root, result.trial_id)) is not None:
                found += 1
                lines = {(str(row["id"]), str(row["source"])): row for row in rows}
                yield configuration, (result.trial_id, lines)
                break


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
