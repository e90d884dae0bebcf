"""METEOR 1.5 for English, with the scores of its authors' program. It needs the files of that program."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from bench.metrics.meteor.align import align
from bench.metrics.meteor.resources import (
    FOLDER_VARIABLE,
    JAR,
    PACKAGE,
    PARAPHRASES,
    MeteorResources,
    folder,
    read_lexicon,
    read_paraphrases,
)
from bench.metrics.meteor.words import meteor_words
from bench.metrics.metric import Array, Metric
from bench.metrics.penn_treebank import caption_words
from bench.metrics.scripts import MADE_FOR, foreign
from bench.metrics.texts import Texts

# The parameters of the program's task "rank" for English, its default (Denkowski & Lavie 2014, table 1).
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
WEIGHTS = (1.0, 0.6, 0.8, 0.6)  # of exact, stem, synonym and paraphrase matches

Statistics = tuple[float, ...]
"""Five numbers of the prediction and the same of the reference: content words, function words, weighted matches of
content words and of function words, matched words. Then the number of chunks, 0 if a text is matched whole and in
order."""


class Meteor(Metric):
    """METEOR 1.5 from 0 to 100: with the best reference of each source, statistics added up over sources.

    METEOR's own rules cut the texts (``-norm``). For E2E, whose script calls METEOR as the captioning scripts do, their
    rules cut the texts first and remove punctuation.
    """

    name = "meteor"
    higher_is_better = True
    best = 100.0

    def absent(self, texts: Texts) -> str | None:
        if texts.scoring.tokenize in MADE_FOR or foreign(text for some in texts.references for text in some):
            return (
                "it knows the words, stems and paraphrases of English alone, and the references are in another script"
            )
        return _no_files() if folder() is None else None

    def signature(self, texts: Texts) -> str:
        return f"1.5|en|task:rank|norm|best reference{'|tok:ptb' * (texts.scoring.rouge_l == 'coco')}"

    def statistics(self, texts: Texts) -> Array:
        """See :data:`Statistics`."""
        place = folder()
        if place is None:
            raise FileNotFoundError(_no_files())
        lexicon = read_lexicon(place)
        captions = texts.scoring.rouge_l == "coco"

        @cache
        def words(text: str) -> tuple[str, ...]:
            return meteor_words(" ".join(caption_words(text)) if captions else text, lexicon.prefixes)

        only = 1 if self.name in texts.scoring.single_reference else None
        predictions = [words(text) for text in texts.prepared_predictions]
        references = [[words(text) for text in some[:only]] for some in texts.prepared_references]
        paraphrases = read_paraphrases(place, {*predictions, *(one for some in references for one in some)})
        resources = MeteorResources(lexicon, paraphrases)
        best = [
            max((statistics(prediction, reference, resources) for reference in some), key=score)
            for prediction, some in zip(predictions, references, strict=True)
        ]
        return np.array(best, dtype=np.float64)

    def score(self, sums: Array) -> Array:
        # One by one, because numpy's powers may differ in the last digit between machines.
        rows = sums.reshape(-1, sums.shape[-1]).tolist()
        return np.array([100.0 * score(tuple(row)) for row in rows]).reshape(sums.shape[:-1])


def _no_files() -> str:
    return (
        f"its files {JAR} and {PARAPHRASES} are not there: install {PACKAGE}, or name their folder in {FOLDER_VARIABLE}"
    )


def statistics(prediction: Sequence[str], reference: Sequence[str], resources: MeteorResources) -> Statistics:
    """The statistics of the words of a prediction and one reference."""
    alignment = align(prediction, reference, resources)
    function_words = resources.lexicon.function_words
    counts: list[float] = []
    for words, places in (
        (prediction, [(m.prediction_start, m.prediction_length, m.module) for m in alignment.matches]),
        (reference, [(m.start, m.length, m.module) for m in alignment.matches]),
    ):
        matched = [
            (words[at] in function_words, module) for start, size, module in places for at in range(start, start + size)
        ]
        num_function = sum(word in function_words for word in words)
        content = sum(WEIGHTS[module] for is_function, module in matched if not is_function)
        function = sum(WEIGHTS[module] for is_function, module in matched if is_function)
        counts += [len(words) - num_function, num_function, content, function, len(matched)]
    whole = alignment.chunks == 1 and counts[4] == len(prediction) and counts[9] == len(reference)
    return (*counts, 0 if whole else alignment.chunks)


def score(of: Statistics) -> float:
    """The score from 0 to 1 (Denkowski & Lavie 2014, section 2) of one pair, or of the sum of many."""
    weighted = [
        DELTA * content + (1 - DELTA) * function
        for content, function in ((of[0], of[1]), (of[5], of[6]), (of[2], of[3]), (of[7], of[8]))
    ]
    lengths, matches = weighted[:2], weighted[2:]
    matched, chunks = of[4] + of[9], of[10]
    if not all(matches):
        return 0.0
    precision, recall = (match / length for match, length in zip(matches, lengths, strict=True))
    mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
    penalty: float = GAMMA * (chunks / (matched / 2)) ** BETA
    return max(0.0, mean * (1 - penalty))
