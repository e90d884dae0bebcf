"""The alignment of METEOR: which words of a prediction stand for which of a reference, found by a beam search.

Source: Denkowski & Lavie 2014 (METEOR universal), section 2. What the paper leaves open is as in the program METEOR
1.5, since scores are meant to equal those that it prints: see the comments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.metrics.meteor.resources import MeteorResources

BEAM = 40
EXACT, STEM, SYNONYM, PARAPHRASE = range(4)


class Match(NamedTuple):
    """``length`` words of the reference from ``start`` stand for ``said_length`` words of the prediction."""

    start: int
    length: int
    said_start: int
    said_length: int
    module: int

    @property
    def told(self) -> int:
        """Its words of the reference, as bits."""
        return ((1 << self.length) - 1) << self.start

    @property
    def said(self) -> int:
        """Its words of the prediction, as bits."""
        return ((1 << self.said_length) - 1) << self.said_start


@dataclass(frozen=True)
class Alignment:
    """The chosen matches, in the order of the reference, and how many stretches without a gap they make."""

    matches: tuple[Match, ...]
    chunks: int


class _Path(NamedTuple):
    """An alignment of the words up to some place."""

    covered: int  # matched words of both sides, where what is not exact counts half, rounded down
    chunks: int
    distance: int
    next_start: int  # first word of the reference after the last match
    said_end: int  # first word of the prediction after the last match; -1 after a gap
    said: int  # words that are taken, as bits
    told: int
    matches: tuple[Match, ...]

    @property
    def rank(self) -> tuple[int, int, int]:
        return -self.covered, self.chunks, self.distance

    def with_match(self, match: Match) -> _Path:
        gap = self.said_end not in (-1, match.said_start)
        return _Path(
            self.covered + _gain(match),
            self.chunks + gap,
            self.distance,
            match.start + match.length,
            match.said_start + match.said_length,
            self.said | match.said,
            self.told | match.told,
            (*self.matches, match),
        )

    def without_word(self) -> _Path:
        closed = self.chunks + (self.said_end != -1)
        return self._replace(chunks=closed, next_start=self.next_start + 1, said_end=-1)


def align(said: Sequence[str], told: Sequence[str], resources: MeteorResources) -> Alignment:
    """The best alignment of a prediction with a reference.

    Args:
        said: Words of the prediction.
        told: Words of the reference.
        resources: Synonyms and paraphrases.
    """
    found = _matches(said, told, resources)
    fixed = _unambiguous(found, len(said), len(told))
    taken_said = taken_told = 0
    for match in fixed.values():
        taken_said, taken_told = taken_said | match.said, taken_told | match.told
    paths = [_Path(0, 0, 0, 0, -1, taken_said, taken_told, ())]
    for place in range(len(told)):
        following: list[_Path] = []
        for path in paths[:BEAM]:
            if place < path.next_start:
                following.append(path)
            elif path.told >> place & 1:
                if (sure := fixed.get(place)) is not None:
                    distance = path.distance + abs(sure.start - sure.said_start)
                    following.append(path.with_match(sure)._replace(distance=distance))
            else:
                distance = path.distance
                for match in found[place]:
                    if not (path.said & match.said or path.told & match.told):
                        following.append(path.with_match(match)._replace(distance=distance))
                        # The program adds the distance of a match to the paths tried after it, not to its own.
                        distance += abs(match.start - match.said_start)
                following.append(path.without_word()._replace(distance=distance))
        paths = sorted(following or paths[:1], key=lambda path: path.rank)
    ended = [path._replace(chunks=path.chunks + (path.said_end != -1)) for path in paths[:BEAM]]
    best = min(ended, key=lambda path: path.rank)
    return Alignment(best.matches, best.chunks)


def _gain(match: Match) -> int:
    if match.module == EXACT:
        return match.length + match.said_length
    return match.length // 2 + match.said_length // 2


def _matches(said: Sequence[str], told: Sequence[str], resources: MeteorResources) -> list[list[Match]]:
    """All matches, by the place in the reference that they begin at. One may be there several times."""
    found: list[list[Match]] = [[] for _ in told]
    for place, word in enumerate(told):
        found[place] += [Match(place, 1, at, 1, EXACT) for at, other in enumerate(said) if other == word]
    if list(said) == list(told):
        return found
    stems_said, stems_told = [resources.stem(word) for word in said], [resources.stem(word) for word in told]
    for place, word in enumerate(told):
        found[place] += [
            Match(place, 1, at, 1, STEM)
            for at, other in enumerate(said)
            if other != word and stems_said[at] == stems_told[place]
        ]
    sets_said, sets_told = [resources.synsets(word) for word in said], [resources.synsets(word) for word in told]
    for place, word in enumerate(told):
        found[place] += [
            Match(place, 1, at, 1, SYNONYM)
            for at, other in enumerate(said)
            if other != word and not sets_said[at].isdisjoint(sets_told[place])
        ]
    for length, place, at, said_length in _phrases(told, said, resources):
        found[place].append(Match(place, length, at, said_length, PARAPHRASE))
    for said_length, at, place, length in _phrases(said, told, resources):
        found[place].append(Match(place, length, at, said_length, PARAPHRASE))
    return found


def _phrases(
    words: Sequence[str], others: Sequence[str], resources: MeteorResources
) -> list[tuple[int, int, int, int]]:
    """Phrases of ``words`` with a paraphrase in ``others``: length, place, place there, length there."""
    found = []
    for place in range(len(words)):
        for length in range(1, min(resources.longest_phrase, len(words) - place) + 1):
            for paraphrase in resources.paraphrases.get(tuple(words[place : place + length]), ()):
                size = len(paraphrase)
                found += [
                    (length, place, at, size)
                    for at in range(len(others) - size + 1)
                    if tuple(others[at : at + size]) == paraphrase
                ]
    return found


def _unambiguous(found: Sequence[Sequence[Match]], num_said: int, num_told: int) -> dict[int, Match]:
    """Matches whose words have no other match, by their place: they belong to every alignment."""
    said, told = [0] * num_said, [0] * num_told
    for matches in found:
        for match in matches:
            for at in range(match.said_start, match.said_start + match.said_length):
                said[at] += 1
            for at in range(match.start, match.start + match.length):
                told[at] += 1
    return {
        match.start: match
        for matches in found
        if len(matches) == 1
        for match in matches
        if all(told[at] == 1 for at in range(match.start, match.start + match.length))
        and all(said[at] == 1 for at in range(match.said_start, match.said_start + match.said_length))
    }
