"""Logits processors and stopping criteria for ``generate`` of transformers. Each object serves one call."""

from __future__ import annotations

from typing import Any

import torch

from bench.decode.sampling import drawn
from bench.decode.stop_strings import StopStrings


class _OfNewTokens:
    """Separates new tokens from the source, or from the decoder's start token, which precedes them.

    Args:
        num_new: The number of new tokens at the first call.
    """

    def __init__(self, num_new: int = 0) -> None:
        self._num_new = num_new
        self._start: int | None = None

    def _new(self, input_ids: torch.Tensor) -> torch.Tensor:
        if self._start is None:
            self._start = input_ids.shape[1] - self._num_new
        return input_ids[:, self._start :]


class NoRepeatsInText(_OfNewTokens):
    """Forbids tokens that would repeat an n-gram of the text."""

    def __init__(self, size: int) -> None:
        from transformers import NoRepeatNGramLogitsProcessor

        super().__init__()
        self._processor = NoRepeatNGramLogitsProcessor(size)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        allowed: torch.Tensor = self._processor(self._new(input_ids), scores)
        return allowed


class StopsInText(_OfNewTokens):
    """Ends a row when its text holds a stop string."""

    def __init__(self, stops: StopStrings) -> None:
        super().__init__(num_new=1)
        self._stops = stops

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        rows = [self._stops.reached(row) for row in self._new(input_ids).tolist()]
        return torch.tensor(rows, dtype=torch.bool, device=input_ids.device)


class NoStopYet(_OfNewTokens):
    """Forbids tokens that complete a stop string, until a text is long enough."""

    def __init__(self, stops: StopStrings, min_new_tokens: int) -> None:
        super().__init__()
        self._stops, self._min_new_tokens = stops, min_new_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        new = self._new(input_ids)
        if new.shape[1] >= self._min_new_tokens:
            return scores
        scores = scores.clone()
        for row, tokens in enumerate(new.tolist()):
            scores[row, sorted(self._stops.completing(tokens))] = float("-inf")
        return scores


class DrawsTokens(_OfNewTokens):
    """Leaves one token possible at each step, which is drawn. It has to be the last processor.

    Args:
        draws: ``(B, G)``, see :func:`bench.decode.sampling.draws_of`.
        temperature: Above 0.
        top_p: The share of the likeliest tokens that are drawn from.
    """

    def __init__(self, draws: torch.Tensor, temperature: float, top_p: float) -> None:
        super().__init__()
        self._draws, self._temperature, self._top_p = draws, temperature, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        draws = self._draws[:, self._new(input_ids).shape[1]]
        tokens = drawn(scores, draws, self._temperature, self._top_p)
        return torch.full_like(scores, float("-inf")).scatter(1, tokens[:, None], 0.0)
