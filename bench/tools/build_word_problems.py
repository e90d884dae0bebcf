"""Builds the task ``word_problems``: sums in words with their solutions, always byte for byte the same.

Run ``python -m bench.tools.build_word_problems`` to write ``data/*.jsonl.gz`` and add ``--check`` to only compare the
committed files with what the builder makes.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.tools.shipped_rows import seeded, write_or_check

HERE = Path(__file__).resolve().parents[1] / "tasks" / "word_problems"
COUNTS = {"train": 1500, "dev": 150, "test": 300}
UNSEEN_ROWS = 75
NAMES = {
    "train": "Amina Bjorn Carla Dmitri Elena Farid Greta Hugo Ines Jonas Kira Luis Mina Noor Oskar Paula",
    "dev": "Quentin Rosa Samir Tilda Umar Vera",
    "test": "Wanda Xavier Yusuf Zoe Anton Bella Cyril Dora",
}
THINGS = ("pencils", "stamps", "marbles", "shells", "buttons", "stickers", "coins", "cards", "beads", "postcards")
FRUITS = ("apples", "pears", "plums", "oranges", "peaches", "lemons")
PLACES = ("the market", "the fair", "a small shop", "the school sale", "the museum shop")

Numbers = dict[str, int]


@dataclass(frozen=True)
class Story:
    """A kind of word problem: its text, its numbers, and the steps of its solution.

    Texts are filled with the numbers, names ``n`` and ``m``, a thing ``t``, a fruit ``f`` and a place ``p``.
    """

    numbers: Callable[[random.Random], Numbers]
    question: str
    steps: tuple[str, ...]
    answer: str
    unseen: bool = False  # in the test split only


def _between(rng: random.Random, **ranges: tuple[int, int]) -> Numbers:
    return {name: rng.randint(low, high) for name, (low, high) in ranges.items()}


def _added(rng: random.Random) -> Numbers:
    one = _between(rng, a=(6, 60), b=(3, 40))
    return one | {"x": one["a"] + one["b"]}


def _numbers_taken_away(rng: random.Random) -> Numbers:
    one = _between(rng, b=(3, 30), x=(2, 50))
    return one | {"a": one["b"] + one["x"]}


def _times(rng: random.Random) -> Numbers:
    one = _between(rng, a=(3, 12), b=(4, 20))
    return one | {"x": one["a"] * one["b"]}


def _shared(rng: random.Random) -> Numbers:
    one = _between(rng, b=(2, 9), x=(3, 15))
    return one | {"a": one["b"] * one["x"]}


def _times_less(rng: random.Random) -> Numbers:
    one = _times(rng)
    one["y"] = one["x"]
    one["c"] = rng.randint(2, one["y"] - 1)
    return one | {"x": one["y"] - one["c"]}


def _times_more(rng: random.Random) -> Numbers:
    one = _times(rng) | _between(rng, c=(5, 40))
    return one | {"y": one["x"], "x": one["x"] + one["c"]}


def _added_shared(rng: random.Random) -> Numbers:
    one = _between(rng, c=(2, 8), x=(4, 15))
    total = one["c"] * one["x"]
    one["a"] = rng.randint(2, total - 2)
    return one | {"b": total - one["a"], "y": total}


def _two_prices(rng: random.Random) -> Numbers:
    one = _between(rng, a=(2, 9), b=(2, 12), c=(2, 9), d=(3, 15))
    one |= {"y": one["a"] * one["b"], "z": one["c"] * one["d"]}
    return one | {"x": one["y"] + one["z"]}


def _change(rng: random.Random) -> Numbers:
    one = _two_prices(rng)
    one["s"] = one["x"]
    one["e"] = (one["s"] // 10 + rng.randint(1, 4)) * 10
    return one | {"x": one["e"] - one["s"]}


def _half_left(rng: random.Random) -> Numbers:
    one = _between(rng, b=(4, 30), c=(2, 12))
    one["a"] = 2 * one["b"]
    one["x"] = one["b"] + one["c"]
    return one


STORIES = (
    Story(
        _added,
        "{n} has {a} {t} and finds {b} more at {p}. How many {t} does {n} have now?",
        ("{n} has {a} + {b} = {x} {t}.",),
        "{x}",
    ),
    Story(
        _numbers_taken_away,
        "{n} picks {a} {f} and gives {b} of them to {m}. How many {f} are left?",
        ("There are {a} - {b} = {x} {f} left.",),
        "{x}",
    ),
    Story(
        _times,
        "{n} fills {a} bags with {b} {f} each. How many {f} are in the bags?",
        ("The bags hold {a} * {b} = {x} {f}.",),
        "{x}",
    ),
    Story(
        _shared,
        "{n} shares {a} {t} equally among {b} friends. How many {t} does each friend get?",
        ("Each friend gets {a} / {b} = {x} {t}.",),
        "{x}",
    ),
    Story(
        _times_less,
        "{n} buys {a} boxes of {b} {t} and loses {c} of the {t} on the way home. How many {t} are left?",
        ("The boxes hold {a} * {b} = {y} {t}.", "After the loss there are {y} - {c} = {x} {t}."),
        "{x}",
    ),
    Story(
        _times_more,
        "{n} counts {a} coaches of {b} seats each and {c} seats in a dining car. How many seats does the train have?",
        ("The coaches have {a} * {b} = {y} seats.", "With the dining car there are {y} + {c} = {x} seats."),
        "{x}",
    ),
    Story(
        _added_shared,
        "{n} has {a} {f} and {m} has {b}. They put them together and share them equally among {c} children. "
        "How many {f} does each child get?",
        ("Together they have {a} + {b} = {y} {f}.", "Each child gets {y} / {c} = {x} {f}."),
        "{x}",
    ),
    Story(
        _two_prices,
        "At {p}, {n} buys {a} books at {b} dollars each and {c} maps at {d} dollars each. "
        "How many dollars does {n} pay?",
        (
            "The books cost {a} * {b} = {y} dollars.",
            "The maps cost {c} * {d} = {z} dollars.",
            "Together that is {y} + {z} = {x} dollars.",
        ),
        "{x}",
    ),
    Story(
        _change,
        "{n} buys {a} plants at {b} dollars each and {c} pots at {d} dollars each, and pays with {e} dollars. "
        "How many dollars does {n} get back?",
        (
            "The plants cost {a} * {b} = {y} dollars.",
            "The pots cost {c} * {d} = {z} dollars.",
            "{n} gets back {e} - {y} - {z} = {x} dollars.",
        ),
        "{x}",
    ),
    Story(
        _half_left,
        "{n} has {a} {t}, gives half of them to {m}, and then gets {c} new ones. How many {t} does {n} have now?",
        ("Half of {a} is {a} / 2 = {b}.", "{n} has {b} + {c} = {x} {t}."),
        "{x}",
    ),
    Story(
        _numbers_taken_away,
        "A bus leaves with {a} people. At the first stop {b} get off and nobody gets on. How many stay on the bus?",
        ("On the bus stay {a} - {b} = {x} people.",),
        "{x}",
        unseen=True,
    ),
    Story(
        _times_less,
        "A hall has {a} rows of {b} chairs. Tonight {c} chairs are broken. How many people can sit?",
        ("The hall has {a} * {b} = {y} chairs.", "People can sit on {y} - {c} = {x} of them."),
        "{x}",
        unseen=True,
    ),
    Story(
        _two_prices,
        "{n} works {a} days of {b} hours in spring and {c} days of {d} hours in autumn. How many hours does {n} work?",
        (
            "In spring these are {a} * {b} = {y} hours.",
            "In autumn these are {c} * {d} = {z} hours.",
            "Together that is {y} + {z} = {x} hours.",
        ),
        "{x}",
        unseen=True,
    ),
)


def _row(story: Story, split: str, rng: random.Random) -> tuple[str, str, int]:
    """Question, solution and number of steps."""
    first, second = rng.sample(NAMES[split].split(), 2)
    words = {"n": first, "m": second, "t": rng.choice(THINGS), "f": rng.choice(FRUITS), "p": rng.choice(PLACES)}
    values = words | {name: str(number) for name, number in story.numbers(rng).items()}
    lines = [*story.steps, f"The answer is {story.answer}."]
    return story.question.format(**values), "\n".join(lines).format(**values), len(story.steps)


def build() -> dict[str, str]:
    """The JSON lines of each split. No question is in two of them, because each split has its own people."""
    texts: dict[str, str] = {}
    for split, count in COUNTS.items():
        unseen = UNSEEN_ROWS if split == "test" else 0
        rng = seeded("tuneoff word problems 1", split)
        rows: dict[str, tuple[str, bool, int]] = {}
        while len(rows) < count:
            hidden = len(rows) < unseen
            question, solution, steps = _row(rng.choice([one for one in STORIES if one.unseen == hidden]), split, rng)
            rows.setdefault(question, (solution, hidden, steps))
        questions = list(rows)
        rng.shuffle(questions)
        lines = []
        for number, question in enumerate(questions, start=1):
            solution, hidden, steps = rows[question]
            tags = ["unseen" if hidden else "seen", f"{steps} step{'s' * (steps > 1)}"]
            row = {
                "id": f"word-problems-{split}-{number:04d}",
                "question": question,
                "solution": solution,
                "tags": tags,
            }
            lines.append(json.dumps(row))
        texts[split] = "\n".join(lines) + "\n"
    return texts


def main(argv: list[str] | None = None) -> int:
    """Writes or checks the data files and returns the exit code."""
    return write_or_check(HERE / "data", build(), "bench.tools.build_word_problems", argv)


if __name__ == "__main__":
    sys.exit(main())
