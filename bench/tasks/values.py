"""What a cell of a table or a value of a record is as text: one rule for each type, tabled in docs/use/tasks.md.

Whatever has no rule is an error, so that no object of Python ever stands in a prompt as Python writes it.
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

# The keys of a turn in the two forms that conversations are stored in, and who speaks.
TURNS = (("role", "content"), ("from", "value"))
SPEAKERS = {"system", "developer", "user", "human", "assistant", "gpt", "model", "bot", "tool", "function"}
_WRITTEN_TURN = re.compile(rf"""["'](?:role|from)["']\s*:\s*["'](?:{"|".join(sorted(SPEAKERS))})["']""")


class CellError(ValueError):
    """A value has no text, or must not be made one. The message says what it is, and not where."""


@dataclass(frozen=True)
class KeyOrder:
    """The order in which the keys of records are read, whatever order a file has them in.

    Keys that it does not know come last, by alphabet.
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
    """The keys of all records within a value, as they stand there; some may come twice."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from keys_in_order(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from keys_in_order(inner)


def holds_records(value: Any) -> bool:
    """Whether there is a record in a value, so that an order of keys matters."""
    return next(keys_in_order(value), None) is not None


def is_missing(value: Any) -> bool:
    """Nothing, not a number, no time, a text of spaces, or a list or record in which all is missing."""
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
    """A value that is not missing as text.

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
    """The fewest digits that mean this number; none behind the point where it is whole."""
    if value.is_integer() and abs(value) < LARGEST_PLAIN:
        return str(int(value))
    if SMALLEST_PLAIN <= abs(value) < LARGEST_PLAIN:
        return format(Decimal(repr(value)), "f")
    return repr(value)  # with an exponent, or inf


def facts_of(value: Any, order: KeyOrder = ALPHABET) -> tuple[Facts, int]:
    """The facts of a record or of a list, and how many were left out because a part of them is missing.

    A record makes a fact of each key and its value; within records and lists of lists the key stands in front of each
    fact. A list makes a fact of each list and record in it, of a record its values alone: ``subject``, ``property`` and
    ``object`` are a triple. A record of lists of one length, as ``datasets`` gives a sequence of structs, is read as
    the list of records that it stands for.

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
    """The records that a record of at least two lists of one length stands for; None where it is another one."""
    columns = list(record.values())
    if len(columns) < 2 or not all(isinstance(column, list | tuple) for column in columns):
        return None
    if len(set(map(len, columns))) != 1:
        return None
    return [dict(zip(record, row, strict=True)) for row in zip(*columns, strict=True)]


def refuse_conversation(value: Any) -> None:
    """Refuse turns of a chat, in either form, as a list of records, turned inside out, or written as JSON.

    Raises:
        CellError: As one source they would hold the answer.
    """
    if isinstance(value, str):
        start = value[:500].lstrip()
        if start.startswith("[") and (found := _WRITTEN_TURN.search(start)) is not None:
            raise CellError(_conversation(found.group()))
        return
    if not isinstance(value, Mapping | list | tuple):
        return
    turns = (_turned(value) or []) if isinstance(value, Mapping) else value
    for speaker, said in TURNS:
        if turns and all(
            isinstance(turn, Mapping) and speaker in turn and said in turn and str(turn[speaker]).lower() in SPEAKERS
            for turn in turns
        ):
            raise CellError(_conversation(", ".join(dict.fromkeys(str(turn[speaker]) for turn in turns))))


def _conversation(turns: str) -> str:
    return (
        f"is a conversation ({turns}), which as one text would hold the answer. Conversations are not read: make two "
        "columns of it, one with what is asked, for 'source', and one with the answer, for 'references'"
    )
