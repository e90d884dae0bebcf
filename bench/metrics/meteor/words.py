"""Cuts words as METEOR does: by the Moses tokenizer, without dashes between words and dots in abbreviations.

Source: Denkowski & Lavie 2014 (METEOR universal), section 2, and the option ``-norm`` of the program METEOR 1.5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

ALPHA = (
    "A-Za-z\u0160\u017d\u0161\u017e\u0178\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017e"
    "\u0400-\u04ff\u0500-\u0527\ua640-\ua66e\ua67e-\ua697\u1d00-\u1d7f"
)
ALNUM = "0-9" + ALPHA
# Replaces the dots of a run of dots, which is a word, while single dots are processed.
DOT_OF_RUN = "\ue000"

# Replacements, in this order.
RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"([^{ALNUM} \t\n\x0b\f\r.'`,\-\u2018\u2019])", r" \1 "),
        (r"\.{2,}", ""),  # see _run
        (r"([^0-9]),([^0-9])", r"\1 , \2"),
        (r"([0-9]),([^0-9])", r"\1 , \2"),
        (r"([^0-9]),([0-9])", r"\1 , \2"),
        (r"[`\u2018\u2019]", "'"),
        (r"[\u201c\u201d]|''", ' " '),
        (r"\u2013", "-"),
        (r"--", "-"),
        (rf"([{ALNUM}.])-([{ALNUM}])", r"\1 \2"),
        (rf"([^{ALPHA}])'([^{ALPHA}])", r"\1 ' \2"),
        (rf"([^{ALPHA}0-9])'([{ALPHA}])", r"\1 ' \2"),
        (rf"([{ALPHA}])'([^{ALPHA}])", r"\1 ' \2"),
        (rf"([{ALPHA}])'([{ALPHA}])", r"\1 '\2"),
        (r"([0-9])'(s)", r"\1 '\2"),
    )
)
SPACE = " \t\n\r\f"


def meteor_words(text: str, prefixes: Mapping[str, bool]) -> tuple[str, ...]:
    """Words of an English text, in lower case.

    Args:
        text: One line.
        prefixes: Abbreviations that keep their dot, to whether they keep it only before numbers.
    """
    line = f" {text} "
    for pattern, replacement in RULES:
        line = pattern.sub(replacement or _run, line)
    parts = [part for part in re.split(f"[{SPACE}]+", line) if part]
    followers = [*parts[1:], ""][: len(parts)]
    whole = " ".join(_without_dot(part, after, prefixes) for part, after in zip(parts, followers, strict=True))
    return tuple(whole.replace(DOT_OF_RUN, ".").lower().split())


def _run(dots: re.Match[str]) -> str:
    return f" {DOT_OF_RUN * len(dots.group())} "


def _without_dot(word: str, after: str, prefixes: Mapping[str, bool]) -> str:
    """The word with its final dot removed, kept or set apart."""
    if len(word) < 2 or not word.endswith("."):
        return word
    stem = word[:-1]
    if "." in stem and re.search(f"[{ALPHA}]", stem):
        return word.replace(".", "")  # U.S. is US
    numbers_alone = prefixes.get(stem)
    if numbers_alone is False or re.match("[a-z]", after) or (numbers_alone and re.match("[0-9]", after)):
        return word
    return f"{stem} ."
