"""Puts keys and values that every token attends to in front of an attention layer's own. Shared by prefix and prompt.

An attention layer of transformers passes its keys and values to the ``update`` of a cache and attends to those that
``update`` returns. This module uses that: :class:`KeyValueCapture` reads the keys and values that a layer makes of
given hidden states, :class:`PrefixedCache` returns the prefix followed by the contents of the real cache. The prefix is
never in the real cache, so that beam search does not copy it and training without a cache works in the same way. This
works for every family that uses the cache interface, whatever the names of its projections.

B batch, G prefixes (usually one for all rows, else one for each B / G consecutive rows), H key/value heads, T tokens in
this call, S tokens attended to (cached and new), P prefix, C head channels.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import EncoderDecoderCache

from bench.method import MethodError, for_rows, lane_modules
from methods.parts.attention_sites import AttentionSite, LayerInput, Rotary, is_causal, sliding_window
from methods.parts.distance_bias import counts_columns, first_real_columns, lengthen
from methods.parts.prompt_insertion import inserted

KeysValues = tuple[torch.Tensor, torch.Tensor]


class NotHandedDown(RuntimeError):
    """A decoder does not pass keyword arguments on to its attention layers."""


@dataclass
class KeyValueCapture:
    """Replaces a cache and records the keys and values of one attention layer."""

    captured: list[KeysValues] = field(default_factory=list)

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> KeysValues:
        self.captured.append((keys, values))
        return keys, values

    def get_seq_length(self, *_: Any) -> int:
        return 0


@dataclass(frozen=True)
class PrefixedCache:
    """The cache that an attention layer gets: the prefix, then the cached and the new tokens.

    A cache with ``update_behind`` (bench/decode/cache.py) puts the prefix in front itself, so that nothing is joined at
    every step of decoding.
    """

    prefix: KeysValues  # (G, H, P, C) each
    cache: Any = None
    columns: torch.Tensor | None = None  # (B,) the column before which the prefix is inserted; None: in front

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> KeysValues:
        if self.columns is None and (update_behind := getattr(self.cache, "update_behind", None)) is not None:
            behind: KeysValues = update_behind(self.prefix, keys, values, *args, **kwargs)
            return behind
        if self.cache is not None:
            keys, values = self.cache.update(keys, values, *args, **kwargs)
        return prepended(self.prefix, keys, values, self.columns)

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """The number of tokens before this call, including the prefix. T5 counts its relative positions from it."""
        return self.prefix[0].shape[2] + (0 if self.cache is None else self.cache.get_seq_length(layer_idx))

    @property
    def layers(self) -> PrefixedLayers:
        return PrefixedLayers(self.prefix, self.cache)


@dataclass(frozen=True)
class PrefixedLayers:
    """The ``layers`` of a cache, which cross-attention reads when the encoder's keys and values are in it."""

    prefix: KeysValues
    cache: Any

    def __getitem__(self, layer_idx: int) -> PrefixedLayer:
        layer = self.cache.layers[layer_idx]
        return PrefixedLayer(*prepended(self.prefix, layer.keys, layer.values))


@dataclass(frozen=True)
class PrefixedLayer:
    """One layer of a cache as cross-attention reads it."""

    keys: torch.Tensor  # (B, H, P + S, C)
    values: torch.Tensor


class PrefixedEncoderDecoderCache(EncoderDecoderCache):  # type: ignore[misc] # attention layers ask for this class
    """:class:`PrefixedCache` for a decoder beside an encoder, whose cache has a part for each kind of attention."""

    def __init__(self, prefix: KeysValues, cache: EncoderDecoderCache) -> None:
        self.self_attention_cache = PrefixedCache(prefix, cache.self_attention_cache)
        self.cross_attention_cache = PrefixedCache(prefix, cache.cross_attention_cache)
        self.is_updated = cache.is_updated


