"""Translation edit rate as the program tercom 7.25 counts it, which the official scripts of WebNLG and DART call.

Source: Snover et al. 2006, and the program. sacrebleu follows another version of the program: 28 of the 5,097 outputs
of BART-large that the authors of DART publish have another number of edits there, which makes TER 44.68 instead of
44.70. The differences are

- the edit distance: tercom searches for it with a beam of 20 edits over the best so far, so that texts much shorter or
  longer than their reference cost more than necessary (:func:`distance`);
- the shifts that are tried (:func:`_candidates`): tercom lengthens a run of words only while the run has a place to go
  to, and tries any number of shifts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.metrics.edit_rate import QuickTER, exact_distance

BEAM = 20
LONGEST = 10  # words that are shifted together
FARTHEST = 50  # words over which they are shifted
NEVER = 2**30  # edits of what the search has not come to

Words = tuple[str, ...]
Shift = tuple[int, int, int]
"""First and last word of a run, and the word after which it is put; -1 is the beginning."""


class TercomTER(QuickTER):
    """TER with the edits of tercom. References that cannot be better are skipped, as in :class:`QuickTER`."""

    def num_edits(self, words: list[str], reference: list[str], bound: int) -> int:
        return edits(tuple(words), tuple(reference), bound)


def edits(words: Words, reference: Words, bound: int = 0) -> int:
    """Shifts and edits that turn a text into a reference, by the program's greedy search.

    Args:
        words: The text, in lower case.
        reference: The reference, in lower case.
        bound: A lower bound of the edits, by :func:`bench.metrics.edit_rate.fewest_edits`.
    """
    if not words or not reference:
        return max(len(words), len(reference))
    places = _places(words, reference)
    shifts = 0
    left = distance(words, reference)
    while left > bound:
        shifted = _best_shift(words, reference, places, left)
        if shifted is None:
            break
        words, left = shifted
        shifts += 1
    return shifts + left


def distance(words: Words, reference: Words) -> int:
    """The edit distance by a search with the program's beam, which may be larger than the exact one."""
    exact = exact_distance(words, reference)
    return exact if exact <= BEAM else len(_path(words, reference).replace(" ", ""))


def _best_shift(words: Words, reference: Words, places: dict[Words, list[int]], left: int) -> tuple[Words, int] | None:
    """The text after the best shift, and the edits that are left; None if no shift saves more than its own cost.

    Among equally good shifts the longest run wins, then the first one.
    """
    by_length: dict[int, list[Shift]] = {}
    for shift in _candidates(words, reference, places):
        by_length.setdefault(shift[1] - shift[0] + 1, []).append(shift)
    best: tuple[Words, int] | None = None
    fewest = left  # edits with the shift counted in
    for length in sorted(by_length, reverse=True):
        for shift in by_length[length]:
            if best is not None and left - fewest >= 2 * length:
                break  # the shift of a run of n words saves at most 2 n edits
            shifted = _shifted(words, *shift)
            allowed = fewest - (best is not None)
            if exact_distance(shifted, reference) + 1 > allowed:
                continue
            total = distance(shifted, reference) + 1
            if total <= allowed:
                best, fewest = (shifted, total - 1), total
    return best


def _candidates(words: Words, reference: Words, places: dict[Words, list[int]]) -> Iterator[Shift]:
    """Shifts of runs of words that hold an error and occur in the reference at a place that holds an error, too."""
    wrong, wrong_in_reference, beside = _aligned(_path(words, reference))

    def far(start: int, place: int) -> bool:
        return abs(beside[place] - start) > FARTHEST

    for start in range(len(words)):
        other_places = [place for place in places.get(words[start : start + 1], ()) if beside[place] != start]
        if not any(-FARTHEST - 1 <= beside[place] - start <= FARTHEST for place in other_places):
            continue
        for end in range(start, min(len(words), start + LONGEST)):
            run = places.get(words[start : end + 1])
            if run is None:
                break
            if not any(wrong[start : end + 1]):
                continue
            targets = [place for place in run if not start <= beside[place] <= end and not far(start, place)]
            for place in targets:
                if any(wrong_in_reference[place : place + end - start + 1]):
                    yield from ((start, end, behind) for behind in _behind(start, end, place, beside))
            if not targets:
                break


