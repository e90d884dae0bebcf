"""Labels that a prediction is chosen from: those of each example, and which of them its references name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.task import ChoicesConfig, Example, Split, Task, TaskError, require_choices
from bench.tasks.values import CellError, is_missing, text_of

# Where a record of lists has the choices; the other list is of their letters (ARC, CommonsenseQA, OpenBookQA).
TEXTS = "text"


def choices_in(value: Any) -> tuple[str, ...]:
    """The choices in a cell: a list, a record with the list ``text``, or a record of a text for each letter.

    Missing ones at the end are left out.

    Raises:
        CellError: The cell holds something else.
    """
    listed = value
    if isinstance(value, Mapping):
        listed = value[TEXTS] if TEXTS in value else [value[letter] for letter in sorted(value, key=str)]
    if not isinstance(listed, list | tuple) or any(isinstance(one, Mapping | list | tuple) for one in listed):
        raise CellError(f"must hold a list of choices, got {value!r:.200}")
    while listed and is_missing(listed[-1]):
        listed = listed[:-1]
    return tuple("" if is_missing(one) else text_of(one) for one in listed)


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
        mark = text.strip("()[].: ")
        place = ord(mark.upper()) - ord("A") if form == "letter" and len(mark) == 1 else -1
        if text.isdecimal() and form != "text":
            place = int(text) - (form == "letter")  # data with letters count from 1 where they have digits
        named = choices[place] if 0 <= place < len(choices) else None
    if named is None:
        hint = "" if form != "text" else "; references may be places or letters instead, see task.choices.reference"
        fault = {"text": "none", "place": "no place", "letter": "no letter"}[form]
        raise ValueError(f"the reference {reference!r} is {fault} of the choices {list(choices)!r}{hint}")
    return named
