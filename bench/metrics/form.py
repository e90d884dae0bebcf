"""Metrics of the form of predictions: empty, truncated, repetitive, too long, or equal to a reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from bench.metrics.metric import Array, MeanOfSources, Metric
from bench.metrics.texts import Texts
from bench.metrics.words import spaced_words

# A prediction repeats itself if a run of this many words occurs this often. Of the 91,670 different references of E2E,
# WebNLG and DART, 20 do.
REPEATED_WORDS = 4
REPEATED_TIMES = 3


class ExactMatch(MeanOfSources):
    """Percentage of predictions that equal a reference, apart from white space and, if the task ignores it, case."""

    name = "exact_match"
    higher_is_better = True
    best = 100.0

    def signature(self, texts: Texts) -> str:
        return f"white space collapsed|case:{'lc' if texts.scoring.lowercase else 'mixed'}"

    def values(self, texts: Texts) -> list[float]:
        def normal(text: str) -> str:
            return " ".join((text.lower() if texts.scoring.lowercase else text).split())

        return [
            100.0 * (normal(prediction) in {normal(text) for text in references})
            for prediction, references in zip(texts.predictions, texts.references, strict=True)
        ]


class LengthRatio(Metric):
    """Words of the predictions divided by words of the references that are closest in length; 1 means equal length."""

    name = "length_ratio"
    higher_is_better = None
    best = 1.0

    def signature(self, texts: Texts) -> str:
        return f"words{_cut_by(texts)}|closest reference"

    def statistics(self, texts: Texts) -> Array:
        """The numbers of words of prediction and reference."""
        cut = spaced_words(texts.scoring)
        words = [len(cut(text)) for text in texts.prepared_predictions]
        closest = [
            min((len(cut(text)) for text in some), key=lambda length: (abs(length - num_words), length))
            for num_words, some in zip(words, texts.prepared_references, strict=True)
        ]
        return np.array([words, closest], dtype=np.float64).T

    def score(self, sums: Array) -> Array:
        ratio: Array = sums[..., 0] / np.maximum(1, sums[..., 1])
        return ratio


class EmptyRate(MeanOfSources):
    """Percentage of predictions without a word."""

    name = "empty_rate"
    higher_is_better = False
    best = 0.0

    def signature(self, texts: Texts) -> str:
        return "no word"

    def values(self, texts: Texts) -> list[float]:
        return [100.0 * (not text.strip()) for text in texts.predictions]


class TruncatedRate(MeanOfSources):
    """Percentage of predictions that ended at the length limit."""

    name = "truncated_rate"
    higher_is_better = False

    def absent(self, texts: Texts) -> str | None:
        """For texts from a file it is unknown how they ended."""
        return "not known how these texts ended" if texts.truncated is None else None

    def signature(self, texts: Texts) -> str:
        return "no end token within decode.max_new_tokens"

    def values(self, texts: Texts) -> list[float]:
        return [100.0 * cut for cut in texts.truncated or (False,) * len(texts)]


class RepetitionRate(MeanOfSources):
    """Percentage of predictions in which a run of words occurs several times."""

    name = "repetition_rate"
    higher_is_better = False

    def signature(self, texts: Texts) -> str:
        return f"a run of {REPEATED_WORDS} words{_cut_by(texts)} {REPEATED_TIMES} times"

    def values(self, texts: Texts) -> list[float]:
        cut = spaced_words(texts.scoring)
        return [100.0 * repeats_itself(cut(text.lower())) for text in texts.predictions]


def _cut_by(texts: Texts) -> str:
    name = texts.scoring.tokenize
    return "" if name in ("13a", "none") else f" of {name}"


def repeats_itself(words: Sequence[str]) -> bool:
    """Whether a run of words occurs so often that the text counts as repetitive."""
    runs = Counter(tuple(words[at : at + REPEATED_WORDS]) for at in range(len(words) - REPEATED_WORDS + 1))
    return max(runs.values(), default=0) >= REPEATED_TIMES
