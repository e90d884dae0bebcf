r"""Texts in LaTeX that every engine sets: names that people and models chose, as text and nothing else.

pdfTeX has no letters beyond its fonts', and stops at one. Accented letters are written as accent and letter, which all
engines know; of others, engines for Unicode (XeTeX, LuaTeX) set the letter and pdfTeX its number.
"""

from __future__ import annotations

import re
import unicodedata

from bench.schema.printable import in_one_line

# Sets its first argument, the letter, where the engine knows Unicode; else its number.
LETTER = "tuneoffletter"
DEFINITION = (
    rf"\ifdefined\Umathchar\protected\def\{LETTER}#1#2{{#1}}"
    rf"\else\protected\def\{LETTER}#1#2{{U+#2}}\fi"
)
ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': "''",
    "[": "{[}",  # after the end of a row it would begin an option, as would a star
    "]": "{]}",
    "*": "{*}",
    "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "→": r"$\rightarrow$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "\N{EN DASH}": "--",
    "—": "---",
    "…": r"\dots{}",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\0": "{}",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "œ": r"\oe{}",
    "Œ": r"\OE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "\N{LATIN SMALL LETTER DOTLESS I}": r"\i{}",
}
# Combining mark to the command for it; what is not here goes by its number.
ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0306": "u",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0327": "c",
}
# Words longer than this may be broken after punctuation, and anywhere after as many characters more.
LONGEST_WORD = 18
_PUNCTUATION = "_-=.,:/+;)&"


def escaped(text: str) -> str:
    """Text in one line in which no character means anything to LaTeX."""
    return " ".join(map(_word, in_one_line(text).split(" ")))


def needs_definition(document: str) -> bool:
    """Whether it uses :data:`LETTER`."""
    return f"\\{LETTER}{{" in document


def _word(word: str) -> str:
    characters = re.sub("-(?=-)", "-\0", word)  # Two hyphens would become a dash.
    if len(word) <= LONGEST_WORD:
        return "".join(map(_character, characters))
    parts, since = [], 0
    for character in characters:
        since += 1
        parts.append(_character(character))
        if character in _PUNCTUATION or since == LONGEST_WORD:
            parts.append(r"\allowbreak{}")
            since = 0
    return "".join(parts).removesuffix(r"\allowbreak{}")


def _character(character: str) -> str:
    if character in ESCAPES:
        return ESCAPES[character]
    if character.isascii():
        return character
    parts = unicodedata.normalize("NFD", character)
    base, mark = parts[0], parts[1:]
    if mark in ACCENTS and base.isascii() and base.isalpha():
        return rf"\{ACCENTS[mark]}{{{base}}}"
    return rf"\{LETTER}{{{character}}}{{{ord(character):04X}}}"
