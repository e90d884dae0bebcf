"""Texts that are safe to show: without the characters that control a terminal or break a file, and not too long."""

from __future__ import annotations

import re
from typing import Any

# Characters of a value in a message.
LONGEST_VALUE = 120

# Whole sequences (ECMA-48): CSI ... letter, and the strings OSC, DCS, SOS, PM and APC up to their end.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
# Controls but for tab and line feed; marks that set the direction of text; halves of pairs and what XML has no place
# for.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_BREAKS = re.compile("\r\n|\r|\v|\f|\x85|\u2028|\u2029")
_UNSAFE = re.compile(f"{_BREAKS.pattern}|{_CONTROLS.pattern}")


def printable(text: str) -> str:
    """The text without control sequences. Tabs stay, and every line break becomes a line feed."""
    if not _UNSAFE.search(text):
        return text
    return _CONTROLS.sub("", _BREAKS.sub("\n", _SEQUENCES.sub("", text)))


def in_one_line(text: str) -> str:
    """The same text on one line: each stretch of white space becomes a blank."""
    return " ".join(printable(text).split())


def in_brief(value: Any) -> str:
    """A value as Python writes it, for messages; of a long one the beginning, so that they can be read."""
    try:
        written = repr(value)
    except (RecursionError, ValueError):  # nested too deep, or a number of thousands of digits
        return f"a {type(value).__name__} too large to be shown"
    return in_short(written)


def in_short(text: str) -> str:
    """The beginning of a long text, with its length; a short one as it is."""
    if len(text) <= LONGEST_VALUE:
        return text
    return f"{text[:LONGEST_VALUE]}… ({len(text):,} characters)"


def escaped_controls(json_text: str) -> str:
    r"""JSON in which such characters stand as ``\uXXXX``: the same values, safe to show.

    Args:
        json_text: In which they can stand in texts only, as JSON's own white space is blanks, tabs and line feeds.
    """
    return re.sub(f"{_CONTROLS.pattern}|[\x85\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", json_text)
