"""Stop strings that several tokens spell together: which token would complete one, after what was said."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from bench.models.text_ends import first_stop, token_texts


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
        self._beginning_with = functools.cache(self._find_beginning_with)

    def text(self, tokens: Sequence[int]) -> str:
        """What these tokens say."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def completing(self, tokens: Sequence[int]) -> frozenset[int]:
        """The tokens that would complete a stop string behind these ones."""
        tail = self.text(tokens[-self._reach :])
        found: frozenset[int] = frozenset()
        for stop in self._stops:
            for begun in range(1, len(stop)):
                if tail.endswith(stop[:begun]):
                    found |= self._beginning_with(stop[begun:])
        return found

    def reached(self, tokens: Sequence[int]) -> bool:
        """Whether these tokens hold a stop string."""
        return first_stop(self.text(tokens), self._stops) is not None

    def length_until_end(self, tokens: Sequence[int]) -> int:
        """How many of these tokens there are up to and including the one that completes a stop string."""
        if not self.reached(tokens):
            return len(tokens)
        return next(length for length in range(1, len(tokens) + 1) if self.reached(tokens[:length]))

    def _find_beginning_with(self, rest: str) -> frozenset[int]:
        texts = token_texts(self._tokenizer, self._vocabulary)
        return frozenset(token for token, text in texts if text.startswith(rest))


class StopsInText:
    """For one call of transformers' ``generate``: rows whose new tokens hold a stop string are over."""

    def __init__(self, stops: StopStrings) -> None:
        self._stops = stops
        self._start: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if self._start is None:
            self._start = input_ids.shape[1] - 1  # asked for the first time when there is one new token
        rows = [self._stops.reached(row) for row in input_ids[:, self._start :].tolist()]
        return torch.tensor(rows, dtype=torch.bool, device=input_ids.device)


class NoStopYet:
    """For one call of ``generate``: until a text is long enough, no token completes a stop string."""

    def __init__(self, stops: StopStrings, min_new_tokens: int) -> None:
        self._stops, self._min_new_tokens = stops, min_new_tokens
        self._start: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._start is None:
            self._start = input_ids.shape[1]
        if input_ids.shape[1] - self._start >= self._min_new_tokens:
            return scores
        scores = scores.clone()
        for row, tokens in enumerate(input_ids[:, self._start :].tolist()):
            scores[row, sorted(self._stops.completing(tokens))] = float("-inf")
        return scores
