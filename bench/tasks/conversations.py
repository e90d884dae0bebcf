"""Conversations as data sets hold them: turns of role and content, or of from and value (ShareGPT)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bench.task import Turn
from bench.tasks.values import ROLES, TURNS, CellError, is_missing

OF_TOOLS = ("tool", "function", "observation", "ipython", "function_call", "function_response", "tool_call")
CALLS = ("tool_calls", "function_call", "tools", "functions")


class DataTurn(NamedTuple):
    """One turn, and whether it is to be learned."""

    role: str
    text: str
    counts: bool

    @property
    def turn(self) -> Turn:
        return self.role, self.text


class Reply(NamedTuple):
    """An assistant's turn behind what was said before it."""

    history: tuple[Turn, ...]
    text: str


def turns_in(value: Any) -> list[DataTurn]:
    """The turns of a conversation.

    Raises:
        CellError: It is none, or one with tools, pictures or a system turn in its midst.
    """
    found = [_data_turn(turn) for turn in _turns(value)]
    roles = [one.role for one in found]
    if "system" in roles[next((place for place, role in enumerate(roles) if role != "system"), len(roles)) :]:
        raise CellError("has a system turn behind other turns, which chat templates do not know; put it first")
    return found


def replies_in(turns: Sequence[DataTurn]) -> Iterator[Reply]:
    """The assistant's turns that count, each with all turns before it.

    Turns of the assistant before the first one of a user answer nothing: they are neither learned nor shown.
    """
    history: list[Turn] = []
    for one in turns:
        user_spoke = any(role == "user" for role, _ in history)
        if one.role == "assistant" and not user_spoke:
            continue
        if one.role == "assistant" and one.counts:
            yield Reply(tuple(history), one.text)
        history.append(one.turn)


def _turns(value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping):  # as datasets gives a sequence of structs
        columns = [list(column) if isinstance(column, list | tuple) else None for column in value.values()]
        if not columns or None in columns or len({len(column) for column in columns if column is not None}) != 1:
            raise CellError("must be a list of turns")
        return [dict(zip(value, cells, strict=True)) for cells in zip(*filter(None, columns), strict=True)]
    if not isinstance(value, list | tuple):
        raise CellError(f"must be a list of turns, got {value!r:.80}")
    return value


def _data_turn(turn: Any) -> DataTurn:
    form = next((keys for keys in TURNS if isinstance(turn, Mapping) and keys[0] in turn), None)
    if form is None:
        raise CellError(f"has a turn without role and content, or from and value: {turn!r:.80}")
    speaker = str(turn[form[0]]).strip().lower()
    called = next((key for key in CALLS if not is_missing(turn.get(key))), None)
    if speaker in OF_TOOLS or called is not None:
        what = f"a turn of the role {speaker!r}" if called is None else f"a turn with {called!r}"
        raise CellError(f"has {what}: conversations with tools are not supported; leave them out of the data")
    if speaker not in ROLES:
        raise CellError(f"has a turn of {speaker!r}; known are {', '.join(ROLES)}")
    return DataTurn(ROLES[speaker], _text(turn.get(form[1])), turn.get("weight") != 0)


def _text(content: Any) -> str:
    """A text, or the texts of its parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise CellError(f"has a turn whose content is no text: {content!r:.80}")
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise CellError(f"has a turn with a part of the type {kind!r}; only texts are supported")
        texts.append(part["text"])
    return "".join(texts)
