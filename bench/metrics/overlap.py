"""BLEU, chrF++ and TER by sacrebleu, ROUGE-L by rouge-score: the words that predictions and references share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from bench.metrics import captions
from bench.metrics import sums as of_sums
from bench.metrics.edit_rate import QuickTER
from bench.metrics.metric import Array, MeanOfSources, Measured, Metric, Sources
from bench.metrics.tercom import TercomTER
from bench.metrics.texts import Texts
from bench.metrics.words import WITHOUT_SPACES, rouge_words, tokenizer
from bench.task import Scoring, TokenizerName


class _OfSacrebleu(Metric):
    """A metric of sacrebleu. sacrebleu computes recorded scores; intervals and tests use sums of its statistics."""

    def __init__(self, scoring: Scoring) -> None:
        super().__init__(scoring)
        self._references: Sequence[Sequence[str]] = ()
        self._of_references: Any = None

    def signature(self, texts: Texts) -> str:
        metric, predictions, references = corpus_metric(self.name, texts)
        _statistics(metric, [""] * len(texts), references)  # tells the metric the number of references
        return self._signature(metric, predictions, texts)

    def statistics(self, texts: Texts) -> Array:
        metric, predictions, references = corpus_metric(self.name, texts)
        if references != self._references:  # Many trials have the same references, which take most of the time.
            self._references, self._of_references = references, metric._cache_references(reference_streams(references))
        metric._ref_cache = self._of_references
        return np.array(metric._extract_corpus_statistics(list(predictions), None), dtype=np.float64)

    def measure(self, texts: Texts) -> Measured:
        """See :meth:`Metric.measure`. The statistics of each source are computed once."""
        metric, predictions, references = corpus_metric(self.name, texts)
        statistics = _statistics(metric, predictions, references)

        def over(sources: Sources) -> float:
            return float(metric._aggregate_and_compute([statistics[index] for index in sources]).score)

        alone = self._alone(texts, over)
        return Measured(self._signature(metric, predictions, texts), over, alone)

    def _signature(self, metric: Any, predictions: Sequence[str], texts: Texts) -> str:
        signature = str(metric.get_signature())
        if predictions is not texts.predictions and texts.scoring.preparation != "none":
            signature += f"|text:{texts.scoring.preparation}"
        return signature

    def _alone(self, texts: Texts, over: Callable[[Sources], float]) -> tuple[float, ...]:
        """Scores of single sources."""
        return tuple(over([index]) for index in range(len(texts)))


class Bleu(_OfSacrebleu):
    """Corpus BLEU-4 from 0 to 100.

    ``mteval`` equals pymteval.py of the official E2E script; ``multi-bleu`` equals multi-bleu.perl of WebNLG and DART.
    Both give 0 if an order of n-grams has no match at all. The score of a single source is sacrebleu's sentence BLEU
    (effective order, exponential smoothing).
    """

    name = "bleu"
    higher_is_better = True
    best = 100.0

    def score(self, sums: Array) -> Array:
        return of_sums.bleu(sums) if self.scoring.bleu == "sacrebleu" else of_sums.unsmoothed_bleu(sums)

    def _signature(self, metric: Any, predictions: Sequence[str], texts: Texts) -> str:
        signature = super()._signature(metric, predictions, texts)
        return signature + (f"|as:{texts.scoring.bleu}" if texts.scoring.bleu != "sacrebleu" else "")

    def _alone(self, texts: Texts, over: Callable[[Sources], float]) -> tuple[float, ...]:
        sentence = BLEU(effective_order=True, **_bleu_settings(texts.scoring))
        references = bleu_references(texts.prepared_references, texts.scoring)
        statistics = _statistics(sentence, texts.prepared_predictions, references)
        return tuple(float(sentence._aggregate_and_compute([row]).score) for row in statistics)


class Chrf(_OfSacrebleu):
    """Corpus chrF++ (word order 2) from 0 to 100, on unprepared texts; chrF for scripts without spaces."""

    name = "chrf"
    higher_is_better = True
    best = 100.0

    def score(self, sums: Array) -> Array:
        return of_sums.chrf(sums)


class Ter(_OfSacrebleu):
    """Corpus translation edit rate in percent, case-insensitive, as sacrebleu or tercom computes it.

    Words are separated by spaces, as in tercom; another tokenizer than 13a cuts words by its own rules.
    """

    name = "ter"
    higher_is_better = False
    best = 0.0

    def score(self, sums: Array) -> Array:
        return of_sums.ter(sums)

    def _signature(self, metric: Any, predictions: Sequence[str], texts: Texts) -> str:
        signature = super()._signature(metric, predictions, texts)
        return signature + ("|as:tercom 7.25" if texts.scoring.ter == "tercom" else "")


class RougeL(MeanOfSources):
    """ROUGE-L in percent, averaged over sources: F1 of the best reference, or as the captioning scripts compute it."""

    name = "rouge_l"
    higher_is_better = True
    best = 100.0

    def signature(self, texts: Texts) -> str:
        return captions.ROUGE_L_SIGNATURE if texts.scoring.rouge_l == "coco" else _rouge_signature(texts.scoring)

    def values(self, texts: Texts) -> list[float]:
        return captions.rouge_l(texts) if texts.scoring.rouge_l == "coco" else rouge_l_f1(texts)


def with_effective_order(texts: Texts) -> float:
    """BLEU over all sources, without orders of n-grams for which every prediction is too short."""
    metric = BLEU(effective_order=True, **_bleu_settings(texts.scoring))
    references = reference_streams(bleu_references(texts.prepared_references, texts.scoring))
    return float(metric.corpus_score(list(texts.prepared_predictions), references).score)


def rouge_l_f1(texts: Texts) -> list[float]:
    """ROUGE-L F1 of each source in percent, for its best reference, by the package rouge-score (beta 1).

    :func:`bench.metrics.words.rouge_words` cuts words, because the package's own rule knows only a to z and digits.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_RougeTokenizer(rouge_words(texts.scoring.tokenize)))
    return [
        100.0 * float(scorer.score_multi(list(some), prediction)["rougeL"].fmeasure)
        for prediction, some in zip(texts.prepared_predictions, texts.prepared_references, strict=True)
    ]


