"""NIST (Doddington 2002), as the official E2E script computes it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

from bench.metrics.metric import Measured, NoFunctionOfSums, Sources
from bench.metrics.texts import Texts
from bench.metrics.words import tokenizer

ORDER = 5

# With two thirds of the references' length the score is halved.
BETA = -math.log(0.5) / math.log(1.5) ** 2

Ngram = tuple[str, ...]
Counts = Counter[Ngram]


class Nist(NoFunctionOfSums):
    """NIST-5: a matching n-gram weighs its information, which is higher the rarer it is in the references scored.

    It is written here because no maintained package gives the official number: nltk averages and penalises differently
    (its length penalty takes the closest reference, its information skips equal references). It follows pymteval.py of
    tuetschek/e2e-metrics, which equals mteval-v13a except for sources with different numbers of references: clipped
    counts over all references, information over the references of the sources that are scored, average reference
    length. The score of a single source uses the information of all sources.
    """

    name = "nist"
    higher_is_better = True

    def absent(self, texts: Texts) -> str | None:
        """The information of a word is its rarity, so that a single word has none."""
        words = {word for some in texts.prepared_references for text in some for word in text.lower().split()}
        return "the references have but one word, which tells nothing" if len(words) < 2 else None

    def signature(self, texts: Texts) -> str:
        case = "lc" if texts.scoring.lowercase else "mixed"
        return f"nist:{ORDER}|nrefs:var|case:{case}|tok:{texts.scoring.tokenize}|length:average|as pymteval"

    def measure(self, texts: Texts) -> Measured:
        tokenize = tokenizer(texts.scoring.tokenize)

        @cache
        def words(text: str) -> tuple[str, ...]:
            cut = tuple(tokenize(text.lower() if texts.scoring.lowercase else text).split())
            return cut or ("",)  # as pymteval.py cuts an empty text

        predicted = [words(text) for text in texts.prepared_predictions]
        references = [[words(text) for text in some] for some in texts.prepared_references]
        rows = [_Row(prediction, some) for prediction, some in zip(predicted, references, strict=True)]

        def over(sources: Sources) -> float:
            return _score([rows[index] for index in sources], _information(rows[index] for index in sources))

        everything = _information(rows)
        return Measured(self.signature(texts), over, tuple(_score([row], everything) for row in rows))


class _Row:
    """The counts of one source."""

    def __init__(self, prediction: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        most: Counts = Counter()
        self.references: Counts = Counter()
        self.reference_words = 0
        for reference in references:
            counts = _ngrams(reference)
            most |= counts
            self.references += counts
            self.reference_words += len(reference)
        self.hits = _ngrams(prediction) & most
        # The script counts len - n + 1 n-grams of each order, also where that is negative.
        self.lengths = [len(prediction) - n for n in range(ORDER)]
        self.mean_reference_length = self.reference_words / len(references)


def _ngrams(words: Sequence[str]) -> Counts:
    return Counter(tuple(words[start : start + n]) for n in range(1, ORDER + 1) for start in range(len(words) - n + 1))


class _Information(dict[Ngram, float]):
    """n-gram to the information of its last word in bits, computed when it is first needed."""

    def __init__(self, counts: Counts, num_words: int) -> None:
        super().__init__()
        self.counts = counts
        self.num_words = num_words

    def __missing__(self, ngram: Ngram) -> float:
        before = self.counts[ngram[:-1]] if len(ngram) > 1 else self.num_words
        self[ngram] = math.log2(before / self.counts[ngram])
        return self[ngram]


def _information(rows: Iterable[_Row]) -> _Information:
    counts: Counts = Counter()
    num_words = 0
    for row in rows:
        counts.update(row.references)
        num_words += row.reference_words
    return _Information(counts, num_words)


def _score(rows: Sequence[_Row], information: _Information) -> float:
    bits_by_order = [0.0] * ORDER
    for row in rows:
        for ngram, hits in row.hits.items():
            bits_by_order[len(ngram) - 1] += information[ngram] * hits
    lengths = [sum(row.lengths[n] for row in rows) for n in range(ORDER)]
    total = sum(bits / length for bits, length in zip(bits_by_order, lengths, strict=True) if length > 0)
    mean_length = sum(row.mean_reference_length for row in rows)
    ratio = lengths[0] / mean_length if mean_length else 1.0
    if ratio <= 0:
        return 0.0
    return total if ratio >= 1 else total * math.exp(-BETA * math.log(ratio) ** 2)
