"""Scores of labels that were chosen: macro-F1 and Matthews, from counts of each label; what chance would give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from bench.metrics.metric import Array, Metric
from bench.metrics.texts import Texts

NO_LABELS = "the task has no setting 'choices' with labels that are the same for every source"
# Above it, an accuracy may be that of a constant answer.
LEVEL = 0.05


def right(texts: Texts) -> list[bool]:
    """Whether each prediction is a reference, white space aside."""
    return [
        _plain(prediction) in set(map(_plain, references))
        for prediction, references in zip(texts.predictions, texts.references, strict=True)
    ]


def signature(texts: Texts) -> str:
    """What the labels are, and how the likeliest was found."""
    choices = texts.scoring.choices
    if choices is None:
        return "no choices"
    number = f"{len(choices.labels)} labels" if choices.labels else "labels of each source"
    prior = (
        choices.prior
        if isinstance(choices.prior, str)
        else ",".join(f"{name}={share:g}" for name, share in choices.prior)
    )
    return f"likeliest of {number}|{choices.likelihood}|prior:{prior}|v1"


class _OfLabels(Metric):
    """A score of how often each label was given, chosen, and both.

    L labels. Statistics of a source are 1, whether it is right with each label ``(L,)``, which label it has ``(L,)``
    and which was chosen ``(L,)``. Of several references the chosen one counts, else the first. A prediction that is
    no label counts as none.
    """

    higher_is_better = True

    def absent(self, texts: Texts) -> str | None:
        return None if texts.scoring.choices is not None and texts.scoring.choices.labels else NO_LABELS

    def signature(self, texts: Texts) -> str:
        return signature(texts)

    def statistics(self, texts: Texts) -> Array:
        if texts.scoring.choices is None:
            raise ValueError(NO_LABELS)
        places = {_plain(label): place for place, label in enumerate(texts.scoring.choices.labels)}
        rows = np.zeros((len(texts), 1 + 3 * len(places)))
        rows[:, 0] = 1
        for row, prediction, references in zip(rows, texts.predictions, texts.references, strict=True):
            hits, given, chosen = np.split(row[1:], 3)
            plain_prediction, plain_references = _plain(prediction), [_plain(text) for text in references]
            of_source = plain_prediction if plain_prediction in plain_references else plain_references[0]
            if of_source in places:
                given[places[of_source]] = 1
            if plain_prediction in places:
                chosen[places[plain_prediction]] = 1
            hits[:] = given * chosen
        return rows


class MacroF1(_OfLabels):
    """Mean over labels of F1, the harmonic mean of precision and recall, times 100.

    Labels that are neither given nor chosen do not count, as in ``sklearn.metrics.f1_score(average="macro")``.
    """

    name = "macro_f1"
    best = 100.0

    def score(self, sums: Array) -> Array:
        hits, given, chosen = np.split(sums[..., 1:], 3, axis=-1)
        there = given + chosen > 0
        of_labels = 2 * hits / np.where(there, given + chosen, 1)
        score: Array = 100.0 * of_labels.sum(-1) / np.maximum(there.sum(-1), 1)
        return score


class Matthews(_OfLabels):
    """Matthews' correlation of given and chosen labels, for any number of labels (Gorodkin 2004), times 100.

    0 where all sources have one label, or one was chosen for all, as in ``sklearn.metrics.matthews_corrcoef``.
    """

    name = "matthews"

    def score(self, sums: Array) -> Array:
        hits, given, chosen = np.split(sums[..., 1:], 3, axis=-1)
        total = sums[..., 0]
        both = hits.sum(-1) * total - (given * chosen).sum(-1)
        spread = (total**2 - (given**2).sum(-1)) * (total**2 - (chosen**2).sum(-1))
        score: Array = np.where(spread > 0, 100.0 * both / np.sqrt(np.where(spread > 0, spread, 1.0)), 0.0)
        return score


def doubts(texts: Texts) -> Iterator[str]:
    """Whether an accuracy is more than that of always choosing the most common label: exact binomial, one-sided."""
    choices = texts.scoring.choices
    if choices is None or not choices.labels:
        return
    (common, number), *_ = Counter(_plain(references[0]) for references in texts.references).most_common(1)
    yield from of_constant(sum(right(texts)), len(texts), repr(common), number)


def of_constant(hits: int, total: int, common: str, number: int) -> Iterator[str]:
    """Whether so many hits are more than those of the most common answer, which is right so many times."""
    p_value = binomial_tail(hits, total, Fraction(number, total))
    if p_value >= LEVEL and number < total:
        constant = 100 * number / total
        yield (
            f"An accuracy of {100 * hits / total:.1f} on {total} sources is not shown to be above {constant:.1f}, "
            f"that of always choosing {common} (exact binomial test, p = {p_value:.3f})."
        )


def binomial_tail(hits: int, total: int, chance: Fraction) -> float:
    """How likely at least so many hits are, where each of all comes with this chance."""
    from scipy.special import bdtrc  # imported late, because it takes a moment

    return float(bdtrc(hits - 1, total, float(chance)))


def _plain(label: str) -> str:
    return " ".join(label.split())