def _rouge_signature(scoring: Scoring) -> str:
    tok = "letters and digits" if scoring.tokenize == "13a" else scoring.tokenize
    return f"rougeL|f1|max over references|no stemming|tok:{tok}|rouge-score:{version('rouge-score')}"


class _RougeTokenizer:
    """A tokenizer with the interface of rouge-score."""

    def __init__(self, words: Callable[[str], list[str]]) -> None:
        self.tokenize = cache(words)


class _TokenizedTER(QuickTER):
    """TER on words that a tokenizer of sacrebleu cuts."""

    def __init__(self, name: TokenizerName) -> None:
        super().__init__()
        cut = tokenizer(name)
        self.tokenizer: Any = lambda text: cut(text.lower())
        self.tokenizer_signature = name


class _UnsmoothedBLEU(BLEU):
    """BLEU that is 0 if an order of n-grams has no match."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(smooth_method="none", **settings)


class _MtevalBLEU(_UnsmoothedBLEU):
    """BLEU that counts words and n-grams as pymteval.py does.

    That script takes an empty text for one word that matches nothing, and says that a text of n words has n - 3 n-grams
    of order 4, even if that is negative.
    """

    def _compute_segment_statistics(self, hypothesis: str, ref_kwargs: dict[str, Any]) -> list[int]:
        statistics = super()._compute_segment_statistics(hypothesis, ref_kwargs)
        length = max(statistics[0], 1)
        matches = statistics[2 : 2 + self.max_ngram_order]
        totals = [length - order for order in range(self.max_ngram_order)]
        return [length, self._get_closest_ref_len(length, ref_kwargs["ref_lens"]), *matches, *totals]

    def _compute_score_from_stats(self, stats: list[int]) -> Any:
        totals = 2 + self.max_ngram_order
        kept: list[Any] = [*stats[:totals], *(max(total, 1e-9) for total in stats[totals:])]
        return super()._compute_score_from_stats(kept)


def reference_streams(references: Sequence[Sequence[str]]) -> Any:
    """Transpose references to sacrebleu's form; None stands for a reference that a source does not have."""
    most = max(len(some) for some in references)
    return [[some[n] if n < len(some) else None for some in references] for n in range(most)]


def _bleu_settings(scoring: Scoring) -> dict[str, Any]:
    name = "none" if scoring.bleu == "multi-bleu" else scoring.tokenize
    tokenizer(name)  # raises an error if a file is missing, which sacrebleu would download
    return {"lowercase": scoring.lowercase, "force": True, "tokenize": name}  # force: no advice about tokenised text


def bleu_references(references: Sequence[Sequence[str]], scoring: Scoring) -> Sequence[Sequence[str]]:
    """References as a task's script reads them: multi-bleu.perl gets an empty reference for each that is missing."""
    if scoring.bleu != "multi-bleu":
        return references
    most = scoring.max_references or max(len(some) for some in references)
    return [[*some, *[""] * (most - len(some))] for some in references]


def corpus_metric(name: str, texts: Texts) -> tuple[Any, Sequence[str], Sequence[Sequence[str]]]:
    """The metric of sacrebleu for a task, and the predictions and references that it takes.

    Raises:
        KeyError: The name is none of bleu, chrf, ter.
    """
    scoring = texts.scoring
    if name == "chrf":
        word_order = 0 if scoring.tokenize in WITHOUT_SPACES else 2
        return CHRF(word_order=word_order), texts.predictions, texts.references
    if name == "ter":
        references: Sequence[Sequence[str]] = texts.prepared_references
        if name in scoring.single_reference:
            references = [some[:1] for some in references]
        return _ter(scoring), texts.prepared_predictions, references
    if name != "bleu":
        raise KeyError(name)
    make = {"sacrebleu": BLEU, "multi-bleu": _UnsmoothedBLEU, "mteval": _MtevalBLEU}[scoring.bleu]
    references = bleu_references(texts.prepared_references, scoring)
    return make(**_bleu_settings(scoring)), texts.prepared_predictions, references


def _ter(scoring: Scoring) -> QuickTER:
    if scoring.ter == "tercom":
        return TercomTER()
    return QuickTER() if scoring.tokenize in ("13a", "none") else _TokenizedTER(scoring.tokenize)


def _statistics(metric: Any, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Any:
    return metric._extract_corpus_statistics(list(predictions), reference_streams(references))
