"""What a metric is: a name, a direction, a signature, a number for any part of the sources, a number for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.metrics.texts import Texts

Sources = Sequence[int]


@dataclass(frozen=True)
class Measured:
    """A metric of one system's predictions. What is costly was done once; parts of the sources add it up.

    Args:
        signature: Tokeniser, case, references and library version.
        over: Score over the sources at these positions, of which there is at least one; a position may occur more than
            once, as in a bootstrap.
        per_example: Score of each source by itself; None where the metric has none.
    """

    signature: str
    over: Callable[[Sources], float]
    per_example: tuple[float, ...] | None


@dataclass(frozen=True)
class Metric:
    """An entry of the table of metrics.

    Args:
        name: Its key in records, lower case.
        higher_is_better: Direction; None where neither end is better, e.g. a length ratio.
        measure: Takes prepared texts, gives the measured metric.
        absent: Says what is missing for this metric to be had (a package, weights, facts); None where all is there.
        best: Score of texts that equal their only reference; None where there is no such number for all texts.
    """

    name: str
    higher_is_better: bool | None
    measure: Callable[[Texts], Measured]
    absent: Callable[[Texts], str | None] = lambda texts: None
    best: float | None = None


def mean_of(values: Sequence[float], signature: str) -> Measured:
    """A metric whose corpus score is the mean over sources."""
    return Measured(signature, lambda sources: sum(values[index] for index in sources) / len(sources), tuple(values))
