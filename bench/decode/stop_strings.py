"""Stop strings that several tokens spell together: finds the tokens that would complete one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.models.text_ends import first_stop, text_of, tokens_beginning_with


class StopStrings:
    """Stop strings of more than one character, in terms of tokens.

    A token that contains a whole stop string counts as an end token. Another token ends a text if the tokens before it
    end with the first part of a stop string and its own text begins with the rest.

    Args:
        tokenizer: Of the model.
        stops: Strings that end a text.
        vocabulary: The number of tokens that the model can generate; None: all of its tokenizer.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], vocabulary: int | None) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._vocabulary = vocabulary
        # A token has at least one byte of text, and a character has at most four.
        self._reach = 4 * max(map(len, stops))

    def completing(self, tokens: Sequence[int]) -> frozenset[int]:
        """The tokens that would complete a stop string after these tokens."""
        tail = text_of(self._tokenizer, tokens[-self._reach :])
        last_tokens: frozenset[int] = frozenset()
        for stop in self._stops:
            for begun in range(1, len(stop)):
                if tail.endswith(stop[:begun]):
                    last_tokens |= tokens_beginning_with(self._tokenizer, stop[begun:], self._vocabulary)
        return last_tokens

    def reached(self, tokens: Sequence[int]) -> bool:
        """Whether these tokens hold a stop string."""
        return first_stop(text_of(self._tokenizer, tokens), self._stops) is not None

    def length_until_end(self, tokens: Sequence[int]) -> int:
        """The number of tokens up to and including the one that completes a stop string."""
        if not self.reached(tokens):
            return len(tokens)
        return next(length for length in range(1, len(tokens) + 1) if self.reached(tokens[:length]))
