"""Words of English text as the captioning scripts cut them: Stanford's PTBTokenizer, lower case, no punctuation."""

from __future__ import annotations

import re

_APOSTROPHE = "['\u2019]"
_LETTER = r"[^\W\d_]"
_ALNUM = r"[^\W_]"
_CLITIC = rf"{_APOSTROPHE}(?:s|m|d|re|ve|ll)\b"
_DIGITS = r"(?:\d+(?:[.,:]\d+)*|\.\d+)(?:[-/]\d+(?:[.,:]\d+)*)*(?![^\W_]|[-/][^\W_])"

# The order matters: the first alternative that matches is taken.
_TOKEN = re.compile(
    rf"""
      https?://\S+ | www\.\S+
    | (?P<ellipsis> \.\.\.+ | \u2026 )
    | (?P<dash> --+ | [\u2013\u2014] )
    | (?:{_LETTER}\.){{2,}} | (?:{_LETTER}\.)+{_LETTER}\b(?!{_APOSTROPHE})              # U.S., i.e
    | \b(?-i:[A-Z])\. | \b(?:mr|mrs|ms|dr|st|etc|vs|jr|sr|inc|ltd|co|ave|rd|blvd)\.
    | {_ALNUM}+\.(?=,)
    | n{_APOSTROPHE}t\b
    | {_CLITIC}
    | (?<!\w)-?{_DIGITS} | {_DIGITS}
    | {_ALNUM}+?(?=n{_APOSTROPHE}t\b) | {_ALNUM}+(?:[-&/]{_ALNUM}+)*?(?=n{_APOSTROPHE}t\b)       # do n't
    | {_ALNUM}+(?:[-&/]{_ALNUM}+)*(?={_CLITIC})                                # it 's
    | {_ALNUM}+(?:[-&/'\u2019]{_ALNUM}+)*                                           # family-friendly
    | (?P<other> \S )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_PUNCTUATION = frozenset("'`\".?!,:-;\u2018\u2019\u201c\u201d")
# The scripts try to drop brackets, too, but look for their names in capital letters after lower-casing them.
_NAMES = {"£": "#", "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def caption_words(text: str) -> tuple[str, ...]:
    """Lower-cased words without punctuation.

    It is written here because the original is a Java program. Texts that the original (stanford-corenlp 3.4.1,
    ``-preserveLines -lowerCase``) cuts differently: 6 of 49,781 different references of E2E, 3 of 49,775 of its paper
    form, none of 705 outputs of two systems; 694 of 25,127 references of WebNLG, 366 of 16,762 of DART.
    """
    words: list[str] = []
    for match in _TOKEN.finditer(text):
        word = match.group().lower()
        if match.lastgroup in ("ellipsis", "dash") or (match.lastgroup == "other" and word in _PUNCTUATION):
            continue
        if word == "cannot":
            words += ["can", "not"]
        else:
            words.append(_NAMES.get(word, word.replace("\u2019", "'")))
    return tuple(words)
