"""Labels that a prediction is chosen from: those of each example, and which of them its references name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench.task import ChoicesConfig, Example, Split, Task, TaskError, require_choices


def with_choices(task: Task, split: Split, examples: Sequence[Example]) -> list[Example]:
    """The same examples, each with its choices, and with references that are written as these are.

    Where the task chooses nothing they are as they were.

    Raises:
        TaskError: An example has no choices, or a reference is none of them.
    """
    settings: ChoicesConfig | None = task.config.choices
    if settings is None:
        return list(examples)
    found = []
    for example in examples:
        choices = settings.labels or example.choices
        try:
            require_choices(choices)
            references = tuple(_chosen(text, choices, settings.reference) for text in example.references)
        except ValueError as error:
            raise TaskError(f"task.choices: the {split} split, example {example.id!r}: {error}") from error
        found.append(replace(example, choices=choices, references=references))
    return found


def _chosen(reference: str, choices: Sequence[str], form: str) -> str:
    """The choice that a reference names.

    Raises:
        ValueError: It names none.
    """
    text = " ".join(reference.split())
    if form == "text":
        named = next((choice for choice in choices if " ".join(choice.split()) == text), None)
    else:
        place = ord(text.upper()) - ord("A") if form == "letter" and len(text) == 1 else -1
        place = int(text) if form == "place" and text.isdecimal() else place
        named = choices[place] if 0 <= place < len(choices) else None
    if named is None:
        hint = "" if form != "text" else "; references may be places or letters instead, see task.choices.reference"
        fault = {"text": "none", "place": "no place", "letter": "no letter"}[form]
        raise ValueError(f"the reference {reference!r} is {fault} of the choices {list(choices)!r}{hint}")
    return named
