"""Stop strings that several tokens spell together: finds the tokens that would complete one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.models.text_ends import MOST_BYTES, first_stop, last_bytes, text_of, tokens_beginning_with


class StopStrings:
    """Stop strings of more than one byte, in terms of tokens.

    A token that contains a whole stop string counts as an end token. Another token ends a text if the tokens before it
    end with the first part of a stop string and its own bytes begin with the rest. Parts are counted in bytes, because
    tokens may begin and end within a character.

    Args:
        tokenizer: Of the model.
        stops: Strings that end a text.
        vocabulary: The number of tokens that the model can generate; None: all of its tokenizer.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], vocabulary: int | None) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._vocabulary = vocabulary
        self._bytes = [stop.encode() for stop in stops]
        # A token has at least one byte; the first of these may be the end of a character.
        self._reach = max(map(len, self._bytes)) + MOST_BYTES

    def completing(self, tokens: Sequence[int]) -> frozenset[int]:
        """The tokens that would complete a stop string after these tokens."""
        tail = last_bytes(self._tokenizer, tokens, self._reach, self._vocabulary)
        last_tokens: frozenset[int] = frozenset()
        for stop in self._bytes:
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
