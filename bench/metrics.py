"""Scores of predictions against references. Every score has a direction and a signature."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from bench.record import Scores

HIGHER_IS_BETTER = {"bleu": True, "chrf": True, "ter": False, "rouge_l": True}


class CorpusScores:
    """Corpus BLEU, chrF++, TER and ROUGE-L, all from 0 to 100, over any part of the sources.

    BLEU is sacrebleu's with tokeniser 13a over all references; lower-cased it equals mteval-v13a of the official E2E
    script. TER is case-insensitive, as tercom is. ROUGE-L is the F1 of the best reference, averaged over sources, by
    the package rouge-score (beta 1); the official E2E script weighs recall with beta 1.2.

    The statistics of each sentence are taken once; scores of a part of the sources (a tag) add them up.

    Args:
        predictions: One text for each source; may be empty texts.
        references: One or more texts for each source.
        lowercase: Whether BLEU ignores case.

    Raises:
        ValueError: No predictions, or a different number of sources on both sides.
    """

    def __init__(self, predictions: Sequence[str], references: Sequence[Sequence[str]], lowercase: bool) -> None:
        if not predictions or len(predictions) != len(references):
            raise ValueError(
                f"{len(predictions)} predictions for {len(references)} sources; there must be one for each"
            )
        self._metrics: dict[str, Any] = {
            "bleu": BLEU(lowercase=lowercase, force=True),  # force: no advice about text that is tokenised on purpose
            "chrf": CHRF(word_order=2),
            "ter": TER(),
        }
        streams = reference_streams(references)
        self._statistics: dict[str, list[Any]] = {
            name: metric._extract_corpus_statistics(list(predictions), streams)
            for name, metric in self._metrics.items()
        }
        self._rouge_l = rouge_l(predictions, references)

    def over(self, sources: Sequence[int]) -> dict[str, float]:
        """Scores over these sources (indices)."""
        values = {
            name: float(metric._aggregate_and_compute([self._statistics[name][index] for index in sources]).score)
            for name, metric in self._metrics.items()
        }
        return {**values, "rouge_l": sum(self._rouge_l[index] for index in sources) / len(sources)}

    def signatures(self) -> dict[str, str]:
        """Tokeniser, case, references and library version of each metric."""
        rouge = f"rougeL|f1|max over references|no stemming|rouge-score:{version('rouge-score')}"
        return {**{name: str(metric.get_signature()) for name, metric in self._metrics.items()}, "rouge_l": rouge}


def reference_streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """Transpose to sacrebleu's form; None where a source has fewer references than the longest list."""
    most = max(len(texts) for texts in references)
    return [[texts[n] if n < len(texts) else None for texts in references] for n in range(most)]


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-L F1 of the best reference for each source, from 0 to 100."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    return [
        100.0 * float(scorer.score_multi(list(texts), prediction)["rougeL"].fmeasure)
        for prediction, texts in zip(predictions, references, strict=True)
    ]


def score(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tags: Sequence[Sequence[str]],
    lowercase: bool,
) -> Scores:
    """All scores, over all sources and over the sources of each tag."""
    scores = CorpusScores(predictions, references, lowercase)
    members = {
        tag: [index for index, of_source in enumerate(tags) if tag in of_source]
        for tag in sorted({tag for of_source in tags for tag in of_source})
    }
    return Scores(
        values=scores.over(range(len(predictions))),
        by_tag={tag: scores.over(sources) for tag, sources in members.items()},
        sources_by_tag={tag: len(sources) for tag, sources in members.items()},
        signatures=scores.signatures(),
        higher_is_better=HIGHER_IS_BETTER,
    )
