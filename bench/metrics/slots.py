"""Slot error rate for E2E: slots that a text leaves out, gets wrong or makes up."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from bench.metrics.metric import Array, Metric
from bench.metrics.texts import Texts

# Names of slots in the paper form, to those of the released data.
_SLOT_NAMES = {"type": "eattype", "price": "pricerange", "family friendly": "familyfriendly"}

_FAMILY = r"(?:famil(?:y|ies)|kids?|child(?:ren|s)?|youngsters?|young ones)"
_NOT = r"(?:not?|non|n't|never|without|isnt|dont|doesnt|un|nor|neither|rather than|cannot|lacks?|discourag\w+)"
_RATING = r"(?:rat\w+|review\w*|customer|quality)"
_RATED = r"\brat(?:es?|ed|ings?)(?: is| are| of| by \w+| that is| it| them)?(?: as)?(?: \w+)?"
_PRICES = r"\bpric\w+(?: range)?(?: is| are)?"
_OUT_OF_5 = r"(?: out)?(?: of|/) ?(?:5|five)\b"

# Patterns that say that a slot has one of these values, for texts in the form of :func:`plain`. Words and numbers with
# the same meaning share an entry, because people use either.
_VALUES: Mapping[str, Mapping[tuple[str, ...], Sequence[str]]] = {
    "eattype": {
        ("coffee shop",): [
            r"\bcoffee (?:shop|house|bar|place)s?\b",
            r"\bcoffeeshop\b",
            r"\bcaf[eé]\b(?! (?:adriatic|brazil|sicilia|rouge))",
        ],
        ("pub",): [r"\bpubs?\b", r"\btavern\b"],
        ("restaurant",): [r"\brestaurants?\b", r"\brest(?:ua|ara|au)r\w*nt\b", r"\b(?:eatery|diner|bistro)\b"],
    },
    "food": {
        ("chinese",): [r"\bchinese\b"],
        ("english",): [r"\benglish\b", r"\bbritish\b", r"\bbritain\b", r"\bfull breakfast\b"],
        ("fast food",): [r"\bfast ?(?:foods?|service)\b", r"\bamerican\b", r"\b(?:ham)?burgers?\b(?! king)"],
        ("french",): [r"\bfrench\b", r"\bfrance\b"],
        ("indian",): [r"\bindian\b(?! cuisine)", r"(?<!raja )\bindian cuisine\b", r"(?<!golden )\bcurry\b"],
        ("italian",): [r"\bitalian\b", r"\bpastas?\b", r"\bpizzas?\b", r"\bitaly\b"],
        ("japanese",): [r"\bjapanese\b", r"\bsushi\b", r"\bjapan\b"],
    },
    "pricerange": {
        ("cheap", "less than £20"): [
            r"\b(?:cheap(?:er|ly)?|inexpensive|not expensive|affordabl[ey]|budget)\b",
            r"\blow(?:er)? (?:priced?|cost|prices|pricing|(?:price|cost) range)\b",
            rf"{_PRICES}(?: \w+)? low\b",
            r"\b(?:less|under|below|lower|cheaper|up to|no more|not more)\b[\w ]{0,14}£? ?20\b",
        ],
        ("moderate", "£20-25"): [
            r"\bmoderate(?:ly)?\b(?! (?:rated|rating|customer|approval))",
            r"\bmid(?:dle)? (?:priced?|range)\b",
            r"\breasonabl[ey]\b",
            r"\b(?:average|medium)(?:ly)? pric\w+\b",
            rf"{_PRICES}(?: \w+){{0,2}} (?:average|moderate)\b",
            r"£? ?20 ?(?:to|and|or|through)? ?£? ?25\b",
        ],
        ("high", "more than £30"): [
            r"\bhigh(?:er|ly)? (?:pric\w+|cost|end)\b",
            r"(?<!not )\bexpensive\b",
            r"\bpricey\b",
            rf"{_PRICES}(?: \w+){{0,3}} high\b",
            r"£? ?30 ?(?:and|or|\+)(?: up| more| over| above)?",
            r"\b(?:more|over|above|upwards?|exceed\w*|higher|start\w*|from|at least)\b[\w ]{0,16}£? ?30\b",
        ],
    },
    "customer rating": {
        ("low", "1 out of 5"): [
            rf"\b(?:1|one)(?:{_OUT_OF_5}| stars?\b)",
            rf"\b(?:low(?:er|ly)?|poor(?:ly)?|bad(?:ly)?|not highly)(?: \w+)? {_RATING}\b",
            rf"{_RATED} (?:low|poor)\b(?! (?:price|cost))",
        ],
        ("average", "3 out of 5"): [
            rf"\b(?:3|three)(?:{_OUT_OF_5}| stars?\b)",
            rf"\b(?:average|mediocre|decent|moderate)(?:ly)?(?: \w+)? {_RATING}\b",
            rf"{_RATED} (?:average|decent)\b",
        ],
        ("high", "5 out of 5"): [
            rf"\b(?:5|five)(?:{_OUT_OF_5}| stars?\b)",
            r"(?<!not )\b(?:high(?:ly)?|well|good|great|excellent|top|best|positive|superb)(?: \w+)? "
            rf"(?:{_RATING}|recommend\w*)\b",
            rf"{_RATED} (?:high(?:ly)?|well|excellent|great)\b",
        ],
    },
    "area": {
        ("city centre",): [r"\bcity\b", r"\btown(?: \w+)? cent(?:re|er)\b", r"\bdowntown\b"],
        ("riverside",): [r"\briver ?(?:side|bank|front)?\b", r"\bwaterfront\b"],
    },
    "familyfriendly": {
        ("no",): [
            rf"\b{_NOT}\b(?! only)(?: \w+){{0,6}} {_FAMILY}\b",
            r"\badults? (?:only|oriented)\b|\bfor adults\b(?! as)|\badult \w+\b",
            rf"\b{_FAMILY} (?:\w+ ){{0,2}}(?:not|n't)\b|\b{_FAMILY} free\b",
            r"\bunfriendly\b|\bmature\b",
        ],
        ("yes",): [rf"\b{_FAMILY}\b"],
    },
}
_PATTERNS = {
    slot: {values: re.compile("|".join(alternatives)) for values, alternatives in of_slot.items()}
    for slot, of_slot in _VALUES.items()
}


class SlotErrorRate(Metric):
    """Missing, wrong and added slots, in percent of the slots of the sources.

    It follows an idea of Dusek et al. 2019 with regular expressions of this project. The values of name and near, which
    may be any text, are looked for literally, so that made-up ones go unnoticed. The references of cleaned E2E, whose
    sources were corrected to match the texts, get 2 to 3 %; those of E2E as released get 8 %, because people leave
    slots out.
    """

    name = "slot_error_rate"
    higher_is_better = False

    def absent(self, texts: Texts) -> str | None:
        """The rate counts slots with values."""
        if all(len(facts) > 0 and all(len(fact) == 2 for fact in facts) for facts in texts.facts):
            return None
        return "the sources are not slots with values"

    def signature(self, texts: Texts) -> str:
        return "missing, wrong and added slots|own expressions v1"

    def statistics(self, texts: Texts) -> Array:
        """The numbers of errors and of slots."""
        rows = [
            (len(slot_errors(dict_of(facts), prediction)), len(facts))
            for facts, prediction in zip(texts.facts, texts.predictions, strict=True)
        ]
        return np.array(rows, dtype=np.float64)

    def score(self, sums: Array) -> Array:
        rate: Array = 100.0 * sums[..., 0] / np.maximum(1, sums[..., 1])
        return rate


def slot_errors(slots: Mapping[str, str], text: str) -> dict[str, str]:
    """Slot to ``missing``, ``wrong`` or ``added``.

    Args:
        slots: Names and values of a meaning representation, of the released data or of the paper form.
        text: What was written about it.
    """
    plain_text = plain(text)
    expected = {_SLOT_NAMES.get(name.lower(), name.lower()): plain(value) for name, value in slots.items()}
    errors: dict[str, str] = {}
    for slot, value in expected.items():
        if slot not in _PATTERNS:
            if value not in plain_text:
                errors[slot] = "missing"
            continue
        mentioned = _mentioned(slot, plain_text)
        if not mentioned:
            errors[slot] = "missing"
        elif not any(value in (plain(one) for one in values) for values in mentioned):
            errors[slot] = "wrong"
    # People call any place a restaurant, so that "restaurant" does not count as made up.
    others = _PATTERNS.keys() - expected.keys()
    added = {slot for slot in others if _mentioned(slot, plain_text) not in ([], [("restaurant",)])}
    return {**errors, **dict.fromkeys(sorted(added), "added")}


def dict_of(facts: tuple[tuple[str, ...], ...]) -> dict[str, str]:
    """Slots and values. If a slot occurs twice, the last value counts."""
    return {fact[0]: fact[1] for fact in facts if len(fact) == 2}


def plain(text: str) -> str:
    """The text in lower case, with spaces for hyphens and punctuation and before ``n't``, and none after a £."""
    text = re.sub(r"n't\b", " n't", text.lower().replace("\u2019", "'").replace("-", " "))
    return re.sub(r"£ (?=\d)", "£", " ".join(re.sub(r"[^\w£/+' ]", " ", text).split()))


def _mentioned(slot: str, plain_text: str) -> list[tuple[str, ...]]:
    """The values of a slot that a text mentions. "no" of familyfriendly comes first, because "yes" matches it, too."""
    mentioned = [values for values, pattern in _PATTERNS[slot].items() if pattern.search(plain_text)]
    return mentioned[:1] if slot == "familyfriendly" else mentioned
