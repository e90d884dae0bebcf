"""The key/value cache of the batched decoder: all beams of a source share one row, and nothing is reordered.

A row holds a source's tokens from its first column on. The tokens that the source's beams generate follow, K for each
step, in the order of the steps. The attention mask says which of them a beam descends from. No keys are copied when
beams part, and beams read the keys of their common ancestors once. Every row counts its own columns, so that a new
source can take the place of a finished one while the others go on.

R rows, n of them that are read, K beams, H key/value heads, S tokens of the longest source in a call, T tokens of a row
in a call, L columns, C head channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

KeysValues = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Reading:
    """A call in which each row of tokens is a source, which is stored from the first column of a row on."""

    rows: torch.Tensor  # (n,) int64
    out_of: int  # R

    @property
    def tokens_before(self) -> int:
        """The number of tokens before those of the call."""
        return 0


@dataclass(frozen=True)
class Appending:
    """A call in which all rows go on."""

    columns: torch.Tensor  # (R, T) int64, where the tokens are stored
    end: int  # columns that attention reaches

    @property
    def tokens_before(self) -> int:
        """The number of tokens before those of the call in the row that has most."""
        return self.end - self.columns.shape[1]


Place = Reading | Appending


class BeamCacheLayer(CacheLayerMixin):  # type: ignore[misc] # transformers is not typed
    """Keys and values ``(R, H, P + L, C)`` of one attention layer, in buffers that grow by half when they are full.

    A method may put P positions in front of the tokens, which every token sees. Usually P is 0.

    Args:
        place: Where the tokens of the first call belong.
    """

    is_sliding = False

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.front = 0  # P

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows = self.place.out_of if isinstance(self.place, Reading) else len(key_states)
        self.keys, self.values = (
            states.new_empty(rows, states.shape[1], 0, states.shape[3]) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args: Any,
        prefix: KeysValues | None = None,
        **kwargs: Any,
    ) -> KeysValues:
        """Store ``(n or R, H, T, C)`` in their place. Returns what their queries may attend to, under a mask.

        Args:
            key_states: Keys.
            value_states: Values.
            args: As other caches take them; ignored.
            prefix: ``(1 or n, H, P, C)`` each, stored in front of the sources that are read; None: P is 0.
            kwargs: Like ``args``.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.front = 0 if prefix is None else prefix[0].shape[2]
        if isinstance(self.place, Reading):
            return self._read(self.place, (key_states, value_states), prefix)
        place = self.place
        end = self.front + place.end
        self._make_room(end)
        rows, columns = torch.arange(len(place.columns), device=place.columns.device)[:, None], place.columns
        for stored, states in ((self.keys, key_states), (self.values, value_states)):
            stored[rows, :, columns + self.front if self.front else columns] = states.transpose(1, 2)
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _read(self, place: Reading, states: KeysValues, prefix: KeysValues | None) -> KeysValues:
        self._make_room(self.front + states[0].shape[2])
        if prefix is not None:
            keys, values = (
                torch.cat([part.to(own.dtype).expand(len(own), -1, -1, -1), own], dim=2)
                for part, own in zip(prefix, states, strict=True)
            )
            states = keys, values
        for stored, own in zip((self.keys, self.values), states, strict=True):
            stored[place.rows, :, : own.shape[2]] = own
        return states

    def _make_room(self, columns: int) -> None:
        if columns > self.keys.shape[2]:
            room = max(columns, self.keys.shape[2] * 3 // 2)
            self.keys, self.values = _with_room(self.keys, room), _with_room(self.values, room)

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Remove all rows except these; int64."""
        self.keys, self.values = self.keys[rows], self.values[rows]

    def keep_columns(self, first: int, columns: torch.Tensor) -> None:
        """Keep the tokens before column ``first``, and after them those in the columns ``(R, N)`` of each row."""
        start = self.front + first
        for states in (self.keys, self.values):
            index = (columns + self.front)[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
            states[:, :, start : start + columns.shape[1]] = states.gather(2, index)

    def get_seq_length(self) -> int:
        return self.place.tokens_before

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.place.tokens_before + query_length, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # the name of the method in transformers before 5.18


class BeamCache(Cache):  # type: ignore[misc] # transformers is not typed
    """A :class:`BeamCacheLayer` for every attention layer of a decoder.

    Args:
        place: Where the tokens of the first call belong.
    """

    layers: list[BeamCacheLayer]

    def __init__(self, place: Place) -> None:
        super().__init__(layer_class_to_replicate=BeamCacheLayer)
        self._place = place

    @property
    def place(self) -> Place:
        """Where the tokens of the next call belong."""
        return self._place

    @place.setter
    def place(self, place: Place) -> None:
        self._place = place
        for layer in self.layers:
            layer.place = place

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> KeysValues:
        return self._layer(layer_idx).update(key_states, value_states)

    def update_behind(
        self,
        prefix: KeysValues,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> KeysValues:
        """Like :meth:`update`, after a prefix ``(1 or n, H, P, C)`` that is the same in every call.

        methods/parts/attention_prefix.py calls it, so that the prefix is not joined to the cache in every step.
        """
        return self._layer(layer_idx).update(key_states, value_states, prefix=prefix)

    def _layer(self, layer_idx: int) -> BeamCacheLayer:
        while len(self.layers) <= layer_idx:
            self.layers.append(BeamCacheLayer(self._place))
        return self.layers[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._place.tokens_before

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Remove all rows except these; int64."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.keep_rows(rows)

    def keep_columns(self, first: int, columns: torch.Tensor) -> None:
        """Keep the tokens before column ``first``, and after them those in the columns ``(R, N)`` of each row."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.keep_columns(first, columns)


def _with_room(states: torch.Tensor, room: int) -> torch.Tensor:
    """The buffer with more columns. They hold numbers, as what a mask hides is still multiplied by 0."""
    larger = states.new_zeros(states.shape[0], states.shape[1], room, states.shape[3])
    larger[:, :, : states.shape[2]] = states
    return larger
