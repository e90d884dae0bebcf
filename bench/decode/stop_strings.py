"""Stop strings that several tokens spell together: which token would complete one, after what was said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.models.text_ends import first_stop, text_of, tokens_beginning_with


class StopStrings:
    """Stop strings of more than one character, as the decoder sees them.

    A token that brings a whole stop string counts as an end token. Of the others, one ends a text if the string
    that began in the tokens before it is completed by how its own text begins.

    Args:
        tokenizer: Of the model.
        stops: Strings that end a text.
        vocabulary: How many tokens the model can say; None: all of its tokenizer.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], vocabulary: int | None) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._vocabulary = vocabulary
        # A token has a byte of text at least, and a character four bytes at most.
        self._reach = 4 * max(map(len, stops))

    def completing(self, tokens: Sequence[int]) -> frozenset[int]:
        """The tokens that would complete a stop string behind these ones."""
        tail = text_of(self._tokenizer, tokens[-self._reach :])
        found: frozenset[int] = frozenset()
        for stop in self._stops:
            for begun in range(1, len(stop)):
                if tail.endswith(stop[:begun]):
                    found |= tokens_beginning_with(self._tokenizer, stop[begun:], self._vocabulary)
        return found

    def reached(self, tokens: Sequence[int]) -> bool:
        """Whether these tokens hold a stop string."""
        return first_stop(text_of(self._tokenizer, tokens), self._stops) is not None

    def length_until_end(self, tokens: Sequence[int]) -> int:
        """How many of these tokens there are up to and including the one that completes a stop string."""
        if not self.reached(tokens):
            return len(tokens)
        return next(length for length in range(1, len(tokens) + 1) if self.reached(tokens[:length]))