def prefixed_cache(prefix: KeysValues, cache: Any, columns: torch.Tensor | None = None) -> Any:
    """The cache that a layer gets instead of ``cache``, which may be None."""
    if isinstance(cache, EncoderDecoderCache):
        return PrefixedEncoderDecoderCache(prefix, cache)
    return PrefixedCache(prefix, cache, columns)


def prepended(
    prefix: KeysValues, keys: torch.Tensor, values: torch.Tensor, columns: torch.Tensor | None = None
) -> KeysValues:
    """Keys and values with the prefix, in their dtype, in front of them or before these columns."""
    prefix_keys, prefix_values = (for_rows(part.to(keys.dtype), len(keys)) for part in prefix)
    return joined(prefix_keys, keys, columns), joined(prefix_values, values, columns)


def joined(prefix: torch.Tensor, tokens: torch.Tensor, columns: torch.Tensor | None) -> torch.Tensor:
    """Join ``(B, H, P, C)`` and ``(B, H, S, C)`` to ``(B, H, P + S, C)``, the prefix in front or before ``columns``."""
    if columns is None:
        return torch.cat([prefix, tokens], dim=2)
    rows = columns.expand(len(tokens))
    return inserted(prefix.transpose(1, 2), tokens.transpose(1, 2), rows).transpose(1, 2)


class KeptWhileDecoding:
    """Keeps computed keys and values between the steps of decoding, as long as nothing is trained."""

    def __init__(self, trained: Sequence[nn.Parameter]) -> None:
        self._trained = trained
        self._kept: Any = None
        self._versions: list[int] = []

    def get(self, module: nn.Module, compute: Callable[[], Any]) -> Any:
        """The result of ``compute`` for ``module``, kept until a trained tensor changes or training goes on."""
        if module.training or torch.is_grad_enabled() or tuple(lane_modules(module)) != (module,):
            self._kept = None
            return compute()
        versions = [parameter._version for parameter in self._trained]
        if self._kept is None or versions != self._versions:
            self._kept, self._versions = compute(), versions
        return self._kept


def prefix_mask(
    mask: torch.Tensor | None,
    num_prefix_tokens: int,
    hidden_states: torch.Tensor,
    cache: Any,
    layer: Any,
    visible: torch.Tensor | None = None,
    config: Any = None,
) -> torch.Tensor | None:
    """The attention mask with ``num_prefix_tokens`` columns in front.

    A missing mask is built if tokens must not see later ones. Without it, transformers' SDPA function takes more keys
    than queries for the empty end of a static cache, and silently drops the newest keys. Columns are added after any
    sliding window is applied, so that the prefix is visible from every token of a long text.

    Args:
        mask: The model's mask: None, ``(B, S)`` for flash attention, or ``(B, 1, T, S)`` boolean or additive.
        num_prefix_tokens: P.
        hidden_states: ``(B, T, D)``, for T, device and dtype.
        cache: The layer's real cache, or None.
        layer: The attention layer, for its ``layer_idx`` and configuration.
        visible: Boolean ``(B, T)``, whether a token sees the prefix, or ``(B, T, P)``, which parts it sees; None: all.
        config: The configuration, if the layer has none.

    Returns:
        The mask for ``P + S`` keys; None if all keys are seen or flash attention hides later tokens itself.

    Raises:
        MethodError: Flash attention has no such mask.
    """
    implementation = (config or layer.config)._attn_implementation
    if implementation.startswith("flash"):
        if visible is not None:
            raise MethodError("flash attention has no mask for a prompt that only some tokens see; use sdpa or eager")
        if mask is None:
            return None  # Flash attention aligns its causal mask to the last key.
    if mask is None:
        if visible is None and not is_causal(layer):
            return None
        mask = causal_mask(hidden_states.shape[1], cache, layer, hidden_states.device)
        if implementation == "eager":
            mask = _additive(mask, hidden_states.dtype)
    if visible is None:
        fill = torch.ones if mask.dtype in (torch.bool, torch.int64) else torch.zeros
        columns = fill(*mask.shape[:-1], num_prefix_tokens, dtype=mask.dtype, device=mask.device)
        return torch.cat([columns, mask], dim=-1)
    seen = visible if visible.dim() == 3 else visible[..., None].expand(-1, -1, num_prefix_tokens)
    columns = seen[:, None]  # (B, 1, T, P)
    if mask.dtype != torch.bool:
        columns = _additive(columns, mask.dtype)
    return torch.cat([columns, mask.expand(len(columns), -1, -1, -1)], dim=-1)


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def causal_mask(num_tokens: int, cache: Any, layer: Any, device: torch.device) -> torch.Tensor:
    """Boolean ``(1, 1, T, S)``: a token of this call sees all cached tokens, and those of the call up to itself."""
    num_keys, key_offset, query_offset = num_tokens, 0, 0
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    if cache is not None:
        num_keys, key_offset = cache.get_mask_sizes(num_tokens, layer.layer_idx)
        # transformers before 5.18 has the number of cached tokens only under the older name.
        num_cached = getattr(cache, "get_query_offset", cache.get_seq_length)
        query_offset = num_cached(layer.layer_idx)
    queries = torch.arange(num_tokens, device=device)[:, None] + query_offset
    keys = torch.arange(num_keys, device=device)[None, :] + key_offset
    return (keys <= queries)[None, None]


