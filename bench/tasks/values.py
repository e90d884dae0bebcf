"""Turns cells of tables and values of records into text, by one rule for each type, see docs/use/tasks.md.

A type without a rule is an error, so that Python's own notation of an object never gets into a prompt.
"""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

from bench.task import linearise

Facts = tuple[tuple[str, ...], ...]

# Between these magnitudes a number is written without an exponent.
SMALLEST_PLAIN, LARGEST_PLAIN = 1e-9, 1e16

# The keys of a turn in the two usual formats of conversations, and who speaks, by what data sets call them.
TURNS = (("role", "content"), ("from", "value"))
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "ai", "bing", "bard"), "assistant"),
}
SPEAKERS = {*ROLES, "tool", "function"}
_WRITTEN_TURN = re.compile(rf"""["'](?:role|from)["']\s*:\s*["'](?:{"|".join(sorted(SPEAKERS))})["']""")


class CellError(ValueError):
    """A value has no text, or must not become text. The message describes the value and not its place."""


@dataclass(frozen=True)
class KeyOrder:
    """The order in which the keys of records are read, which may differ from their order in the file.

    Unknown keys come last, by alphabet.
    """

    known: tuple[str, ...] = ()

    def items(self, record: Mapping[Any, Any]) -> list[tuple[str, Any]]:
        """Keys and values of a record in this order."""
        rank = {key: number for number, key in enumerate(self.known)}
        return sorted(
            ((str(key), value) for key, value in record.items()),
            key=lambda item: (rank.get(item[0], len(rank)), item[0]),
        )


ALPHABET = KeyOrder()


def keys_in_order(value: Any) -> Iterator[str]:
    """The keys of all records inside a value, in their order; a key may occur more than once."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from keys_in_order(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from keys_in_order(inner)


def holds_records(value: Any) -> bool:
    """Whether a value contains a record, so that the order of keys matters."""
    return next(keys_in_order(value), None) is not None


def is_missing(value: Any) -> bool:
    """Whether a value is None, NaN, NaT, a blank text, or a list or record of missing values."""
    if value is None:
        return True
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, Mapping):
        return all(map(is_missing, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_missing, value))
    if isinstance(value, Decimal):
        return value.is_nan()
    return isinstance(value, Real | datetime.date | datetime.timedelta) and value != value  # NaN, NaT


def text_of(value: Any, order: KeyOrder = ALPHABET) -> str:
    """The text of a value that is not missing.

    Raises:
        CellError: There is no rule for its type, or it is a conversation.
    """
    refuse_conversation(value)
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return linearise(facts_of(value, order)[0])
    if isinstance(value, list | tuple):
        if any(isinstance(item, Mapping | list | tuple) for item in value):
            return linearise(facts_of(value, order)[0])
        return ", ".join(text_of(item, order) for item in value if not is_missing(item))
    return _simple_text(value)


def _simple_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, Real):
        return _number(float(value))
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return str(datetime.timedelta(microseconds=value // datetime.timedelta(microseconds=1)))
    if isinstance(value, uuid.UUID):
        return str(value)
    raise CellError(f"holds a value of the type {type(value).__name__}, which has no text")


def _number(value: float) -> str:
    """The fewest digits that denote this number, without a decimal point if it is whole."""
    if value.is_integer() and abs(value) < LARGEST_PLAIN:
        return str(int(value))
    if SMALLEST_PLAIN <= abs(value) < LARGEST_PLAIN:
        return format(Decimal(repr(value)), "f")
    return repr(value)  # with an exponent, or inf


def facts_of(value: Any, order: KeyOrder = ALPHABET) -> tuple[Facts, int]:
    """The facts of a record or a list, and the number of facts that were left out because a part is missing.

    Each key of a record and its value are a fact; if the value is a record or a list of lists, the key precedes each of
    its facts. Each list and record in a list is a fact; of a record only the values count, so that ``subject``,
    ``property`` and ``object`` are a triple. A record of lists of one length, the form in which ``datasets`` returns a
    sequence of structs, is read as a list of records.

    Raises:
        CellError: A part has no text, or it is a conversation.
    """
    refuse_conversation(value)
    items = _turned(value) if isinstance(value, Mapping) else value
    if items is None:
        return _facts_of_record(value, order)
    if not isinstance(items, list | tuple):
        raise CellError(f"must be a list of facts or a record, got {value!r}")
    facts: list[tuple[str, ...]] = []
    left_out = 0
    for item in items:
        refuse_conversation(item)
        parts = [part for _, part in order.items(item)] if isinstance(item, Mapping) else item
        if not isinstance(parts, list | tuple):
            parts = [parts]
        if not parts or any(map(is_missing, parts)):
            left_out += 1
        else:
            facts.append(tuple(text_of(part, order) for part in parts))
    return tuple(facts), left_out


def _facts_of_record(record: Mapping[Any, Any], order: KeyOrder) -> tuple[Facts, int]:
    facts: list[tuple[str, ...]] = []
    left_out = 0
    for key, value in order.items(record):
        nested = isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value)
        if is_missing(value):
            left_out += 1
        elif nested or isinstance(value, Mapping):
            inner, missing = facts_of(value, order)
            facts += [(key, *fact) for fact in inner]
            left_out += missing
        else:
            facts.append((key, text_of(value, order)))
    return tuple(facts), left_out


def _turned(record: Mapping[Any, Any]) -> list[dict[Any, Any]] | None:
    """The list of records for a record of at least two lists of one length; None for other records."""
    columns = list(record.values())
    if len(columns) < 2 or not all(isinstance(column, list | tuple) for column in columns):
        return None
    if len(set(map(len, columns))) != 1:
        return None
    return [dict(zip(record, row, strict=True)) for row in zip(*columns, strict=True)]


def refuse_conversation(value: Any) -> None:
    """Refuse the turns of a chat, as a list of records, a record of lists, or JSON text.

    Raises:
        CellError: The value is a conversation, which as one source would hold the answer.
    """
    if isinstance(value, str):
        start = value[:500].lstrip()
        if start.startswith("[") and (turn_match := _WRITTEN_TURN.search(start)) is not None:
            raise CellError(_conversation(turn_match.group()))
        return
    if not isinstance(value, Mapping | list | tuple):
        return
    turns = (_turned(value) or []) if isinstance(value, Mapping) else value
    for speaker, text in TURNS:
        if turns and all(
            isinstance(turn, Mapping) and speaker in turn and text in turn and str(turn[speaker]).lower() in SPEAKERS
            for turn in turns
        ):
            raise CellError(_conversation(", ".join(dict.fromkeys(str(turn[speaker]) for turn in turns))))


def _conversation(turns: str) -> str:
    return (
        f"is a conversation ({turns}), which as one text would hold the answer. The task chat reads conversations "
        "(name: chat, messages: COLUMN); or make two columns of it, one with what is asked, for 'source', and one with "
        "the answer, for 'references'"
    )
