"""Configurations of a sweep in the form of the tests: predictions of their seeds as statistics of single sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.metrics.known import BUILT_IN, LOADED
from bench.metrics.metric import Array, Metric, checked_statistics, mean, with_values
from bench.metrics.scoring import stored_scoring
from bench.metrics.texts import prepare
from bench.schema.record import Completed, TrialResult
from bench.schema.trial import JsonDict, MetricSpec
from bench.statistics.differences import SeedStatistics
from bench.store.predictions import has_predictions, read_predictions
from bench.task import Scoring

# Scores that are computed again from the predictions have to equal the recorded ones, except for rounding.
TOLERANCE = 1e-6


class StatisticsError(ValueError):
    """Configurations cannot be compared source by source. The message says which and why."""


@dataclass(frozen=True)
class System:
    """One configuration: the completed seeds that have predictions, in ascending order.

    Attributes:
        name: For people.
        results: The final trials, failed ones included.
        predictions: Seed to rows, in the order of the test sources; each is read when it is asked for.
    """

    name: str
    results: tuple[TrialResult, ...]
    predictions: Mapping[int, Sequence[JsonDict]]

    @cached_property
    def completed(self) -> dict[int, Completed]:
        """Seed to outcome, of all completed trials."""
        found = {result.spec.seed: result.outcome for result in self.results}
        return {seed: outcome for seed, outcome in sorted(found.items()) if isinstance(outcome, Completed)}

    @property
    def varies_over_seeds(self) -> bool:
        """Whether seeds differ: not those of what trains nothing, of which no seed draws texts or examples."""
        return any(result.varies_over_seeds for result in self.results)


class StoredPredictions(Mapping[int, Sequence[JsonDict]]):
    """Seed to predictions that are read when they are asked for, and not kept: a sweep may have more than fit.

    Args:
        root: Results folder of the sweep.
        trials: Seed to trial that has predictions.
    """

    def __init__(self, root: Path, trials: Mapping[int, str]) -> None:
        self._root, self._trials = root, trials

    def __getitem__(self, seed: int) -> Sequence[JsonDict]:
        rows = read_predictions(self._root, self._trials[seed])
        if rows is None:
            raise StatisticsError(f"{self._trials[seed]}: its predictions were there, and are gone")
        return rows

    def __iter__(self) -> Iterator[int]:
        return iter(self._trials)

    def __len__(self) -> int:
        return len(self._trials)


def load_system(root: Path, name: str, results: Sequence[TrialResult]) -> System:
    """The predictions of one configuration.

    Args:
        root: Results folder of the sweep.
        name: For people.
        results: Its final trials.
    """
    trials = {
        result.spec.seed: result.trial_id
        for result in results
        if isinstance(result.outcome, Completed) and has_predictions(root, result.trial_id)
    }
    return System(name, tuple(results), StoredPredictions(root, dict(sorted(trials.items()))))


@dataclass(frozen=True)
class PairedSystems:
    """Systems that predicted the same sources.

    Raises:
        StatisticsError: A system has no predictions.
    """

    systems: tuple[System, ...]

    def __post_init__(self) -> None:
        for system in self.systems:
            if not system.predictions:
                raise StatisticsError(f"{system.name}: no completed trial with predictions")

    def check(self) -> None:
        """Read all predictions.

        Raises:
            StatisticsError: The systems were not tested on the same sources.
        """
        for system in self.systems:
            for seed in system.predictions:
                self._predictions(system, seed)

    def _predictions(self, system: System, seed: int) -> Sequence[JsonDict]:
        rows = system.predictions[seed]
        if _items(rows) != self._items:
            raise StatisticsError(
                f"{system.name} (seed {seed}) was not tested on the sources and references of {self.systems[0].name}: "
                "differences source by source have no meaning"
            )
        return rows

    @cached_property
    def _rows(self) -> Sequence[JsonDict]:
        return next(iter(self.systems[0].predictions.values()))

    @cached_property
    def _items(self) -> list[tuple[str, str, tuple[str, ...]]]:
        return _items(self._rows)

    @property
    def sources(self) -> int:
        return len(self._rows)

    @cached_property
    def references(self) -> list[list[str]]:
        return [list(row["references"]) for row in self._rows]

    def with_tag(self, tag: str) -> NDArray[np.bool_]:
        """Which sources have a tag, ``(M,)``."""
        return np.array([tag in row["tags"] for row in self._rows])

    def statistics(self, metric: str) -> tuple[Callable[[Array], Array], dict[str, SeedStatistics]] | None:
        """The score as a function of sums, and each system's statistics.

        None for a score that is no such function, and for one that some record lacks.

        Raises:
            StatisticsError: What is computed from the predictions is not what the records say, or the systems were not
                tested on the same sources.
        """
        if metric not in self._known:
            self._known[metric] = self._statistics(metric)
        return self._known[metric]

    @cached_property
    def _known(self) -> dict[str, tuple[Callable[[Array], Array], dict[str, SeedStatistics]] | None]:
        """What was computed once: every part of the sources asks for it."""
        return {}

    def _statistics(self, metric: str) -> tuple[Callable[[Array], Array], dict[str, SeedStatistics]] | None:
        if any(metric not in one.scores.values for system in self.systems for one in system.completed.values()):
            return None  # absent in some record, with its reason
        own_metric = self._metric(metric)
        if own_metric is not None and not own_metric.adds_up:
            return None
        of_sums = mean if own_metric is None or own_metric.is_mean else own_metric.score
        found: dict[str, SeedStatistics] = {}
        for system in self.systems:
            seeds = list(system.predictions)[: None if system.varies_over_seeds else 1]
            values: list[Array] = []
            for seed in seeds:
                rows = self._predictions(system, seed)
                of_rows = self._of_rows(metric, own_metric, rows)
                if of_rows is None and own_metric is None and metric in self._plugins:
                    raise StatisticsError(self._not_loaded(metric))
                if of_rows is None:
                    return None
                recorded = system.completed[seed].scores.values[metric]
                computed = float(of_sums(of_rows.sum(axis=0)))
                if abs(computed - recorded) > TOLERANCE * max(1.0, abs(recorded)):
                    if own_metric is None and metric in self._plugins:
                        raise StatisticsError(self._not_loaded(metric))
                    if own_metric is None:
                        return None  # a score that has values of single sources, and is not their mean
                    raise StatisticsError(
                        f"{system.name} (seed {seed}): its predictions give {metric} {computed:.4f}, its record says "
                        f"{recorded:.4f}; it was made with other settings or another version of the score"
                    )
                values.append(of_rows)
            found[system.name] = SeedStatistics(np.stack(values), tuple(seeds) if system.varies_over_seeds else None)
        return of_sums, found

    @property
    def _scoring(self) -> Scoring:
        """The settings of the task; of an older record, the only ones that varied."""
        scores = next(iter(self.systems[0].completed.values())).scores
        if scores.scoring is not None:
            return stored_scoring(scores)
        return Scoring(lowercase="case:lc" in scores.signatures.get("bleu", "").split("|"))

    @cached_property
    def _plugins(self) -> dict[str, MetricSpec]:
        """Metrics of plugins by name, of all systems."""
        trials = [result.spec for system in self.systems for result in system.results]
        return {metric.name: metric for trial in trials for metric in trial.task.plugin_metrics}

    def _metric(self, name: str) -> Metric | None:
        """A metric that this process knows; what a record names is not imported for that."""
        found = LOADED.get(self._plugins[name].target) if name in self._plugins else BUILT_IN.get(name)
        return None if found is None else found(self._scoring)

    def _not_loaded(self, name: str) -> str:
        metric = self._plugins[name]
        return (
            f"the metric {name} is a plugin ({metric.target}, of {metric.origin}) that is not known here; install it, "
            "or give its folder with --plugins-dir"
        )

    def _of_rows(self, name: str, metric: Metric | None, rows: Sequence[JsonDict]) -> Array | None:
        """Of a mean over sources from the values that the rows hold, of other scores from the predictions."""
        values = [row.get("scores", {}).get(name) for row in rows]
        if (metric is None or metric.is_mean) and None not in values:
            return with_values(values)
        if metric is None:
            return None
        facts = [tuple(map(tuple, row.get("facts") or ())) for row in rows]
        truncated = [bool(row["truncated"]) for row in rows if row.get("truncated") is not None]
        texts = prepare(
            [row["prediction"] for row in rows],
            self.references,
            self._scoring,
            facts,
            truncated if len(truncated) == len(rows) else None,
        )
        return checked_statistics(metric, texts) if metric.absent(texts) is None else None


def _items(rows: Sequence[JsonDict]) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(row["id"], row["source"], tuple(row["references"])) for row in rows]