def keys_values_of(
    site: AttentionSite, states: torch.Tensor, rotary: Rotary | None = None, others: Mapping[str, Any] | None = None
) -> KeysValues:
    """The keys and values, each ``(B, H, P, C)``, that an attention layer makes of ``states`` ``(B, P, D)``.

    Args:
        site: The layer.
        states: The hidden states.
        rotary: The rotation at the positions of the prompt, if the layer takes one.
        others: Further arguments of the layer, for one text of P tokens; see LayerInput.

    Raises:
        MethodError: The layer does not pass keys and values to its cache exactly once.
    """
    if others and len(states) > 1:  # the further arguments are for one row
        each = [keys_values_of(site, row[None], rotary, others) for row in states]
        keys, values = (torch.cat(parts) for parts in zip(*each, strict=True))
        return keys, values
    capture = KeyValueCapture()
    names = site.names
    kwargs: dict[str, Any] = {names.mask: None, **fresh(others or {}), names.cache: capture}
    if "position_embeddings" in names.order and not names.has_position_bias:
        kwargs["position_embeddings"] = rotary[0] if rotary is not None and len(rotary) == 1 else rotary
    if site.role == "cross":
        kwargs["key_value_states"] = states
    site.layer(hidden_states=states, **kwargs)
    if len(capture.captured) != 1:
        raise MethodError(
            f"{type(site.layer).__name__} {site.layer.layer_idx} does not hand its keys and values to a cache once"
        )
    return capture.captured[0]


def made_keys_values(site: AttentionSite, given: LayerInput) -> KeysValues:
    """The keys and values that a layer makes of its input.

    Raises:
        MethodError: The layer cannot be called outside of its model, or its keys and values have another form.
    """
    try:
        keys, values = keys_values_of(site, given.states[None], given.rotary, given.others)
    except MethodError:
        raise
    except Exception as error:
        raise MethodError(
            f"{type(site.layer).__name__} {site.layer.layer_idx} does not attend as other layers of transformers do, "
            f"so that it can have no prefix: {type(error).__name__}: {error}"
        ) from error
    if keys.dim() != 4 or values.dim() != 4 or keys.shape[2] != len(given.states):
        raise MethodError(
            f"{type(site.layer).__name__} {site.layer.layer_idx} keeps keys of shape {tuple(keys.shape)}: a prefix "
            "needs one key of each head for each token"
        )
    return keys, values


