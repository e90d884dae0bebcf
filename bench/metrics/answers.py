"""Answers inside texts: finds the answer of a text, and brings answers into a form in which they can be compared."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache

from bench.metrics import choices
from bench.metrics.metric import MeanOfSources
from bench.metrics.texts import Texts
from bench.task import ANSWER_PATTERNS, Answer, Example

# A sign counts unless a letter, digit, dot or closing bracket is right before it, where it is a minus or a hyphen.
_NUMBER = (
    r"(?<![\w.)\]])[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?:\s*/\s*\d+)?|(?<![\w.])[-+]?\.\d+"
)
_ANY_NUMBER = re.compile(rf"{_NUMBER}|\d+(?:\.\d+)?")
_UNITS = str.maketrans("", "", "$€£¥%_ \t\n")
_POWERS = re.compile("[\u00b2\u00b3\u00b9\u2070\u2074-\u2079]+")
_CHOICES = (
    re.compile(r"(?i:answer|choice|option)(?i:\s+is)?\s*:?\s*[\[(*\s]*([A-J])\b(?!')"),
    re.compile(r"(?i:answer|choice|option)(?i:\s+is)?\s*:?\s*([a-j])\s*(?:[).,]|\Z)"),
    re.compile(r"\A\s*([a-j])\s*[.)]?\s*\Z"),
    re.compile(r"[(\[]([A-Ja-j])[)\]]"),
    re.compile(r"(?m:^)\s*\**([A-J])(?:[.):]|\**\s*(?m:$))"),
    re.compile(r"(?<!\w)([A-J])\W*\Z"),
)
_LATEX = (
    (re.compile(r"\\(?:left|right|displaystyle)\b|\\[!,;: ]|\$"), ""),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\[dt]frac"), r"\\frac"),
)
_FRACTION = re.compile(r"([-+]?)\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")


class Accuracy(MeanOfSources):
    """Percentage of predictions with the answer of a reference. The task's setting ``answer`` says how it is found.

    A prediction without an answer is wrong. Where labels are chosen (``choices``), they are the answers.
    """

    name = "accuracy"
    higher_is_better = True
    best = 100.0

    def absent(self, texts: Texts) -> str | None:
        if texts.scoring.choices is not None:
            return None
        if texts.scoring.answer is None:
            return "the task has no setting 'answer', which says where a text has its answer, and no 'choices'"
        if not any(answer_of(text, texts.scoring.answer) for some in texts.references for text in some):
            return f"no reference has an answer by the pattern {texts.scoring.answer.pattern!r}"
        return None

    def signature(self, texts: Texts) -> str:
        if texts.scoring.choices is not None:
            return choices.signature(texts)
        answer = texts.scoring.answer
        return "no answer" if answer is None else f"answer:{answer.pattern!r}|{answer.normalise}|any reference|v1"

    def values(self, texts: Texts) -> list[float]:
        if texts.scoring.choices is not None:
            return [100.0 * hit for hit in choices.right(texts)]
        answer = texts.scoring.answer
        if answer is None:
            raise ValueError(self.absent(texts))
        return [
            100.0 * ((own := answer_of(text, answer)) is not None and own in {answer_of(one, answer) for one in refs})
            for text, refs in zip(texts.predictions, texts.references, strict=True)
        ]


def answer_of(text: str, answer: Answer) -> str | Fraction | None:
    """The answer of a text, in the form in which answers are compared; None where it has none.

    The last of several answers counts, because those before it are often steps on the way to it.
    """
    raw_answer = _finder(answer.pattern)(text)
    if raw_answer is None:
        return None
    return number(raw_answer) if answer.normalise == "number" else plain(raw_answer) or None


@lru_cache(maxsize=16)
def _finder(pattern: str) -> Callable[[str], str | None]:
    known = {"last_number": _last_number, "boxed": boxed, "choice": choice}
    if pattern in ANSWER_PATTERNS:
        return known[pattern]
    compiled = re.compile(pattern)

    def last(text: str) -> str | None:
        hits = [match[compiled.groups] for match in compiled.finditer(text)]
        return next((hit for hit in reversed(hits) if hit), None)  # a pattern may also match the empty end of a text

    return last


def _last_number(text: str) -> str | None:
    numbers = _ANY_NUMBER.findall(_upright(text))
    return numbers[-1] if numbers else None


def boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}``, whose braces may be nested; None if there is no complete one."""
    for start in reversed([found.end() for found in re.finditer(r"\\f?boxed\s*\{", text)]):
        depth = 1
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0) if text[place - 1] != "\\" else 0
            if not depth:
                return text[start:place]
    unbraced = re.findall(r"\\boxed\s+([^\s$]+)", text)
    return unbraced[-1] if unbraced else None


def choice(text: str) -> str | None:
    """The letter of a choice, A to J: after "answer", else in brackets, at the start of a line, or at the end."""
    for pattern in _CHOICES:
        if found := pattern.findall(text):
            return str(found[-1]).upper()
    return None


def number(text: str) -> Fraction | None:
    r"""The value of a number, exactly: 1,234.50, -3, 50 %, $7, 1/2, \frac{1}{2}, 1e3; the last one of several words."""
    upright = _upright(text)
    if found := _FRACTION.fullmatch(upright.strip(" .$")):
        sign, *digits = found.groups()
        over, under = filter(None, digits)
        return _fraction(f"{sign}{over}/{under}")
    whole = _fraction(upright.translate(_UNITS).rstrip("."))
    last = _last_number(upright) if whole is None else None
    return whole if last is None else _fraction(last.translate(_UNITS))


def _fraction(text: str) -> Fraction | None:
    over, slash, under = text.replace(",", "").partition("/")
    try:
        if len(text) > 400 or abs(int(re.sub(r".*[eE]", "", over) if re.search("[eE]", over) else 0)) > 400:
            return None
        return Fraction(over) / (Fraction(under) if slash else 1)
    except (ValueError, ZeroDivisionError):
        return None


def plain(text: str) -> str:
    """The text without case, white space, TeX's spacing, and punctuation around it."""
    text = unicodedata.normalize("NFKC", text)
    for pattern, instead in _LATEX:
        text = pattern.sub(instead, text)
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'`*")


def _upright(text: str) -> str:
    """The text with ASCII signs and fractions, and without powers: m² does not contain the number 2."""
    text = _POWERS.sub("", text)
    return unicodedata.normalize("NFKC", text).replace("\u2212", "-").replace("\u2044", "/")


def without_answer(examples: Sequence[Example], answer: Answer) -> list[tuple[str, str]]:
    """Id and first reference of the sources without an answer in any reference, so that no prediction can be right."""
    return [
        (one.id, one.references[0])
        for one in examples
        if all(answer_of(text, answer) is None for text in one.references)
    ]
