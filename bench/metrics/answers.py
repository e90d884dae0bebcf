"""Answers inside texts: finds the answer of a text, and brings answers into a form in which they can be compared."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache

from bench.metrics import choices
from bench.metrics.answer_forms import last_number, number, plain
from bench.metrics.metric import MeanOfSources
from bench.metrics.texts import Texts
from bench.task import ANSWER_PATTERNS, Answer, Example

# What stands in front of a letter that is an answer: "the answer is", "Answer: option". Nothing of it is tried twice,
# so that long texts take no longer than they are.
_LEAD = (
    r"(?:\s+(?i:is|was|choice|option|letter|(?:should|must|would)\s+be)\b)*+"
    r"(?:[\s:=\[({*$\"'`-]|\\\w+\{)*+(?:(?i:option|choice)\s)?+(?:[\s:\[({*$\"'`]|\\\w+\{)*+"
)
_ANSWER, _OPTION = rf"(?i:answer){_LEAD}", rf"(?i:choice|option){_LEAD}"
# Neither the pronoun "I" nor the article "A" is a letter of a choice; "A because" is one.
_LETTER = (
    r"([A-J])(?![\w'\u2019])(?!(?<=I)\s+[a-z])"
    r"(?!(?<=A)\s+(?!(?:and|as|because|based|by|due|for|from|is|or|since|which|with)\b)[a-z])"
)
_SMALL_LETTER = r"([a-j])[ \t]*+(?:[).,:;*\]}\"'$]|$)"
_CHOICES = (
    re.compile(_ANSWER + _LETTER),
    re.compile(rf"(?m){_ANSWER}{_SMALL_LETTER}"),
    re.compile(r"\\(?:boxed|fbox)\s*\{(?:[\s(]|\\\w+\s*\{)*+([A-Ja-j])(?!\w)"),
    re.compile(_OPTION + _LETTER),
    re.compile(rf"(?m){_OPTION}{_SMALL_LETTER}"),
    re.compile(r"\A\W*+([a-j])\W*+\Z"),
    re.compile(r"[(\[]([A-Ja-j])[)\]]"),
    re.compile(r"(?m)^[ \t]*+\**+([A-J])(?:[.):]|\**[ \t]*$)"),
    re.compile(r"(?<!\w)([A-J])\W*+\Z"),
)
# Brackets of TeX around formulas, and what full-width signs stand for.
_TEX_BRACKETS = re.compile(r"\\([()\[\]])")
_NARROW = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}
# At the start of a line, a letter in front of a reason, of "is correct" or of what it stands for. Neither a formula
# (A - 3 = 5) nor the name A* is one.
_IN_FRONT = re.compile(
    r"(?m)^[ \t]*+(?P<bold>\**+)(?P<letter>[A-J])(?P=bold)(?:"
    r",?[ \t]+(?i:because|since|due[ \t]+to)(?![\w-])"
    r"|[ \t]+(?i:is[ \t]+(?:the[ \t]+)?(?:most[ \t]+)?(?:correct|right|answer|true|best)\b)"
    r"|[ \t]+(?<!I[ \t])[-\u2013\u2014][ \t]+(?!\w\b)(?![^\n]*=)"
    r"|(?<=\*)[.):])"
)
# In Chinese, Japanese and Korean, behind the word for an answer, and at the end.
_BEHIND_CJK = re.compile(
    r"(?:答案|答え|正解|選択|정답|(?<!不)(?:选|選)(?!项|項))[^\nA-Za-z0-9不]{0,8}+(?P<of_answer>[A-J])(?![A-Za-z\d_'])"
    r"|[ぁ-ヿ㐀-鿿가-힣](?P<at_end>[A-J])\W*+\Z"
)


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
        return "no answer" if answer is None else f"answer:{answer.pattern!r}|{answer.normalise}|any reference|v5"

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


def doubts(texts: Texts) -> Iterator[str]:
    """Whether an accuracy is more than that of always giving the most common answer: exact binomial, one-sided."""
    answer = texts.scoring.answer
    if answer is None:
        return
    given = [{answer_of(text, answer) for text in some} - {None} for some in texts.references]
    common = Counter(one for some in given for one in some).most_common(1)
    if common and common[0][1] > 1:  # else no answer is more common than others
        predicted = [answer_of(text, answer) for text in texts.predictions]
        hits = sum(own in some for own, some in zip(predicted, given, strict=True))
        yield from choices.of_constant(hits, len(texts), str(common[0][0]), common[0][1])


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
    known = {"last_number": last_number, "boxed": boxed, "choice": choice}
    if pattern in ANSWER_PATTERNS:
        return known[pattern]
    compiled = re.compile(pattern)

    def last(text: str) -> str | None:
        hits = [match[compiled.groups] for match in compiled.finditer(text)]
        return next((hit for hit in reversed(hits) if hit), None)  # a pattern may also match the empty end of a text

    return last


def boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}``, whose braces may be nested; None if there is no complete one.

    ``\boxed 7`` has one token or word, and ``\fbox`` counts where there is no ``\boxed``.
    """
    for begins in (r"\\boxed\s*(\{|(?<=\s)[^\s${]+)", r"\\fbox\s*(\{)"):
        end = len(text)
        for found in reversed(list(re.finditer(begins, text))):
            content = _braced(text, found.end(), end) if found[1] == "{" else found[1]
            if content is not None:
                return content
            end = found.start()  # what holds a box that never ends does not end either
    return None


def _braced(text: str, start: int, end: int) -> str | None:
    """What stands between ``start`` and the brace that closes the one before it; None where there is none."""
    depth = 1
    for place in range(start, end):
        depth += {"{": 1, "}": -1}.get(text[place], 0) if text[place - 1] != "\\" else 0
        if not depth:
            return text[start:place]
    return None


def choice(text: str) -> str | None:
    r"""The letter of a choice, A to J, that comes last after "answer".

    Else the one in a ``\boxed``, after "option" or "choice", in brackets, at the start of a line, at the end, or in
    front of a reason or of what it stands for. Full-width letters and TeX's brackets are read where there is no other.
    """
    narrow = _TEX_BRACKETS.sub(r"\1", text.translate(_NARROW))
    for form in dict.fromkeys((text, narrow)):
        for pattern in _CHOICES:
            if found := pattern.findall(form):
                return str(found[-1]).upper()
    if behind := list(_BEHIND_CJK.finditer(narrow)):
        return str(behind[-1]["of_answer"] or behind[-1]["at_end"])
    # Lines with several letters list the choices.
    in_front = {match["letter"] for match in _IN_FRONT.finditer(narrow)}
    return in_front.pop() if len(in_front) == 1 else None


def without_answer(examples: Sequence[Example], answer: Answer) -> list[tuple[str, str]]:
    """Id and first reference of the sources without an answer in any reference, so that no prediction can be right."""
    return [
        (one.id, one.references[0])
        for one in examples
        if all(answer_of(text, answer) is None for text in one.references)
    ]
