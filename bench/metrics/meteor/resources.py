"""The English resources of METEOR 1.5: abbreviations, function words, stems, synonyms, paraphrases.

They are read from two files of the program, which are not part of Tuneoff: ``meteor-1.5.jar`` and
``data/paraphrase-en.gz``. The package pycocoevalcap and the archive of METEOR have them. No Java is needed.
"""

from __future__ import annotations

import gzip
import importlib.util
import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER_VARIABLE = "TUNEOFF_METEOR"
PACKAGE = "pycocoevalcap"
JAR = "meteor-1.5.jar"
PARAPHRASES = "data/paraphrase-en.gz"

Phrase = tuple[str, ...]

# Endings of nouns, verbs and adjectives, and the endings of their base forms, in WordNet's order.
ENDINGS = (
    *(
        ("s", ""),
        ("ses", "s"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    *(("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    *(("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
)


def folder() -> Path | None:
    """The folder with the files of METEOR 1.5: named by ``TUNEOFF_METEOR``, else of pycocoevalcap; None: neither."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return _complete(Path(named).expanduser())
    package = importlib.util.find_spec(PACKAGE)
    places = (package.submodule_search_locations or ()) if package is not None else ()
    return next((path for place in places if (path := _complete(Path(place) / "meteor")) is not None), None)


def _complete(path: Path) -> Path | None:
    return path if (path / JAR).is_file() and (path / PARAPHRASES).is_file() else None


@dataclass(frozen=True)
class Lexicon:
    """The resources that do not depend on the texts that are scored."""

    prefixes: dict[str, bool]
    """Abbreviations that keep their dot, to whether they keep it only before numbers."""
    function_words: frozenset[str]
    bases: dict[str, list[str]]
    """Irregular forms to their base forms."""
    synsets: dict[str, frozenset[int]]


class MeteorResources:
    """A lexicon, and the paraphrases that occur in the texts that are scored."""

    def __init__(self, lexicon: Lexicon, paraphrases: dict[Phrase, list[Phrase]]) -> None:
        from nltk.stem.snowball import EnglishStemmer

        self.lexicon = lexicon
        self.paraphrases = paraphrases
        self.longest_phrase = max(map(len, paraphrases), default=0)
        self.stem = cache(EnglishStemmer().stem)
        self.synsets = cache(self._synsets)

    def _synsets(self, word: str) -> frozenset[int]:
        """Sets of synonyms of a word and of its base forms."""
        known = self.lexicon.synsets
        bases = self.lexicon.bases.get(word) or [self._base(word)]
        return frozenset().union(*(known.get(form, ()) for form in (word, *bases)))

    def _base(self, word: str) -> str:
        if len(word) <= 2 or word.endswith("ss"):
            return word
        for ending, base in ENDINGS:
            form = word.removesuffix(ending) + base
            if word.endswith(ending) and form in self.lexicon.synsets:
                return form
        return ""


@cache
def read_lexicon(place: Path) -> Lexicon:
    """Read the files in the program's archive."""
    with zipfile.ZipFile(place / JAR) as archive:

        def lines(name: str) -> list[str]:
            return archive.read(name).decode("utf-8").removesuffix("\n").split("\n")

        prefixes = {
            words[0]: words[1:2] == ["#NUMERIC_ONLY#"]
            for words in map(str.split, lines("nonbreaking/english.prefixes"))
            if words and not words[0].startswith("#")
        }
        exceptions, synsets = lines("synonym/english.exceptions"), lines("synonym/english.synsets")
        function_words = frozenset(lines("function/english.words"))
    bases: dict[str, list[str]] = {}
    for base, forms in zip(exceptions[::2], exceptions[1::2], strict=True):
        for form in forms.split():
            bases.setdefault(form, []).append(base)
    sets = {
        word: frozenset(map(int, numbers.split())) for word, numbers in zip(synsets[::2], synsets[1::2], strict=True)
    }
    return Lexicon(prefixes, function_words, bases, sets)


def read_paraphrases(place: Path, texts: Iterable[Sequence[str]], longest: int = 7) -> dict[Phrase, list[Phrase]]:
    """Phrases of these texts to their paraphrases in these texts, in the order of the table.

    The table has millions of entries, so that all others are left out.
    """
    phrases = {
        " ".join(words[start : start + size]).encode()
        for words in texts
        for size in range(1, longest + 1)
        for start in range(len(words) - size + 1)
    }
    paraphrases: dict[Phrase, list[Phrase]] = {}
    with gzip.open(place / PARAPHRASES) as table:
        for _, phrase, paraphrase in zip(table, table, table, strict=True):
            if phrase[:-1] in phrases and paraphrase[:-1] in phrases:
                paraphrases.setdefault(tuple(phrase.decode().split()), []).append(tuple(paraphrase.decode().split()))
    return paraphrases