def _behind(start: int, end: int, place: int, beside: Sequence[int]) -> Iterator[int]:
    """The words after which a run may be put, to be where the reference has it: those aligned with its words there."""
    for offset in range(-1, end - start + 1):
        if place + offset < 0:
            yield -1
        elif beside[place + offset] != start and (offset == 0 or beside[place + offset] != beside[place]):
            yield beside[place + offset]


def _shifted(words: Words, start: int, end: int, behind: int) -> Words:
    run, before, after = words[start : end + 1], words[:start], words[end + 1 :]
    if behind < start:
        return (*before[: behind + 1], *run, *before[behind + 1 :], *after)
    skipped = behind - end if behind > end else behind - start
    return (*before, *after[:skipped], *run, *after[skipped:])


def _places(words: Words, reference: Words) -> dict[Words, list[int]]:
    """Runs of the reference whose words all occur in the text, to their first places in the reference."""
    known = set(words)
    places: dict[Words, list[int]] = {}
    for start in range(len(reference)):
        for end in range(start, min(len(reference), start + LONGEST + 1)):
            if reference[end] not in known:
                break
            places.setdefault(reference[start : end + 1], []).append(start)
    return places


def _aligned(path: str) -> tuple[list[bool], list[bool], list[int]]:
    """Whether each word of the text and of the reference is an error, and the text's word beside the reference's."""
    wrong: list[bool] = []
    wrong_in_reference: list[bool] = []
    beside: list[int] = []
    for step in path:
        if step != "D":
            wrong.append(step != " ")
        if step != "I":
            wrong_in_reference.append(step != " ")
            beside.append(len(wrong) - 1)
    return wrong, wrong_in_reference, beside


def _path(words: Words, reference: Words) -> str:
    """The edits of the beam search: a space for equal words, S, I and D for substitution, insertion and deletion.

    Among equally good steps a step in both texts wins, then an insertion.
    """
    height = len(reference)
    column, taken = [NEVER] * (height + 1), [""] * (height + 1)  # by words of the reference: edits so far, last step
    column[0] = 0
    steps: list[list[str]] = []
    best = NEVER - BEAM - 1
    for word in words:
        allowed, best = best + BEAM, NEVER - BEAM - 1
        following, next_taken = [NEVER] * (height + 1), [""] * (height + 1)
        for row, other in enumerate(reference):
            cost = column[row]
            if cost > allowed:
                continue
            dearer = cost + 1
            if other == word:
                following[row + 1], next_taken[row + 1] = cost, " "
                if cost < best:
                    best = cost
            else:
                following[row + 1], next_taken[row + 1] = dearer, "S"
                if dearer < best:
                    best = dearer
            if following[row] > dearer:
                following[row], next_taken[row] = dearer, "I"
            if column[row + 1] > dearer:
                column[row + 1], taken[row + 1] = dearer, "D"
        if column[height] <= allowed and following[height] > column[height] + 1:
            following[height], next_taken[height] = column[height] + 1, "I"
        steps.append(taken)
        column, taken = following, next_taken
    for row in range(height):
        if column[row] < NEVER and column[row + 1] > column[row] + 1:
            column[row + 1], taken[row + 1] = column[row] + 1, "D"
    steps.append(taken)
    return _traced(steps, len(words), height)


def _traced(steps: Sequence[Sequence[str]], number: int, row: int) -> str:
    path: list[str] = []
    while number or row:
        step = steps[number][row]
        path.append(step)
        number -= step != "D"
        row -= step != "I"
    return "".join(reversed(path))
