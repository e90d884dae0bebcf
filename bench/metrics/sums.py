"""Computes BLEU, chrF++ and TER from sums of sacrebleu's statistics, for many resamples of the sources at once.

A resample is a vector of counts of the sources. A matrix product of counts and statistics gives the sums of all
resamples.

K statistics of a source, ... any leading dimensions (resamples, seeds).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.metrics.metric import Array


def unsmoothed_bleu(sums: Array) -> Array:
    """BLEU of the scripts that give 0 if an order of n-grams has no match; from the statistics of :func:`bleu`."""
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
    halvings = np.cumsum(missed, axis=-1)  # each further order without a match counts half as much
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


def _ratio(numerator: Array, denominator: Array, where: NDArray[np.bool_]) -> Array:
    return np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=where)
