"""The input of metrics: predictions and references, unprepared and in the form that an official script scores."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from unidecode import unidecode

from bench.task import Scoring

# The prepared form of so many references is kept, because every trial has the same ones.
MOST_REFERENCES = 2**15


@dataclass(frozen=True)
class Texts:
    """The texts that are scored, one element for each source.

    ``predictions`` are as decoded, without white space around them, ``references`` as published; ``prepared_*`` are the
    same texts as the official script prepares them. Of the prepared references there are at most ``max_references``.
    """

    predictions: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    prepared_predictions: tuple[str, ...]
    prepared_references: tuple[tuple[str, ...], ...]
    facts: tuple[tuple[tuple[str, ...], ...], ...]
    truncated: tuple[bool, ...] | None
    scoring: Scoring

    def __len__(self) -> int:
        return len(self.predictions)


def prepare(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    scoring: Scoring,
    facts: Sequence[tuple[tuple[str, ...], ...]] | None = None,
    truncated: Sequence[bool] | None = None,
) -> Texts:
    """Bring predictions and references into the form that a task's official script scores.

    Args:
        predictions: One text for each source; it may be empty.
        references: One or more texts for each source.
        scoring: The official settings.
        facts: The facts of each source, for metrics that need them; None: no source has any.
        truncated: Whether a prediction ended at the length limit; None if that is unknown.

    Raises:
        ValueError: There are no predictions, not as many as sources, or a source has no reference.
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} sources; there must be one for each")
    if lacking := [number for number, texts in enumerate(references, start=1) if not texts]:
        raise ValueError(f"source {lacking[0]} has no reference")
    of_prediction, of_reference = _PREPARATIONS[scoring.preparation]
    return Texts(
        predictions=tuple(predictions),
        references=tuple(tuple(texts) for texts in references),
        prepared_predictions=tuple(of_prediction(text) for text in predictions),
        prepared_references=tuple(
            tuple(of_reference(text) for text in texts[: scoring.max_references]) for texts in references
        ),
        facts=tuple(facts) if facts is not None else ((),) * len(predictions),
        truncated=None if truncated is None else tuple(truncated),
        scoring=scoring,
    )


def _as_it_is(text: str) -> str:
    return text


def _words_apart(text: str) -> str:
    """The text with spaces around every character that is not a letter, digit or underscore."""
    return " ".join(" ".join(re.split(r"(\W)", text)).split())


@lru_cache(MOST_REFERENCES)
def _split_lower(text: str) -> str:
    return _words_apart(text).lower()


def _folded_split_lower(text: str) -> str:
    return _words_apart(unidecode(unidecode(text.strip()).lower()))


@lru_cache(MOST_REFERENCES)
def _split_lower_folded(text: str) -> str:
    return unidecode(_split_lower(text))


# The preparation of predictions and of references. Sources: evaluation.py of the WebNLG challenge 2017 folds references
# to ASCII after it has split them, and participants' texts before. Ribeiro et al. 2021 only split and lower-case their
# texts, and use the same references. DART's reference files are split and in lower case.
_PREPARATIONS: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "none": (_as_it_is, _as_it_is),
    "webnlg": (_split_lower, _split_lower_folded),
    "webnlg_folded": (_folded_split_lower, _split_lower_folded),
    "dart": (_split_lower, _split_lower),
}
