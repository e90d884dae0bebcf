"""Conversations as text, by the chat template of a tokenizer: what a model reads before a turn, and what ends the turn.

Each assistant turn that is learned is a pair of its own: the conversation up to it, rendered as it is when the model is
to go on, and the turn. So templates that shorten earlier turns, e.g. drop their reasoning, show in training what they
show later, and no mask has to be found in a text.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from bench.models import base
from bench.task import Turn

# In place of an assistant's words, to see what a template writes around them.
MARK = "REPLY7F3A"
# Told to templates that ask for the date (Llama 3), so that a trial reads tomorrow what it reads today. It is what
# theirs say where they cannot ask.
TODAY = datetime.date(2024, 7, 26)
# What helps against templates that are of no use with a system turn.
_OTHER_PLACE = "; set system_in: user, or leave out the system prompt"
_NOW = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


@dataclass(frozen=True)
class Frame:
    """What stands around an assistant's next words."""

    read: str
    """The text up to them, which the model reads."""
    between: str
    """White space that the template puts in front of them."""
    closing: str
    """What the template puts behind them, the end of the turn first."""
    opened: str = ""
    """The end of ``read`` that the template writes only where the model is to go on, e.g. ``<think>``."""
    forced: str = ""
    """The end of ``read`` that the template writes only in front of words that are there, e.g. empty reasoning."""


@dataclass(frozen=True)
class ChatTemplate:
    """The template of a tokenizer, with settings of a task.

    Args:
        tokenizer: Of the model.
        options: Further variables of the template, e.g. ``enable_thinking``.
        system_prompt: For conversations without a system turn; None: there is none, but what the template may say.
        system_in: Whose turn has the system's words.
    """

    tokenizer: Any
    options: Mapping[str, Any]
    system_prompt: str | None
    system_in: Literal["system", "user"]

    def with_system(self, turns: Sequence[Turn]) -> list[Turn]:
        """A conversation with the system's turn, where it has one, as the settings say."""
        own = [text for role, text in turns if role == "system"]
        others = [turn for turn in turns if turn[0] != "system"]
        system_text = "\n\n".join(own) if own else self.system_prompt
        if system_text is None:
            return others
        if self.system_in == "system":
            return [("system", system_text), *others]
        first = next((place for place, (role, _) in enumerate(others) if role == "user"), None)
        if first is None:
            return [("user", system_text), *others]
        others[first] = ("user", f"{system_text}\n\n{others[first][1]}".strip())
        return others

    def frame(self, turns: Sequence[Turn]) -> Frame:
        """What stands around the assistant's turn behind these.

        Raises:
            ModelError: There is no template, it refuses the turns, leaves out what a user or the system says, or begins
                assistant turns otherwise than it asks for them.
        """
        prompt = self._rendered(turns, asks=True)
        answered = self._rendered([*turns, ("assistant", MARK)], asks=False)
        opening, found, closing = answered.rpartition(MARK)
        if not found:
            raise self._unusable("leaves out what the assistant says")
        if prompt.startswith(opening):
            frame = Frame(prompt, "", closing, opened=prompt[len(opening) :])
        elif opening.startswith(prompt) and not opening[len(prompt) :].strip():
            frame = Frame(prompt, opening[len(prompt) :], closing)
        elif opening.startswith(prompt):
            frame = Frame(opening, "", closing, forced=opening[len(prompt) :])
        else:
            remedy = _OTHER_PLACE if any(role == "system" for role, _ in turns) else ""
            raise self._unusable(
                f"asks for a turn of the assistant with {prompt[-40:]!r}, and begins one with {opening[-40:]!r}{remedy}"
            )
        for role, text in turns:
            if role != "assistant" and text.strip() not in frame.read:
                remedy = _OTHER_PLACE if role == "system" else ""
                raise self._unusable(f"leaves out or changes a turn of the {role}, {text.strip()[:60]!r}{remedy}")
        return frame

    def words(self, frame: Frame, reference: str) -> str:
        """What the assistant is to say within a frame: a reference without white space around it.

        Raises:
            ModelError: The reference has reasoning of its own where the template puts an empty one ahead of it.
        """
        text = reference.strip()
        if _reasons(text, frame.forced.split()):
            raise self._unusable(
                f"writes {frame.forced.strip()!r} ahead of what the assistant says, and a reference begins with "
                f"{text[:40]!r}; take this part out of the references"
            )
        return text.removeprefix(frame.opened.strip()).lstrip() if frame.opened.strip() else text

    def _rendered(self, turns: Sequence[Turn], asks: bool) -> str:
        messages = [{"role": role, "content": text} for role, text in turns]
        template = self._template
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=asks, **self.options
            )
        except Exception as error:
            said = " ".join(str(error).split()) or type(error).__name__
            has_system = any(role == "system" for role, _ in turns)
            remedy = "; set system_in: user if it knows no system turns" if has_system else ""
            roles = ", ".join(role for role, _ in turns)
            raise self._unusable(f"refuses the turns {roles}: {said}{remedy}") from error
        return text

    @cached_property
    def _template(self) -> str:
        """What the tokenizer has, on the same day whenever it is rendered."""
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise base.ModelError(
                "task.template: chat: the tokenizer has no chat template; take a model that has one, or write the "
                "template out, e.g. 'User: {source}\\nAssistant:'"
            )
        template: str = self.tokenizer.get_chat_template()
        return _NOW.sub(lambda asked: repr(TODAY.strftime(asked[2])), template)

    def _unusable(self, why: str) -> base.ModelError:
        return base.ModelError(f"task.template: chat: the tokenizer's chat template {why}")


def _reasons(text: str, forced: Sequence[str]) -> bool:
    """Whether a text has reasoning of its own, by the marks around the empty one that a template forces, if it does.

    A template that asks behind an opened ``<think>`` forces ``</think>`` alone.
    """
    if not forced:
        return False
    opened, closed = forced[0].replace("</", "<", 1), forced[-1]
    return text.startswith(opened) or (closed.startswith("</") and closed in text)


def exchanges(turns: Sequence[Turn]) -> list[list[Turn]]:
    """Turns cut in front of every user turn that does not follow another one."""
    found: list[list[Turn]] = []
    for turn in turns:
        if not found or (turn[0] == "user" and found[-1][-1][0] != "user"):
            found.append([])
        found[-1].append(turn)
    return found
