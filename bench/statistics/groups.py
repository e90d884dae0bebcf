"""Methods that cannot be told apart, as groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from string import ascii_lowercase


def groups(names: Sequence[str], told_apart: Iterable[tuple[str, str]]) -> list[tuple[str, ...]]:
    """The largest sets of methods of which no two can be told apart; a method may be in several.

    Insertion and absorption of Piepho 2004, "An algorithm for a letter-based representation of all-pairwise
    comparisons".

    Args:
        names: Best first; groups come in the order of their best members.
        told_apart: Pairs that differ beyond chance.
    """
    found: list[set[str]] = [set(names)]
    for first, second in told_apart:
        split = [
            part
            for group in found
            for part in ([group - {first}, group - {second}] if {first, second} <= group else [group])
        ]
        found = []
        for group in split:
            if group and not any(group <= other for other in found):
                found = [other for other in found if not other <= group] + [group]
    place = {name: index for index, name in enumerate(names)}
    ordered = [tuple(sorted(group, key=place.__getitem__)) for group in found]
    return sorted(ordered, key=lambda group: [place[name] for name in group])


def letters(names: Sequence[str], told_apart: Iterable[tuple[str, str]]) -> dict[str, str]:
    """A letter for each group that a method is in, as tables print them: who shares one cannot be told apart."""
    found = groups(names, told_apart)
    return {name: "".join(letter(index) for index, group in enumerate(found) if name in group) for name in names}


def letter(index: int) -> str:
    """What a group is called: a to z, then a2, b2 and so on."""
    round_, place = divmod(index, len(ascii_lowercase))
    return ascii_lowercase[place] + (str(round_ + 1) if round_ else "")
