"""Entity coverage: the share of the subjects and objects of triples that a text mentions."""

from __future__ import annotations

import calendar
import re
from collections import Counter
from collections.abc import Sequence
from datetime import date
from functools import lru_cache

import numpy as np
from unidecode import unidecode

from bench.metrics.metric import Array, Metric
from bench.metrics.scripts import unspaced
from bench.metrics.texts import Texts

# Parts of a triple that are no entities. DART marks the table of a triple with them.
_MARKERS = frozenset(("[TABLECONTEXT]", "[TITLE]"))
_MONTHS = tuple(month.lower() for month in calendar.month_name)  # 1 is January
# A text may leave out these words of an entity, and the words in brackets.
_SMALL = frozenset(("a", "an", "and", "at", "by", "for", "in", "of", "on", "or", "the", "to", "with"))


class EntityCoverage(Metric):
    """Percentage of the different subjects and objects of a source that its prediction mentions.

    An entity is mentioned if all its words occur in the text, in any order: ASCII, lower case, without small words and
    remarks in brackets; numbers by their value, dates in the usual forms. The metric notices entities that are left
    out, not those that are made up. The references of the WebNLG test split cover 93.5 %, those of DART, where many
    objects are "yes", 87.3 %.
    """

    name = "entity_coverage"
    higher_is_better = True

    def absent(self, texts: Texts) -> str | None:
        """Only triples have entities: their subjects and objects."""
        if all(len(facts) > 0 and all(len(fact) == 3 for fact in facts) for facts in texts.facts):
            return None
        return "the sources are not triples"

    def signature(self, texts: Texts) -> str:
        return "all words of subject and object|own matching v1"

    def statistics(self, texts: Texts) -> Array:
        """The number of entities that are mentioned, and the number of entities."""
        rows = [coverage(facts, prediction) for facts, prediction in zip(texts.facts, texts.predictions, strict=True)]
        return np.array(rows, dtype=np.float64)

    def score(self, sums: Array) -> Array:
        rate: Array = 100.0 * sums[..., 0] / np.maximum(1, sums[..., 1])
        return rate


def coverage(facts: Sequence[Sequence[str]], text: str) -> tuple[int, int]:
    """The number of different entities that a text mentions, and the number of all of them."""
    entities = {end for fact in facts for end in (fact[0], fact[-1])} - _MARKERS
    text_words = Counter(words(text))
    return sum(_mentioned(entity, text_words, text) for entity in entities), len(entities)


def _mentioned(entity: str, text_words: Counter[str], text: str) -> bool:
    """Whether a text has an entity's words; or its letters, without ASCII words or in a script without spaces."""
    forms = [form for form in _forms(entity) if form]
    if any(Counter(form) <= text_words for form in forms):
        return True
    return (not forms or unspaced(entity)) and _plain(entity).lower() in text.lower()


def _plain(entity: str) -> str:
    return entity.strip('"').replace("_", " ")


@lru_cache(maxsize=100_000)
def _forms(entity: str) -> tuple[tuple[str, ...], ...]:
    """The forms of an entity. Each is a bag of words, all of which must occur."""
    plain = _plain(entity)
    without_remark = re.sub(r"\([^)]*\)", " ", plain)
    forms = [_content(plain), _content(without_remark) or _content(plain)]
    if (day := _date(plain)) is not None:
        forms.append((str(day.day), _MONTHS[day.month], str(day.year)))  # "1st" is cut into "1" and "st"
    return tuple(dict.fromkeys(forms))


def _content(text: str) -> tuple[str, ...]:
    all_words = words(text)
    return tuple(word for word in all_words if word not in _SMALL) or tuple(all_words)


@lru_cache(maxsize=100_000)
def words(text: str) -> tuple[str, ...]:
    """Words and numbers in ASCII and lower case, without the genitive's s, separators and trailing zeros of numbers."""
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", re.sub("['\u2019]s\\b", " ", unidecode(text).lower()))
    return tuple(_number(word) for word in re.findall(r"\d+(?:\.\d+)?|[a-z]+|\d", re.sub(r"[_-]", " ", plain)))


def _number(word: str) -> str:
    return (word.rstrip("0").rstrip(".") if "." in word else word.lstrip("0") or "0") if word[0].isdigit() else word


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        return None
