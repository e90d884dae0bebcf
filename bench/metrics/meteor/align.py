"""The alignment of METEOR: a beam search matches words of a prediction with words of a reference.

Source: Denkowski & Lavie 2014 (METEOR universal), section 2. Details that the paper leaves open follow the program
METEOR 1.5, so that scores equal those that it prints: see the comments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.metrics.meteor.resources import MeteorResources

BEAM = 40
EXACT, STEM, SYNONYM, PARAPHRASE = range(4)


class Match(NamedTuple):
    """``length`` words of the reference from ``start`` match ``prediction_length`` words of the prediction."""

    start: int
    length: int
    prediction_start: int
    prediction_length: int
    module: int

    @property
    def reference_words(self) -> int:
        """The matched words of the reference, as bits."""
        return ((1 << self.length) - 1) << self.start

    @property
    def prediction_words(self) -> int:
        """The matched words of the prediction, as bits."""
        return ((1 << self.prediction_length) - 1) << self.prediction_start


@dataclass(frozen=True)
class Alignment:
    """The chosen matches, in the order of the reference, and the number of stretches without a gap that they make."""

    matches: tuple[Match, ...]
    chunks: int


class _Path(NamedTuple):
    """An alignment of the words up to some place of the reference."""

    covered: int  # matched words of both sides; those of matches that are not exact count half, rounded down
    chunks: int
    distance: int
    next_start: int  # first word of the reference after the last match
    prediction_end: int  # first word of the prediction after the last match; -1 after a gap
    prediction_words: int  # matched words of the prediction, as bits
    reference_words: int  # matched words of the reference, as bits
    matches: tuple[Match, ...]

    @property
    def rank(self) -> tuple[int, int, int]:
        return -self.covered, self.chunks, self.distance

    def with_match(self, match: Match) -> _Path:
        gap = self.prediction_end not in (-1, match.prediction_start)
        return _Path(
            self.covered + _gain(match),
            self.chunks + gap,
            self.distance,
            match.start + match.length,
            match.prediction_start + match.prediction_length,
            self.prediction_words | match.prediction_words,
            self.reference_words | match.reference_words,
            (*self.matches, match),
        )

    def without_word(self) -> _Path:
        closed = self.chunks + (self.prediction_end != -1)
        return self._replace(chunks=closed, next_start=self.next_start + 1, prediction_end=-1)


def align(prediction: Sequence[str], reference: Sequence[str], resources: MeteorResources) -> Alignment:
    """The best alignment of a prediction with a reference.

    Args:
        prediction: Words of the prediction.
        reference: Words of the reference.
        resources: Synonyms and paraphrases.
    """
    candidates = _matches(prediction, reference, resources)
    fixed = _unambiguous(candidates, len(prediction), len(reference))
    prediction_words = reference_words = 0
    for match in fixed.values():
        prediction_words, reference_words = (
            prediction_words | match.prediction_words,
            reference_words | match.reference_words,
        )
    paths = [_Path(0, 0, 0, 0, -1, prediction_words, reference_words, ())]
    for place in range(len(reference)):
        following: list[_Path] = []
        for path in paths[:BEAM]:
            if place < path.next_start:
                following.append(path)
            elif path.reference_words >> place & 1:
                if (only := fixed.get(place)) is not None:
                    distance = path.distance + abs(only.start - only.prediction_start)
                    following.append(path.with_match(only)._replace(distance=distance))
            else:
                distance = path.distance
                for match in candidates[place]:
                    in_prediction = path.prediction_words & match.prediction_words
                    if not (in_prediction or path.reference_words & match.reference_words):
                        following.append(path.with_match(match)._replace(distance=distance))
                        # The program adds the distance of a match to the paths tried after it, not to its own.
                        distance += abs(match.start - match.prediction_start)
                following.append(path.without_word()._replace(distance=distance))
        paths = sorted(following or paths[:1], key=lambda path: path.rank)
    ended = [path._replace(chunks=path.chunks + (path.prediction_end != -1)) for path in paths[:BEAM]]
    best = min(ended, key=lambda path: path.rank)
    return Alignment(best.matches, best.chunks)


def _gain(match: Match) -> int:
    if match.module == EXACT:
        return match.length + match.prediction_length
    return match.length // 2 + match.prediction_length // 2


def _matches(prediction: Sequence[str], reference: Sequence[str], resources: MeteorResources) -> list[list[Match]]:
    """All matches, by their first place in the reference. The same match may be there several times."""
    matches: list[list[Match]] = [[] for _ in reference]
    for place, word in enumerate(reference):
        matches[place] += [Match(place, 1, at, 1, EXACT) for at, other in enumerate(prediction) if other == word]
    if list(prediction) == list(reference):
        return matches
    prediction_stems = [resources.stem(word) for word in prediction]
    reference_stems = [resources.stem(word) for word in reference]
    for place, word in enumerate(reference):
        matches[place] += [
            Match(place, 1, at, 1, STEM)
            for at, other in enumerate(prediction)
            if other != word and prediction_stems[at] == reference_stems[place]
        ]
    prediction_sets = [resources.synsets(word) for word in prediction]
    reference_sets = [resources.synsets(word) for word in reference]
    for place, word in enumerate(reference):
        matches[place] += [
            Match(place, 1, at, 1, SYNONYM)
            for at, other in enumerate(prediction)
            if other != word and not prediction_sets[at].isdisjoint(reference_sets[place])
        ]
    for length, place, at, prediction_length in _phrases(reference, prediction, resources):
        matches[place].append(Match(place, length, at, prediction_length, PARAPHRASE))
    for prediction_length, at, place, length in _phrases(prediction, reference, resources):
        matches[place].append(Match(place, length, at, prediction_length, PARAPHRASE))
    return matches


def _phrases(
    words: Sequence[str], others: Sequence[str], resources: MeteorResources
) -> list[tuple[int, int, int, int]]:
    """Phrases of ``words`` with a paraphrase in ``others``: length, place, place there, length there."""
    phrases = []
    for place in range(len(words)):
        for length in range(1, min(resources.longest_phrase, len(words) - place) + 1):
            for paraphrase in resources.paraphrases.get(tuple(words[place : place + length]), ()):
                size = len(paraphrase)
                phrases += [
                    (length, place, at, size)
                    for at in range(len(others) - size + 1)
                    if tuple(others[at : at + size]) == paraphrase
                ]
    return phrases


def _unambiguous(candidates: Sequence[Sequence[Match]], num_predicted: int, num_reference: int) -> dict[int, Match]:
    """Matches whose words have no other match, by their place. They belong to every alignment."""
    uses_in_prediction, uses_in_reference = [0] * num_predicted, [0] * num_reference
    for matches in candidates:
        for match in matches:
            for at in range(match.prediction_start, match.prediction_start + match.prediction_length):
                uses_in_prediction[at] += 1
            for at in range(match.start, match.start + match.length):
                uses_in_reference[at] += 1
    return {
        match.start: match
        for matches in candidates
        if len(matches) == 1
        for match in matches
        if all(uses_in_reference[at] == 1 for at in range(match.start, match.start + match.length))
        and all(
            uses_in_prediction[at] == 1
            for at in range(match.prediction_start, match.prediction_start + match.prediction_length)
        )
    }
