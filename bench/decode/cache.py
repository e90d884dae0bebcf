"""The key/value cache of the batched decoder: all beams of a source share one row, and nothing is reordered.

A source's tokens are stored once. The tokens that its beams generate follow, K for each step, in the order of the
steps. The attention mask says which of them a beam descends from. No keys are copied when beams part, and beams read
the keys of their common ancestors once.

B sources, K beams, H key/value heads, L positions stored, T tokens in this call, C head channels.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class BeamCacheLayer(CacheLayerMixin):  # type: ignore[misc] # transformers is not typed
    """Keys and values of one attention layer, in a buffer that grows by half when it is full.

    A method may put P positions in front of the tokens, which every token sees. Usually P is 0.
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
        """Store ``(1 or B, H, P, C)`` in front of the tokens. It must be called before anything else is stored."""
        self.front = key_states.shape[2]
        self.keys, self.values = (states.expand(rows, -1, -1, -1).contiguous() for states in (key_states, value_states))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append ``(B, H, T, C)``. Returns the positions in front and all tokens, ``(B, H, P + L, C)``."""
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
        """Remove all sources except these; ``(B,)`` int64."""
        self.keys, self.values = self.keys[rows], self.values[rows]

    def keep_positions(self, first: int, positions: torch.Tensor) -> None:
        """Keep the tokens before ``first``, and after them those at ``(B, n)``, counted from ``first``."""
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

    get_max_cache_shape = get_max_length  # the name of the method in transformers before 5.18


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
        """Like :meth:`update`, after a prefix ``(1 or B, H, P, C)`` that is the same in every call.

        methods/parts/attention_prefix.py calls it, so that the prefix is not joined to the cache in every step.
        """
        while len(self.layers) <= layer_idx:
            self.layers.append(BeamCacheLayer())
        layer = self.layers[layer_idx]
        if not layer.is_initialized:
            layer.put_in_front(prefix[0].to(key_states.dtype), prefix[1].to(key_states.dtype), rows=len(key_states))
        return layer.update(key_states, value_states)

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Remove all sources except these; ``(B,)`` int64."""
        for layer in self.layers:
            layer.keep_rows(rows)

    def keep_positions(self, first: int, positions: torch.Tensor) -> None:
        """Keep the tokens before ``first``, and after them those at ``(B, n)``, counted from ``first``."""
        for layer in self.layers:
            layer.keep_positions(first, positions)


def _with_room(states: torch.Tensor, used: int, room: int) -> torch.Tensor:
    larger = states.new_empty(states.shape[0], states.shape[1], room, states.shape[3])
    larger[:, :, :used] = states[:, :, :used]
    return larger
