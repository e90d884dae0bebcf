"""Builds the task ``requests``: requests to a shop and the desk that answers them, always byte for byte the same.

Run ``python -m bench.tools.build_requests`` to write ``data/*.jsonl.gz`` and add ``--check`` to only compare the
committed files with what the builder makes.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from bench.tools.shipped_rows import seeded, write_or_check

HERE = Path(__file__).resolve().parents[1] / "tasks" / "requests"
COUNTS = {"train": 1500, "dev": 200, "test": 400}
UNSEEN_ROWS = 100
# How common each desk is, in percent: the sets are not balanced, so that accuracy and macro-F1 differ.
SHARES = {"delivery": 30, "payment": 25, "returns": 20, "account": 15, "advice": 10}
ITEMS = {
    "train": [
        "lamp",
        "kettle",
        "tent",
        "scarf",
        "chair",
        "radio",
        "bicycle",
        "backpack",
        "clock",
        "blanket",
        "keyboard",
        "mirror",
    ],
    "dev": ["toaster", "jacket", "bookcase", "drill"],
    "test": ["teapot", "hammock", "armchair", "camera", "sweater", "telescope"],
}
OPENINGS = ("", "", "Hello.", "Hi there.", "Good morning.", "Dear team,", "To whom it may concern:")
CLOSINGS = ("", "", "Thank you.", "Many thanks.", "Please answer soon.", "Best wishes.")
# Asides, often with words that belong to another desk. Requests to the desk that is named never get the aside.
ASIDES = (
    ("", None),
    ("", None),
    ("It is a present for my sister.", None),
    ("I am a customer of many years.", None),
    ("The {i} was delivered on Monday.", "delivery"),
    ("I paid for the {i} last week.", "payment"),
    ("I do not want to return the {i}.", "returns"),
    ("My password works.", "account"),
    ("Your advice on the {i} was good.", "advice"),
)
ASKED = {
    "delivery": (
        "When will the {i} be here?",
        "The parcel with the {i} has not come.",
        "The driver left the {i} with a stranger.",
        "Can you send the {i} to my office instead?",
        "The tracking of my {i} has not moved for days.",
    ),
    "payment": (
        "You charged me twice for the {i}.",
        "The bill for the {i} shows a wrong sum.",
        "My card was refused when I bought the {i}.",
        "Can I pay for the {i} in three parts?",
        "I need an invoice for the {i} with my company on it.",
        "The discount for the {i} was not taken off.",
    ),
    "returns": (
        "I want to send the {i} back.",
        "The {i} broke on the first day and I want another one.",
        "How do I exchange the {i} for a smaller one?",
        "The {i} is not what I ordered, take it back please.",
        "Which label do I put on the box with the {i} that goes back to you?",
        "I sent the {i} back and have not got a new one.",
    ),
    "account": (
        "I cannot log in to see my {i}.",
        "Please change the address in my profile before I order the {i}.",
        "I forgot my password after I ordered the {i}.",
        "Delete all you know about me, the {i} included.",
        "Somebody ordered the {i} with my name and password.",
    ),
    "advice": (
        "Does the {i} come in green?",
        "Which {i} is best for a small room?",
        "Is the {i} safe for children?",
        "How do I clean the {i}?",
        "Would you take the cheap {i} or the dear one?",
    ),
}
# Asked for in the test split only.
UNSEEN = {
    "delivery": ("The courier says that my street does not exist, and keeps the {i}.", "Is the {i} on its way yet?"),
    "payment": ("My bank shows a sum for the {i} that I never agreed to.", "May I settle the {i} by bank transfer?"),
    "returns": ("The {i} has a crack, so I will not keep it.", "By what day must the {i} be back with you?"),
    "account": ("No code comes to my telephone when I sign in for the {i}.", "Stop all letters about the {i} to me."),
    "advice": ("What does the {i} weigh?", "Will the {i} stand rain?"),
}


def _text(said: str, desk: str, item: str, rng: random.Random) -> str:
    """The text of a request: a greeting, what the customer asks for, and perhaps an aside before or after it."""
    aside = rng.choice([text for text, unless in ASIDES if unless != desk])
    body = [said, aside] if rng.random() < 0.5 else [aside, said]
    return " ".join(filter(None, [rng.choice(OPENINGS), *body, rng.choice(CLOSINGS)])).format(i=item)


def build() -> dict[str, str]:
    """The JSON lines of each split. No request is in two of them: they are about different things."""
    texts: dict[str, str] = {}
    for split, count in COUNTS.items():
        unseen = UNSEEN_ROWS if split == "test" else 0
        rng = seeded("tuneoff requests 1", split)
        rows: dict[str, tuple[str, bool]] = {}
        while len(rows) < count:
            hidden = len(rows) < unseen
            desk = rng.choices(list(SHARES), list(SHARES.values()))[0]
            said = rng.choice((UNSEEN if hidden else ASKED)[desk])
            rows.setdefault(_text(said, desk, rng.choice(ITEMS[split]), rng), (desk, hidden))
        requests = list(rows)
        rng.shuffle(requests)
        lines = []
        for number, request in enumerate(requests, start=1):
            desk, hidden = rows[request]
            tags = ["unseen" if hidden else "seen", desk]
            lines.append(
                json.dumps({"id": f"requests-{split}-{number:04d}", "text": request, "desk": desk, "tags": tags})
            )
        texts[split] = "\n".join(lines) + "\n"
    return texts


def main(argv: list[str] | None = None) -> int:
    """Writes or checks the data files and returns the exit code."""
    return write_or_check(HERE / "data", build(), "bench.tools.build_requests", argv)


if __name__ == "__main__":
    sys.exit(main())