def fresh(others: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with a new dictionary instead of one that layers write to (the keys that Gemma's layers share)."""
    return {name: type(value)() if isinstance(value, UserDict) else value for name, value in others.items()}


def require_reach(sites: Sequence[AttentionSite]) -> None:
    """Refuse layers in which later tokens would not see the prompt.

    Raises:
        MethodError: Flash attention applies a sliding window itself, also to the prompt.
    """
    for site in sites:
        if site.config._attn_implementation.startswith("flash") and sliding_window(site.layer) is not None:
            raise MethodError(
                f"{type(site.layer).__name__} {site.layer.layer_idx} has a sliding window, which flash attention would "
                "apply to the prompt as well; set model.attention: sdpa"
            )


def attend_with_prefix(
    site: AttentionSite,
    prefix: KeysValues,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    bias_source: Any = None,
    visible: torch.Tensor | None = None,
) -> tuple[Any, ...]:
    """Call an attention layer so that its tokens also attend to ``prefix``; returns what the layer returns.

    Args:
        site: The layer and its role.
        prefix: ``(G, H, P, C)`` each.
        args: Of the call.
        kwargs: Of the call.
        bias_source: The layer that makes the relative position bias, see :func:`prefix_bias`.
        visible: See :func:`prefix_mask`.
    """
    call = site.named(args, kwargs)
    names, cache, count = site.names, call.get(site.names.cache), prefix[0].shape[2]
    columns = widen_mask(site, call, count, visible)
    call[names.cache] = prefixed_cache(prefix, cache, columns)
    if names.has_position_bias and (bias := call.get("position_bias")) is not None:
        tokens_before = call[names.cache].get_seq_length(site.layer.layer_idx)
        call["position_bias"] = torch.cat([prefix_bias(bias, count, bias_source, tokens_before), bias], dim=-1)
    outputs: tuple[Any, ...] = site.layer(**call)
    if names.has_position_bias:  # the layers that follow get the bias without the prefix's columns
        output, bias, *rest = outputs
        return output, bias[..., count:], *rest
    return outputs


def widen_mask(
    site: AttentionSite, call: dict[str, Any], num_prefix_tokens: int, visible: torch.Tensor | None = None
) -> torch.Tensor | None:
    """Add columns for the prefix to mask and distances of a call.

    Args:
        site: The layer.
        call: Its arguments by name.
        num_prefix_tokens: P.
        visible: ``(B, T)`` boolean, the tokens that see the prefix; None for all.

    Returns:
        ``(B,)``, the column of keys before which the prefix has to be inserted; None: in front of all keys.
    """
    names, hidden_states = site.names, call["hidden_states"]
    mask: Any = call.get(names.mask)
    if visible is not None:  # Gemma 4 continues with the last tokens only if it needs logits for no others
        visible = visible[:, -hidden_states.shape[1] :]
    if counts_columns(site):
        columns = first_real_columns(mask)
        seen = torch.zeros_like(mask[..., :1]).expand(-1, -1, -1, num_prefix_tokens)
        call[names.mask] = inserted(seen.movedim(-1, 1), mask.movedim(-1, 1), columns).movedim(1, -1)
        return columns
    call[names.mask] = prefix_mask(
        mask, num_prefix_tokens, hidden_states, call.get(names.cache), site.layer, visible, site.config
    )
    lengthen(site, call, num_prefix_tokens)
    return None


def prefix_bias(bias: torch.Tensor, num_prefix_tokens: int, source: Any, tokens_before: Any) -> torch.Tensor:
    """Columns of T5's position bias for a prefix right before the first token.

    Args:
        bias: ``(1, H, T, S)``, the bias that the layer got.
        num_prefix_tokens: P.
        source: The layer that holds the table of biases; None if there is none, so that biases are zero.
        tokens_before: The number of tokens before this call, including the prefix.

    Returns:
        ``(1, H, T, P)``.
    """
    if source is None:
        return bias.new_zeros(*bias.shape[:-1], num_prefix_tokens)
    columns: torch.Tensor = source.compute_bias(
        bias.shape[-2], num_prefix_tokens, device=bias.device, past_seen_tokens=tokens_before
    )
    return columns
