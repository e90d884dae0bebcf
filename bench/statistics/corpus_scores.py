"""Corpus scores from the sufficient statistics of single sources, for many resamples of the sources at once.

A corpus score is a function of sums over sources. With the statistics of each source in a row, a resample is a vector
of counts, and all resamples are one matrix product.

M sources, K statistics of a source, ... any leading dimensions (resamples, seeds).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.metrics import overlap
from bench.metrics.texts import prepare
from bench.task import Scoring

Array = NDArray[np.float64]
# Sums of statistics (..., K) to scores (...).
Score = Callable[[Array], Array]


@dataclass(frozen=True)
class CorpusMetric:
    """A score that is a function of sums over sources."""

    name: str
    score: Score
    extract: Callable[[Sequence[str]], Array]  # predictions, one for each source, to statistics (M, K)


def unsmoothed_bleu(sums: Array) -> Array:
    """BLEU of the scripts that give no credit for an order of n-grams without a match; from the same statistics."""
    length, reference_length = sums[..., 0], sums[..., 1]
    correct, total = sums[..., 2:6], np.maximum(sums[..., 6:10], 1e-9)
    with np.errstate(divide="ignore", invalid="ignore"):
        brevity = np.where(length < reference_length, np.exp(1.0 - reference_length / length), 1.0)
        score: Array = 100.0 * brevity * np.exp(np.log(correct / total).mean(axis=-1))
    return score


def bleu(sums: Array) -> Array:
    """Corpus BLEU as in sacrebleu, smoothing "exp", from ``[length, reference length, matches 1..4, totals 1..4]``."""
    length, reference_length = sums[..., 0], sums[..., 1]
    correct, total = sums[..., 2:6], sums[..., 6:10]
    missed = correct == 0
    halvings = np.cumsum(missed, axis=-1)  # each order without a match counts half of the one before
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(missed, 0.5**halvings, correct) / total
        brevity = np.where(length < reference_length, np.exp(1.0 - reference_length / length), 1.0)
        score = 100.0 * brevity * np.exp(np.log(precision).mean(axis=-1))
    return np.where((total == 0).any(axis=-1) | missed.all(axis=-1), 0.0, score)


def chrf(sums: Array, beta: float = 2.0) -> Array:
    """The chrF of sacrebleu, from ``[n-grams, n-grams of the reference, matches]`` for each order."""
    hypothesis, reference, matches = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    counts = (hypothesis > 0) & (reference > 0)
    orders = np.maximum(counts.sum(axis=-1), 1)
    precision = _ratio(matches, hypothesis, counts).sum(axis=-1) / orders
    recall = _ratio(matches, reference, counts).sum(axis=-1) / orders
    weighted = beta**2 * precision + recall
    return 100.0 * _ratio((1 + beta**2) * precision * recall, weighted, weighted > 0)


def ter(sums: Array) -> Array:
    """The TER of sacrebleu, from ``[edits, mean reference length]``."""
    edits, length = sums[..., 0], sums[..., 1]
    return 100.0 * np.where(length > 0, _ratio(edits, length, length > 0), edits > 0)


def mean(sums: Array) -> Array:
    """The mean of a value that each source has, from ``[value, 1]``."""
    return sums[..., 0] / sums[..., 1]


def with_values(values: Sequence[float]) -> Array:
    """Statistics ``(M, 2)`` of a score that is the mean of these values, one for each source."""
    return np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=-1)


def corpus_metric(name: str, references: Sequence[Sequence[str]], scoring: Scoring) -> CorpusMetric:
    """BLEU, chrF++ or TER as :mod:`bench.metrics` has them.

    Args:
        name: bleu, chrf or ter.
        references: One or more texts for each source.
        scoring: The settings of the task.

    Raises:
        KeyError: There is no such metric here.
    """
    smoothed = bleu if scoring.bleu == "sacrebleu" else unsmoothed_bleu
    score = {"bleu": smoothed, "chrf": chrf, "ter": ter}[name]

    def extract(predictions: Sequence[str]) -> Array:
        metric, prepared, of_sources = overlap.corpus_metric(name, prepare(predictions, references, scoring))
        statistics = metric._extract_corpus_statistics(list(prepared), overlap.reference_streams(of_sources))
        return np.array(statistics, dtype=np.float64)

    return CorpusMetric(name, score, extract)


def _ratio(numerator: Array, denominator: Array, where: NDArray[np.bool_]) -> Array:
    return np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=where)
