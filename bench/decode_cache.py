"""The key/value cache of the batched decoder: all beams of a source share one row, and nothing is reordered.

A source's tokens are stored once. Behind them lie the tokens that its beams have generated, K a step, in the order of
their coming; which of them a beam descends from is said by the attention mask. A beam that parts copies no keys, and
beams that end up with common ancestors read them once.

B sources, K beams, H key/value heads, L positions stored, T tokens in this call, C head channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

SHARED_HEADS_ATTENTION = "tuneoff_shared_heads"


class BeamCacheLayer(CacheLayerMixin):  # type: ignore[misc] # transformers is not typed
    """Keys and values of one attention layer, in a buffer that grows by half when it is full.

    In front of the tokens lies room for what a method shows this layer before every token (P positions, usually none).
    """

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self.front = 0  # P

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = (
            states.new_empty(states.shape[0], states.shape[1], 0, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def put_in_front(self, key_states: torch.Tensor, value_states: torch.Tensor, rows: int) -> None:
        """Store ``(1 or B, H, P, C)`` where every token sees it; before anything else is stored, once for all rows."""
        self.front = key_states.shape[2]
        self.keys, self.values = (states.expand(rows, -1, -1, -1).contiguous() for states in (key_states, value_states))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append ``(B, H, T, C)``; what is in front and all tokens, ``(B, H, P + L, C)``."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.front + self.length
        self.length += key_states.shape[2]
        end = self.front + self.length
        if end > self.keys.shape[2]:
            room = max(end, self.keys.shape[2] * 3 // 2)
            self.keys, self.values = _with_room(self.keys, start, room), _with_room(self.values, start, room)
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Keep these sources only."""
        self.keys, self.values = self.keys[rows], self.values[rows]

    def keep_positions(self, first: int, positions: torch.Tensor) -> None:
        """Keep the tokens before ``first``, and behind them these ``(B, n)``, counted from ``first``."""
        start, end = self.front + first, self.front + self.length
        for states in (self.keys, self.values):
            index = positions[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
            states[:, :, start : start + positions.shape[1]] = states[:, :, start:end].gather(2, index)
        self.length = first + positions.shape[1]

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return -1


class BeamCache(Cache):  # type: ignore[misc] # transformers is not typed
    """A :class:`BeamCacheLayer` for every attention layer of a decoder."""

    layers: list[BeamCacheLayer]

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=BeamCacheLayer)

    def update_behind(
        self,
        prefix: tuple[torch.Tensor, torch.Tensor],
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`update`, behind a prefix ``(1 or B, H, P, C)`` that stays the same from call to call.

        methods/attention_prefix.py asks for it, so that the prefix is not joined to the cache in every step.
        """
        while len(self.layers) <= layer_idx:
            self.layers.append(BeamCacheLayer())
        layer = self.layers[layer_idx]
        if not layer.is_initialized:
            layer.put_in_front(prefix[0].to(key_states.dtype), prefix[1].to(key_states.dtype), rows=len(key_states))
        return layer.update(key_states, value_states)

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Keep these sources only; ``(B,)`` int64."""
        for layer in self.layers:
            layer.keep_rows(rows)

    def keep_positions(self, first: int, positions: torch.Tensor) -> None:
        """Keep the tokens before ``first``, and behind them these ``(B, n)``, counted from ``first``."""
        for layer in self.layers:
            layer.keep_positions(first, positions)


def _with_room(states: torch.Tensor, used: int, room: int) -> torch.Tensor:
    larger = states.new_empty(states.shape[0], states.shape[1], room, states.shape[3])
    larger[:, :, :used] = states[:, :, :used]
    return larger


def shared_heads_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in which query heads that share keys read them once.

    transformers' own function copies keys and values for every query head of a group as soon as there is more than one
    query token. Here the heads of a group are rows of one query instead, which is the same sum.

    Args:
        module: The attention layer.
        query: ``(B, H * groups, T, C)``.
        key: ``(B, H, L, C)``.
        value: ``(B, H, L, C)``.
        attention_mask: ``(B, 1, T, L)``; None, which means causal, is left to transformers.
        dropout: 0 outside training.
        scaling: Of the scores; None is ``C ** -0.5``.
        kwargs: For transformers.

    Returns:
        ``(B, T, H * groups, C)``.
    """
    if attention_mask is None:
        outputs: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, None, dropout, scaling, **kwargs
        )
        return outputs
    rows, heads, tokens, channels = query.shape
    groups = heads // key.shape[1]
    output = nn.functional.scaled_dot_product_attention(
        query.reshape(rows, key.shape[1], groups * tokens, channels),
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, groups, 1) if groups > 1 else attention_mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return output.reshape(rows, heads, tokens, channels).transpose(1, 2).contiguous(), None


AttentionInterface.register(SHARED_HEADS_ATTENTION, shared_heads_attention)
AttentionMaskInterface.register(SHARED_HEADS_ATTENTION, sdpa_mask)


@contextmanager
def sharing_heads(model: nn.Module) -> Iterator[None]:
    """Use :func:`shared_heads_attention` inside the block wherever a layer uses transformers' SDPA."""
    configs: list[Any] = [module.config for module in model.modules() if _attention_of(module) == "sdpa"]
    for config in configs:
        config._attn_implementation = SHARED_HEADS_ATTENTION
    try:
        yield
    finally:
        for config in configs:
            config._attn_implementation = "sdpa"


def _attention_of(module: nn.Module) -> str | None:
    return getattr(getattr(module, "config", None), "_attn_implementation", None)
