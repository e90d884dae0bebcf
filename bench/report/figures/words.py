"""Texts in pictures: names that people chose are drawn as plain text, never as formulas."""

from __future__ import annotations

from bench.schema.printable import in_one_line

LONGEST = 34


def drawable_text(text: str, longest: int = LONGEST) -> str:
    """A name as matplotlib draws it: in one line, not too long, and no dollar begins a formula.

    What is too long loses its middle: names of one sweep often begin alike.
    """
    line = in_one_line(text)
    end = longest // 3
    short = line if len(line) <= longest else f"{line[: longest - end - 1]}…{line[-end:]}"
    if short.startswith("_"):  # Legends leave out what begins so.
        short = f"\N{NO-BREAK SPACE}{short}"
    return short.replace("$", r"\$")
