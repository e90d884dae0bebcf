"""Remarks on doubtful scores of one system, as sentences for reports and for people who score a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bench.metrics import answers, choices, overlap
from bench.metrics.metric import Measured
from bench.metrics.scripts import advice, misfit
from bench.metrics.texts import Texts
from bench.metrics.words import tokenizer

# If shares of capitals or of spaced punctuation differ by this much, predictions and references have different forms.
DIFFERENT_FORM = 0.5
MARKS = ".,;:!?"
ORDER = 4  # of the n-grams of BLEU


def remarks(texts: Texts, measured: Mapping[str, Measured]) -> list[str]:
    """One sentence for each doubt.

    Args:
        texts: The texts that were scored.
        measured: The metrics that were computed.
    """
    if texts.scoring.choices is not None:
        return [*_same(texts), *choices.doubts(texts)]
    return [
        *fit_of_tokenizer(texts),
        *advice_on_tokenizer(texts),
        *_too_short_for_bleu(texts, measured),
        *_other_form(texts, measured),
        *_same(texts),
        *answers.doubts(texts),
    ]


def fit_of_tokenizer(texts: Texts) -> Iterator[str]:
    """A doubt if the tokenizer does not fit the script of the references. Official scripts cut words by own rules."""
    scoring = texts.scoring
    references = [text for some in texts.references for text in some]
    if scoring.cuts_words and (problem := misfit(references, scoring.tokenize, tokenizer(scoring.tokenize))):
        yield sentence(problem)


def advice_on_tokenizer(texts: Texts) -> Iterator[str]:
    """Advice on a better tokenizer, if the present one does no harm."""
    references = [text for some in texts.references for text in some]
    if texts.scoring.cuts_words and (better := advice(references, texts.scoring.tokenize)):
        yield sentence(better)


def sentence(text: str) -> str:
    """The text as a sentence, with a capital letter and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def _too_short_for_bleu(texts: Texts, measured: Mapping[str, Measured]) -> Iterator[str]:
    if "bleu" not in measured or texts.scoring.bleu == "mteval" or not any(map(str.strip, texts.predictions)):
        return
    if any(len(text.split()) >= ORDER for text in texts.prepared_predictions):
        return
    metric, predictions, references = overlap.corpus_metric("bleu", texts)
    statistics = metric._extract_corpus_statistics(list(predictions), overlap.reference_streams(references))
    if any(row[-1] for row in statistics):
        return
    of_orders = overlap.with_effective_order(texts)
    yield (
        "No prediction has four words in a row, so that BLEU is 0 whatever they say, as sacrebleu's corpus BLEU is; "
        f"with its option effective_order, which leaves out orders that no text reaches, it is {of_orders:.1f}."
    )


def _other_form(texts: Texts, measured: Mapping[str, Measured]) -> Iterator[str]:
    """A doubt if only predictions, or only references, are in lower case or have spaces before punctuation."""
    predictions = [text for text in texts.predictions if text.strip()]
    references = [text for some in texts.references for text in some]
    if not predictions:
        return
    for share, what, other, of_case in (
        (_capitals, "without capital letters", "have them", True),
        (_spaced_marks, "with spaces before punctuation", "have none there", False),
    ):
        of_predictions, of_references = share(predictions), share(references)
        if of_predictions is None or of_references is None or abs(of_predictions - of_references) < DIFFERENT_FORM:
            continue
        names = [name for name in _of_raw_texts(texts, of_case) if name in measured]
        if names:
            ours, theirs = ("predictions", "references")
            if (of_predictions > of_references) == of_case:
                ours, theirs = theirs, ours
            yield (
                f"The {ours} are {what} and the {theirs} {other}: {', '.join(names)} compare texts as they are, so "
                "that these differences count as errors there."
            )


def _of_raw_texts(texts: Texts, of_case: bool) -> list[str]:
    """Metrics for which capitals, or spaces before punctuation, make a difference."""
    scoring = texts.scoring
    if of_case:
        whatever = ["chrf", "bertscore", "bleurt"] + ["exact_match"] * (not scoring.lowercase)
        return whatever + ["bleu", "nist"] * (not scoring.lowercase and scoring.preparation == "none")
    return ["exact_match"] + ["ter"] * (scoring.preparation == "none" and scoring.tokenize in ("13a", "none"))


def _capitals(texts: Sequence[str]) -> float | None:
    """Share of texts with a capital letter among texts in scripts that have capitals; None if there are none."""
    with_case = [text for text in texts if text.lower() != text.upper()]
    return sum(text != text.lower() for text in with_case) / len(with_case) if with_case else None


def _spaced_marks(texts: Sequence[str]) -> float | None:
    """Share of texts with a space before a punctuation mark among texts with a mark; None if there are none."""
    having = [text for text in texts if any(mark in text for mark in MARKS)]
    return sum(any(f" {mark}" in text for mark in MARKS) for text in having) / len(having) if having else None


def _same(texts: Texts) -> Iterator[str]:
    """A doubt if all predictions are the same text although references differ."""
    if len(texts) > 1 and len(set(texts.predictions)) == 1 and len({some[0] for some in texts.references}) > 1:
        yield "All predictions are the same text." if texts.predictions[0].strip() else "All predictions are empty."
