"""The first and last tokens of a prompt in a call of a model, where interventions on hidden states act.

B batch, T tokens in this call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bench.method import positions_of
from methods.parts.attention_sites import has_encoder, stacks
from methods.parts.token_positions import (
    POSITION_ARGUMENTS,
    accept_source_lengths,
    required_source_lengths,
    token_positions,
)


@dataclass
class PromptPlaces:
    """Hooks that find the first and last tokens of each row's prompt, at any padding, with or without a cache.

    The prompt is what the encoder reads, or the source of a decoder, whose length the caller gives. Of a prompt with n
    tokens at most n // 2 are first ones, and as many last ones, so that none is both.

    Source: ``get_intervention_locations`` of stanfordnlp/pyreft.

    Args:
        first: How many tokens from the beginning.
        last: How many tokens before the end.
    """

    first: int
    last: int
    _lengths: torch.Tensor | None = field(default=None, init=False)  # (B,)
    _of_call: tuple[torch.Tensor, torch.Tensor] | None = field(default=None, init=False)

    def watch(self, model: Any) -> None:
        """Find the places in each call from now on. The forward of a decoder takes ``source_lengths`` then."""
        if has_encoder(model):
            stacks(model)["encoder"].register_forward_pre_hook(self._in_encoder, with_kwargs=True)
            return
        accept_source_lengths(model)
        model.register_forward_pre_hook(self._take_lengths, with_kwargs=True)
        stacks(model)["decoder"].register_forward_pre_hook(self._in_decoder, with_kwargs=True)

    def of_call(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The first and the last tokens of prompts among those of this call, each ``(B, T)``, true where they are."""
        if self._of_call is None:
            raise RuntimeError("a block ran without the model around it, so that the places of its prompt are unknown")
        return self._of_call

    def _take_lengths(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._lengths = kwargs.pop("source_lengths", None)
        return args, kwargs

    def _in_decoder(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = {name: kwargs.get(name) for name in POSITION_ARGUMENTS[len(args) :]}
        positions = token_positions(*args, **given)
        named = {**dict(zip(POSITION_ARGUMENTS, args, strict=False)), **given}
        mask = named["attention_mask"]
        real = None
        if isinstance(mask, torch.Tensor) and mask.dim() == 2:
            real = mask[:, -positions.shape[1] :] == 1
        self._find(positions, required_source_lengths(self._lengths), real)

    def _in_encoder(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = args[0] if args else kwargs.get("input_ids")
        tokens = kwargs["inputs_embeds"] if tokens is None else tokens
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        self._find(positions_of(mask), mask.long().sum(-1), mask == 1)

    def _find(self, positions: torch.Tensor, lengths: torch.Tensor, real: torch.Tensor | None) -> None:
        half, end = (lengths // 2)[:, None], lengths[:, None]
        first = positions < half.clamp(max=self.first)
        last = (positions >= end - half.clamp(max=self.last)) & (positions < end)
        self._of_call = (first, last) if real is None else (first & real, last & real)
