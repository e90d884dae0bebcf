"""Checks whether a tokenizer fits the script of the references, and names one that does."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

# Scripts without spaces between words: the first words of their letters' names in Unicode.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
NAMES = {"CJK": "Chinese characters", "HIRAGANA": "Japanese kana", "KATAKANA": "Japanese kana", "MYANMAR": "Burmese"}
# Tokenizers for particular scripts.
MADE_FOR = {"zh": ("CJK",), "ja-mecab": ("CJK", "HIRAGANA", "KATAKANA"), "ko-mecab": ("HANGUL",)}
# More letters than this are a phrase in these scripts: words of Thai, the longest, have four to five on average.
LONGEST_WORD = 8
SHARE = 0.2  # a script or mark in a smaller share of letters or texts is an exception


def foreign(texts: Iterable[str]) -> bool:
    """Whether most letters are not Latin."""
    letters = _letters(texts)
    return 2 * letters["LATIN"] < letters.total()


def unspaced(text: str) -> bool:
    """Whether a text has letters of a script without spaces between words."""
    return any(_script(letter) in UNSPACED for letter in text)


def misfit(texts: Sequence[str], tokenize: str, cut: Callable[[str], str]) -> str | None:
    """Why a tokenizer does not fit references, with the remedy; None if it fits.

    Args:
        texts: References.
        tokenize: Name of the tokenizer.
        cut: The tokenizer.
    """
    letters = _letters(texts)
    total = letters.total()
    if not total:
        return None
    share = {script: count / total for script, count in letters.items()}
    scripts = [script for script in UNSPACED if letters[script]]
    if sum(share[script] for script in scripts) >= SHARE and _phrases_are_words(texts, cut):
        main = max(scripts, key=lambda script: letters[script])
        return (
            f"the references are written in {NAMES.get(main, main.capitalize())}, without spaces between words, and "
            f"the tokenizer {tokenize} takes whole phrases for words, so that BLEU can be 0 for perfect texts and TER, "
            f"ROUGE-L and lengths count phrases; set task.tokenize: {_remedy(letters)}"
        )
    made_for = MADE_FOR.get(tokenize, ())
    if made_for and sum(share.get(script, 0.0) for script in made_for) < SHARE / 4:
        main = max(letters, key=lambda script: letters[script])
        return (
            f"the tokenizer {tokenize} is made for {NAMES.get(made_for[0], made_for[0].capitalize())}, of which the "
            f"references have next to none: they are written in {NAMES.get(main, main.capitalize())}; set "
            f"task.tokenize: {_remedy(letters)}"
        )
    return None


def advice(texts: Sequence[str], tokenize: str) -> str | None:
    """Advice on a better tokenizer for references, if the present one does no harm; None if there is no better one.

    Args:
        texts: References.
        tokenize: Name of the tokenizer.
    """
    if tokenize == "13a" and foreign(texts) and (marks := _foreign_marks(texts)):
        return (
            f"the references have punctuation that the tokenizer 13a leaves on words ({' '.join(marks)}), so that a "
            "word before it is another word for BLEU; task.tokenize: intl splits it"
        )
    letters = _letters(texts)
    if tokenize in ("13a", "intl") and 2 * letters["HANGUL"] >= letters.total() > 0:
        return (
            f"the references are Korean, and the tokenizer {tokenize} leaves particles on words; sacrebleu's tokenizer "
            "for Korean is task.tokenize: ko-mecab"
        )
    return None


def _remedy(letters: Counter[str]) -> str:
    if letters["HIRAGANA"] + letters["KATAKANA"] >= SHARE / 4 * letters.total():
        return "ja-mecab (or flores200, char)"
    if letters["CJK"] >= SHARE * letters.total():
        return "zh (or flores200, char)"
    if letters["HANGUL"] >= SHARE * letters.total():
        return "ko-mecab"
    if any(letters[script] >= SHARE * letters.total() for script in UNSPACED):
        return "flores200 or char"
    return "13a or intl"


def _letters(texts: Iterable[str]) -> Counter[str]:
    """The number of letters of each script."""
    counts: Counter[str] = Counter()
    for letter, number in Counter(letter for text in texts for letter in text).items():
        if (script := _script(letter)) is not None:
            counts[script] += number
    return counts


@lru_cache(maxsize=100_000)
def _script(letter: str) -> str | None:
    """The first word of a letter's Unicode name, which is its script; None for a character that is no letter."""
    if unicodedata.category(letter)[0] != "L":
        return None
    words = unicodedata.name(letter, "").replace("-", " ").split()
    if words and words[0] in ("HALFWIDTH", "FULLWIDTH") and len(words) > 1:
        return words[1]
    return words[0] if words else None


def _phrases_are_words(texts: Iterable[str], cut: Callable[[str], str]) -> bool:
    """Whether most letters of scripts without spaces are in units that are too long for words."""
    long = short = 0
    for text in texts:
        for word in cut(text).split():
            size = sum(_script(letter) in UNSPACED for letter in word)
            long += size if size > LONGEST_WORD else 0
            short += size if size <= LONGEST_WORD else 0
    # Units of short texts are short, too: if every text is a single unit, the units are phrases.
    return long > short or all(len(cut(text).split()) <= 1 for text in texts)


def _foreign_marks(texts: Sequence[str]) -> list[str]:
    """Punctuation beyond ASCII at the ends of words, the commonest first; empty if few texts have any."""
    marks: Counter[str] = Counter()
    having = 0
    for text in texts:
        ends = [
            letter
            for word in text.split()
            for letter in {word[0], word[-1]}
            if len(word) > 1 and ord(letter) > 127 and unicodedata.category(letter)[0] == "P"
        ]
        marks.update(ends)
        having += bool(ends)
    return [mark for mark, _ in marks.most_common(4)] if having >= SHARE * len(texts) else []
