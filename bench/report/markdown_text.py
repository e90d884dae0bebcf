"""Texts in Markdown: names that people and models chose, as text and nothing else (GitHub's dialect)."""

from __future__ import annotations

import re

from bench.schema.printable import in_one_line

# What would begin code, emphasis, a link, a formula or a cell; an underscore does so at the edge of a word only.
_MEANING = re.compile(r"[\\`*\[\]|~$]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])")


def escaped(text: str) -> str:
    """Text in one line in which no character means anything to Markdown, inside a table or outside."""
    return _MEANING.sub(r"\\\g<0>", in_one_line(text))


def code(text: str) -> str:
    """A span of code, whatever backticks are in the text. Not for tables."""
    line = in_one_line(text)
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    blank = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{blank}{line}{blank}{fence}"


def fenced(text: str) -> str:
    """A block of code, likewise."""
    fence = "`" * max(3, max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{fence}\n{text}\n{fence}"
