"""The positions of tokens beside a soft prompt, and the tokens that see the prompt.

B batch, T tokens in this call, P prompt tokens.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bench.method import positions_of
from methods.parts.attention_sites import stacks


def token_positions(
    input_ids: torch.Tensor | None = None,
    attention_mask: Any = None,
    position_ids: torch.Tensor | None = None,
    past_key_values: Any = None,
    inputs_embeds: torch.Tensor | None = None,
    cache: Any = None,
) -> torch.Tensor:
    """Positions ``(B or 1, T)`` of the tokens of a decoder's call, if the caller gives none. Padding does not count.

    It takes the arguments of decoders of transformers.
    """
    if position_ids is not None:
        return position_ids
    tokens = input_ids if input_ids is not None else inputs_embeds
    if tokens is None:
        raise ValueError("a decoder needs input_ids or inputs_embeds")
    num_tokens = tokens.shape[1]
    if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
        return positions_of(attention_mask)[:, -num_tokens:]
    cached = _num_cached(past_key_values, cache)
    return (torch.arange(num_tokens, device=tokens.device) + cached)[None]


def _num_cached(past_key_values: Any, cache: Any) -> int:
    """The number of tokens before this call. The cache has one of two names, see methods/parts/cache_names.py."""
    given = past_key_values if cache is None else cache
    return 0 if given is None else int(given.get_seq_length())


POSITION_ARGUMENTS = tuple(inspect.signature(token_positions).parameters)


@dataclass(frozen=True)
class PromptPlacement:
    """A hook before a decoder's forward that moves the positions of tokens to make room for a prompt.

    Without ``infix`` the prompt is in front of all tokens, which move by P. With ``infix`` it is right before the last
    source token, which predicts the first target token. Tokens from there on see the prompt and move by P; those before
    do neither. Keys of a prompt that are rotated by position are rotated once, for positions -P to -1. The tokens of
    each row are then counted from the last source token, so that the prompt is next to it for a source of any length.
    This changes nothing else, because only distances matter to rotary positions.

    Source: Li & Liang 2021, section 7.3 (infix-tuning: ``[x; INFIX; y]``).

    Args:
        num_prompt_tokens: P.
        shift: Whether tokens move at all.
        infix: Whether the prompt is between source and target.
        rotary: Whether positions are rotary.
    """

    num_prompt_tokens: int
    shift: bool
    infix: bool
    rotary: bool

    def apply_to(self, model: Any) -> None:
        """Register with ``model``; with ``infix`` its forward takes ``source_lengths`` from now on."""
        if self.infix:
            accept_source_lengths(model)
        if self.infix or self.shift:
            stacks(model)["decoder"].register_forward_pre_hook(self._hook, with_kwargs=True)

    def _hook(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = {name: kwargs.get(name) for name in POSITION_ARGUMENTS[len(args) :]}
        positions = token_positions(*args, **given)
        if given.get("attention_mask", 0) is None:
            # Without a mask transformers takes a gap between positions for the start of another text.
            cached = _num_cached(given.get("past_key_values"), given.get("cache"))
            kwargs = {**kwargs, "attention_mask": positions.new_ones(len(positions), cached + positions.shape[1])}
        move = self.num_prompt_tokens if self.shift else 0
        if not self.infix:
            return args, {**kwargs, "position_ids": positions + move}
        last_source = required_source_lengths(kwargs.pop("source_lengths", None))[:, None] - 1
        after = positions >= last_source  # (B, T)
        moved = positions - last_source - move * ~after if self.rotary else positions + move * after
        return args, {**kwargs, "position_ids": moved, "prompt_visible": after}


def required_source_lengths(source_lengths: torch.Tensor | None) -> torch.Tensor:
    """Check that the number of source tokens of each row, ``(B,)``, is given.

    Raises:
        ValueError: It is not.
    """
    if source_lengths is None:
        raise ValueError("a prompt between source and target needs source_lengths: how many source tokens each row has")
    return source_lengths


def accept_source_lengths(model: Any) -> None:
    """Make the forward of ``model``, and thereby ``generate``, accept ``source_lengths`` ``(B,)``.

    The model passes them to the decoder as a keyword argument. ``generate`` reads the names in forward's signature.
    """
    forward = model.forward

    @functools.wraps(forward)
    def with_source_lengths(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    signature = inspect.signature(forward)
    *parameters, last = signature.parameters.values()
    added = inspect.Parameter("source_lengths", inspect.Parameter.KEYWORD_ONLY, default=None)
    with_source_lengths.__signature__ = signature.replace(parameters=[*parameters, added, last])  # type: ignore[attr-defined]
    model.forward = with_source_lengths
