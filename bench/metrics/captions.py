"""ROUGE-L and CIDEr as the captioning scripts compute them, which the official E2E script calls."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache

from bench.metrics.metric import MeanOfSources
from bench.metrics.penn_treebank import caption_words
from bench.metrics.texts import Texts

BETA = 1.2
ORDER = 4
SIGMA = 6.0
ROUGE_L_SIGNATURE = f"rougeL|beta:{BETA}|best precision and recall over references|tok:ptb|as coco-caption"

Ngram = tuple[str, ...]
Vector = dict[Ngram, float]


def rouge_l(texts: Texts) -> list[float]:
    """ROUGE-L of each source in percent: best precision and recall over the references; recall weighs more (beta 1.2).

    It is written here because rouge-score computes the F1 of one reference and cuts words differently. Source: rouge.py
    of tylin/coco-caption, which tuetschek/e2e-metrics includes.
    """
    words = cache(caption_words)
    values = []
    for prediction, references in zip(texts.prepared_predictions, texts.prepared_references, strict=True):
        # A text without words becomes one empty word, as by str.split(" ") in the original.
        predicted = words(prediction) or ("",)
        common = [
            (longest_common_subsequence(predicted, some), len(some))
            for text in references
            for some in [words(text) or ("",)]
        ]
        precision = max(length for length, _ in common) / len(predicted)
        recall = max(length / of for length, of in common)
        weight = BETA**2
        score = (1 + weight) * precision * recall / (recall + weight * precision) if precision and recall else 0.0
        values.append(100.0 * score)
    return values


def longest_common_subsequence(one: Sequence[str], two: Sequence[str]) -> int:
    """Length of the longest common subsequence, computed with the bits of an integer (Crochemore et al. 2001)."""
    places: dict[str, int] = {}
    for position, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << position
    everything = (1 << len(one)) - 1
    row = everything
    for word in two:
        equal = row & places.get(word, 0)
        row = ((row + equal) | (row - equal)) & everything
    return len(one) - row.bit_count()


class Cider(MeanOfSources):
    """CIDEr-D, 0 to 10: cosine of tf-idf n-gram vectors, clipped, with a penalty for another length.

    It is written here because pycocoevalcap, the original, is not maintained and needs Java to cut words. The rarity of
    an n-gram is counted over the references of all sources that are scored, also for the score of a part of them.
    Source: cider_scorer.py of tylin/coco-caption, which tuetschek/e2e-metrics includes.
    """

    name = "cider"
    higher_is_better = True
    best = 10.0
    of_all_sources = True

    def absent(self, texts: Texts) -> str | None:
        """The rarity of an n-gram is counted over sources: if all have the same ones, no n-gram has a weight."""
        if len(texts) < 2:
            return "there is one source, and how rare words are is counted over several"
        of_sources = [{word for text in some for word in caption_words(text)} for some in texts.prepared_references]
        if any(words != of_sources[0] for words in of_sources):
            return None
        return "the references of all sources have the same words, of which none is rarer than another"

    def signature(self, texts: Texts) -> str:
        return f"cider-d|n:{ORDER}|sigma:{SIGMA:g}|idf:references scored|tok:ptb|as coco-caption"

    def values(self, texts: Texts) -> list[float]:
        words = cache(caption_words)
        predicted = [_counts(words(text)) for text in texts.prepared_predictions]
        references = [[_counts(words(text)) for text in some] for some in texts.prepared_references]
        sources_with: Counter[Ngram] = Counter()
        for some in references:
            sources_with.update({ngram for counts in some for ngram in counts})
        log_sources = math.log(len(texts))

        def vectors(counts: Counter[Ngram]) -> tuple[list[Vector], list[float], int]:
            by_order: list[Vector] = [{} for _ in range(ORDER)]
            for ngram, count in counts.items():
                by_order[len(ngram) - 1][ngram] = count * (log_sources - math.log(max(1, sources_with[ngram])))
            norms = [math.sqrt(sum(value * value for value in vector.values())) for vector in by_order]
            return by_order, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2)

        values = []
        for prediction, some in zip(predicted, references, strict=True):
            weights, norms, length = vectors(prediction)
            total = 0.0
            for counts in some:
                reference_weights, reference_norms, reference_length = vectors(counts)
                penalty = math.exp(-((length - reference_length) ** 2) / (2 * SIGMA**2))
                for n in range(ORDER):
                    shared = sum(
                        min(value, reference_weights[n].get(ngram, 0.0)) * reference_weights[n].get(ngram, 0.0)
                        for ngram, value in weights[n].items()
                    )
                    norm = norms[n] * reference_norms[n]
                    total += penalty * (shared / norm if norm else shared)
            values.append(10.0 * total / ORDER / len(some))
        return values


def _counts(words: Sequence[str]) -> Counter[Ngram]:
    return Counter(tuple(words[start : start + n]) for n in range(1, ORDER + 1) for start in range(len(words) - n + 1))
