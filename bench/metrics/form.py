"""What predictions are like, whatever they say: empty, cut off, stuck, too long, or equal to a reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bench.metrics.metric import Measured, Sources, mean_of
from bench.metrics.texts import Texts
from bench.metrics.words import spaced_words

# A prediction in which some run of this many words occurs this often repeats itself. Of the 91,670 different references
# of E2E, WebNLG and DART, 20 do.
REPEATED_WORDS = 4
REPEATED_TIMES = 3


def exact_match(texts: Texts) -> Measured:
    """Percentage of predictions that equal a reference, white space and, where the task ignores it, case aside."""

    def normal(text: str) -> str:
        return " ".join((text.lower() if texts.scoring.lowercase else text).split())

    values = [
        100.0 * (normal(prediction) in {normal(text) for text in references})
        for prediction, references in zip(texts.predictions, texts.references, strict=True)
    ]
    return mean_of(values, f"white space collapsed|case:{'lc' if texts.scoring.lowercase else 'mixed'}")


def length_ratio(texts: Texts) -> Measured:
    """Words of the predictions over words of the references that are closest in length; 1 is their length."""
    cut = spaced_words(texts.scoring)
    words = [len(cut(text)) for text in texts.prepared_predictions]
    closest = [
        min((len(cut(text)) for text in some), key=lambda length: (abs(length - said), length))
        for said, some in zip(words, texts.prepared_references, strict=True)
    ]

    def over(sources: Sources) -> float:
        return sum(words[index] for index in sources) / max(1, sum(closest[index] for index in sources))

    return Measured(
        f"words{_cut_by(texts)}|closest reference", over, tuple(over([index]) for index in range(len(words)))
    )


def empty_rate(texts: Texts) -> Measured:
    """Percentage of predictions without a word."""
    return mean_of([100.0 * (not text.strip()) for text in texts.predictions], "no word")


def truncated_rate(texts: Texts) -> Measured:
    """Percentage of predictions that the length limit ended, not the model."""
    truncated = texts.truncated or (False,) * len(texts)
    return mean_of([100.0 * cut for cut in truncated], "no end token within decode.max_new_tokens")


def truncation_unknown(texts: Texts) -> str | None:
    """Texts from a file do not tell how they ended."""
    return "not known how these texts ended" if texts.truncated is None else None


def repetition_rate(texts: Texts) -> Measured:
    """Percentage of predictions in which some run of words occurs again and again."""
    cut = spaced_words(texts.scoring)
    values = [100.0 * repeats_itself(cut(text.lower())) for text in texts.predictions]
    return mean_of(values, f"a run of {REPEATED_WORDS} words{_cut_by(texts)} {REPEATED_TIMES} times")


def _cut_by(texts: Texts) -> str:
    name = texts.scoring.tokenize
    return "" if name in ("13a", "none") else f" of {name}"


def repeats_itself(words: Sequence[str]) -> bool:
    """Whether some run of words occurs as often as a text that is stuck repeats it."""
    runs = Counter(tuple(words[at : at + REPEATED_WORDS]) for at in range(len(words) - REPEATED_WORDS + 1))
    return max(runs.values(), default=0) >= REPEATED_TIMES
