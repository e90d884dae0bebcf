"""Damaged references as predictions. The official scripts have scored the same texts."""

from __future__ import annotations

import random
from pathlib import Path

from bench.metrics.texts import Texts, prepare
from bench.tasks.dart import Dart


def damaged(text: str) -> str:
    """A text without every fifth word, whose first two words stand at its end."""
    kept = [word for number, word in enumerate(text.split()) if number % 5 != 3]
    return " ".join(kept[2:] + kept[:2])


def damaged_dart(shared_data: Path, sources: int = 400) -> Texts:
    """The first sources of DART's test split."""
    published = [
        (shared_data / "dart" / f"all-delex-reference{number}.lex").read_text().split("\n")[:sources]
        for number in range(2)
    ]
    predictions = [damaged(published[n % 2][n] or published[0][n]) for n in range(sources)]
    task = Dart(Dart.Config(path=str(shared_data / "dart")))
    return prepare(predictions, [example.references for example in task.load("test")[:sources]], task.scoring)


def shuffled_words(pairs: int) -> list[tuple[list[str], list[str]]]:
    """Texts and references of made-up words: of other lengths, in another order, or with nothing in common."""
    generator = random.Random(5)
    made = []
    for _ in range(pairs):
        words = "abcdefghijklmnopqrstuvwxyz"[: generator.choice((4, 12, 26))]
        reference = [generator.choice(words) for _ in range(generator.randint(1, 50))]
        cut = generator.randrange(len(reference))
        text = [word for word in reference[cut:] + reference[:cut] if generator.random() < 0.8] or ["a"]
        if generator.random() < 0.5:
            text = [generator.choice(words) for _ in range(generator.randint(1, 50))]
        made.append((text, reference))
    return made
