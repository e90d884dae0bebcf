"""Records with predictions: damaged references in place of what a model would write."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from fakes import completed, record, trial, varied

from bench.metrics.scoring import score_examples
from bench.plugins.registry import metrics_of
from bench.schema.record import Failed, TrialResult
from bench.schema.trial import JsonDict, MetricSpec, TrialSpec
from bench.store.records import Store
from bench.task import Example, Scoring

WORDS = (
    "the",
    "a",
    "red",
    "small",
    "old",
    "house",
    "tree",
    "bird",
    "sings",
    "stands",
    "near",
    "river",
    "with",
    "garden",
)


def references(source: int) -> list[str]:
    """One to three texts."""
    return [
        " ".join(random.Random(f"{source} {n}").choices(WORDS, k=6 + source % 9)) + "." for n in range(1 + source % 3)
    ]


def rows(quality: float, seed: str, sources: int = 24) -> list[JsonDict]:
    """Predictions of which this share of the words is right."""
    generator = random.Random(seed)
    return [
        {
            "id": f"test-{source}",
            "source": f"source {source}",
            "references": references(source),
            "tags": ["seen" if source % 4 else "unseen"],
            "prediction": " ".join(
                word if generator.random() < quality else generator.choice(WORDS)
                for word in references(source)[0].split()
            ),
        }
        for source in range(sources)
    ]


AS_SCORED = Scoring(lowercase=True)


def write_trial(
    store: Store, spec: TrialSpec, of_rows: list[JsonDict], trains: bool = True, scoring: Scoring = AS_SCORED
) -> TrialResult:
    """A completed trial, scored as the worker scores, with its predictions beside it."""
    examples = [Example(row["id"], (), row["source"], tuple(row["references"]), tuple(row["tags"])) for row in of_rows]
    also = [metric.name for metric in spec.task.plugin_metrics]
    texts = [row["prediction"] for row in of_rows]
    system = score_examples(examples, texts, scoring, also=also, known=metrics_of(spec.task))
    of_rows = [{**row, "scores": system.source_scores(number)} for number, row in enumerate(of_rows)]
    scores = system.scores()
    outcome = completed(trained=1000 if trains else 0, train=trains).model_copy(update={"scores": scores})
    store.root.mkdir(parents=True, exist_ok=True)
    path = store.root / "predictions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in of_rows))
    return store.commit(record(spec, outcome), [path])


def write_sweep(
    root: Path,
    qualities: dict[str, float],
    seeds: int = 5,
    failed: tuple[tuple[str, int], ...] = (),
    metrics: Sequence[MetricSpec] = (),
) -> dict[str, list[TrialResult]]:
    """A sweep of methods that get this share of the words right; ``none`` trains nothing and has one seed."""
    store = Store(root)
    found: dict[str, list[TrialResult]] = {}
    for method, quality in qualities.items():
        for seed in range(seeds if method != "none" else 1):
            spec = varied(trial(method, seed=seed), task={"plugin_metrics": list(metrics)})
            if (method, seed) in failed:
                store.root.mkdir(parents=True, exist_ok=True)
                outcome = Failed(reason="diverged", phase="train", rank=0, message="nan")
                found.setdefault(method, []).append(store.commit(record(spec, outcome), []))
                continue
            of_rows = rows(quality, f"{method} {seed}")
            found.setdefault(method, []).append(write_trial(store, spec, of_rows, trains=method != "none"))
    return found
