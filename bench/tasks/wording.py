"""Turns names of knowledge bases into words."""

from __future__ import annotations

import re


def entity_words(name: str) -> str:
    """``Aarhus_Airport`` is ``Aarhus Airport``, and ``"18L/36R"`` loses its quotes."""
    text = " ".join(name.replace("_", " ").split())
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == '"' else text


def relation_words(name: str) -> str:
    """``leaderName`` is ``leader name``, and ``TOTAL_POINTS`` is ``total points``."""
    return entity_words(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)).lower()
