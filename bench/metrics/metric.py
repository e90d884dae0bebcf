"""The base classes of metrics: a name, a direction, a signature, statistics of each source, a score of their sum.

A metric of your own is a subclass of :class:`Metric`, like the built-in ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bench.metrics.texts import Texts
from bench.task import Scoring

Sources = Sequence[int]
Array = NDArray[np.float64]
# Sums of statistics (..., K) to scores (...).
Score = Callable[[Array], Array]


class MetricError(ValueError):
    """A metric is unknown, cannot be computed here, or breaks the contract of metrics. The message says which."""


@dataclass(frozen=True)
class Measured:
    """A metric of one system's predictions. Costly work is done once; the score of some sources adds its results up.

    Args:
        signature: Tokeniser, case, references and library version.
        over: Score over the sources at these positions, of which there is at least one; a position may occur more than
            once, as in a bootstrap.
        per_example: Score of each source by itself; None where the metric has none.
    """

    signature: str
    over: Callable[[Sources], float]
    per_example: tuple[float, ...] | None


class Metric(ABC):
    """A score of predictions: a function of statistics that are summed over sources.

    M sources, K statistics of a source, ... any leading dimensions (resamples, seeds).

    Intervals and tests of the score are computed from the same sums: a resample of the sources is another sum. The
    score of all sources is ``score(statistics(texts).sum(axis=0))``, the scores of single ones are
    ``score(statistics(texts))``. A score that is the mean of one number for each source is a :class:`MeanOfSources`.

    Attributes:
        name: The key of the metric in sweeps and records: small letters, digits, ``_``.
        higher_is_better: Direction; None where neither end is better, e.g. a length ratio.
        best: Score of texts that equal their only reference; None if it is not the same for all texts.
        adds_up: Whether the score is a function of sums. If not, the class has its own ``measure``, and differences
            are tested over seeds alone.
        is_mean: Whether the score is the mean of the scores of single sources.
        of_all_sources: Whether statistics of a source depend on the other sources, e.g. on how rare words are there.
        scoring: The settings of the task.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool | None]
    best: ClassVar[float | None] = None
    adds_up: ClassVar[bool] = True
    is_mean: ClassVar[bool] = False
    of_all_sources: ClassVar[bool] = False

    def __init__(self, scoring: Scoring) -> None:
        self.scoring = scoring

    def absent(self, texts: Texts) -> str | None:
        """What the metric lacks here (a package, weights, facts) to be computed; None if it lacks nothing."""
        return None

    @abstractmethod
    def signature(self, texts: Texts) -> str:
        """Everything that changes the score: tokeniser, case, references, library and its version."""

    @abstractmethod
    def statistics(self, texts: Texts) -> Array:
        """Numbers of each source, ``(M, K)``, whose sums have a meaning: matches, lengths, ..."""

    @abstractmethod
    def score(self, sums: Array) -> Array:
        """Scores ``(...)`` of sums of statistics ``(..., K)``: finite numbers, whatever the sums are."""

    def measure(self, texts: Texts) -> Measured:
        """The score over any of these texts, and the score of each text.

        Raises:
            MetricError: Statistics or scores have a wrong shape.
        """
        rows = checked_statistics(self, texts)

        def over(sources: Sources) -> float:
            return float(self.score(added_up(rows, sources)))

        alone = np.asarray(self.score(rows.copy()))
        if alone.shape != (len(texts),):
            raise MetricError(
                f"the metric {self.name!r}: score gives {alone.shape} for sums {rows.shape}; it must give one number "
                f"for each row, {(len(texts),)}: write sums[..., 0] for the first statistic, not sums[0]"
            )
        return Measured(self.signature(texts), over, tuple(alone.tolist()))


class MeanOfSources(Metric):
    """A metric whose score is the mean of one number for each source."""

    is_mean = True

    @abstractmethod
    def values(self, texts: Texts) -> Sequence[float]:
        """The score of each source by itself, M numbers."""

    def statistics(self, texts: Texts) -> Array:
        return with_values(self.values(texts))

    def score(self, sums: Array) -> Array:
        return mean(sums)


class NoFunctionOfSums(Metric):
    """A metric that needs all texts together."""

    adds_up = False

    @abstractmethod
    def measure(self, texts: Texts) -> Measured:
        """See :meth:`Metric.measure`."""

    def statistics(self, texts: Texts) -> Array:
        raise TypeError(f"{self.name} has no statistics of single sources that could be added up")

    def score(self, sums: Array) -> Array:
        raise TypeError(f"{self.name} is no function of sums over sources")


def checked_statistics(metric: Metric, texts: Texts) -> Array:
    """Statistics of these texts, checked.

    Raises:
        MetricError: The statistics are no table of numbers with one row for each source.
    """
    rows = np.asarray(metric.statistics(texts))
    if rows.ndim != 2 or len(rows) != len(texts) or not rows.shape[1] or rows.dtype.kind not in "biuf":
        raise MetricError(
            f"the metric {metric.name!r}: statistics gives {rows.dtype} {rows.shape} for {len(texts)} sources; it must "
            f"give numbers of the shape ({len(texts)}, K): one row for each source, K numbers in each"
        )
    return rows.astype(np.float64)


def added_up(rows: Array, sources: Sources) -> Array:
    """Sums ``(K,)`` of the rows at these positions, added in their order, so that no machine rounds differently."""
    return np.array([sum(column) for column in rows[list(sources)].T.tolist()], dtype=np.float64)


def mean(sums: Array) -> Array:
    """The mean of a value that each source has, from ``[value, 1]``."""
    return sums[..., 0] / sums[..., 1]


def with_values(values: Sequence[float]) -> Array:
    """Statistics ``(M, 2)`` of a score that is the mean of these values, one for each source."""
    return np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=-1)
