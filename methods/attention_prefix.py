"""Keys and values that every token attends to, put in front of an attention layer's own. Shared by prefix and prompt.

An attention layer of transformers hands its keys and values to ``past_key_values.update`` and attends to what comes
back. That is the seam used here: :class:`KeyValueCapture` reads the keys and values that a layer makes of given hidden
states, :class:`PrefixedCache` shows a layer the prefix followed by what its real cache holds. The prefix therefore
never lives in the real cache: beam search does not copy it, and training without a cache works the same way. It holds
for every decoder family that uses the cache interface, whatever its projections are called.

B batch, H key/value heads, T tokens in this call, S tokens attended to (cached and new), P prefix, C head channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bench.method import MethodError

KeysValues = tuple[torch.Tensor, torch.Tensor]


@dataclass
class KeyValueCapture:
    """Stands in for a cache and keeps the keys and values of one attention layer."""

    captured: list[KeysValues] = field(default_factory=list)

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> KeysValues:
        self.captured.append((keys, values))
        return keys, values


@dataclass(frozen=True)
class PrefixedCache:
    """What an attention layer sees in place of its cache: the prefix, then the cached and the new tokens.

    A cache that can show its tokens behind a prefix itself (``update_behind``, as bench/decode_cache.py can) is asked
    to: then nothing is joined at every step of decoding.
    """

    prefix: KeysValues  # (1 or B, H, P, C) each
    cache: Any = None

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> KeysValues:
        if (update_behind := getattr(self.cache, "update_behind", None)) is not None:
            behind: KeysValues = update_behind(self.prefix, keys, values, *args, **kwargs)
            return behind
        if self.cache is not None:
            keys, values = self.cache.update(keys, values, *args, **kwargs)
        prefix_keys, prefix_values = (part.to(keys.dtype).expand(len(keys), -1, -1, -1) for part in self.prefix)
        return torch.cat([prefix_keys, keys], dim=2), torch.cat([prefix_values, values], dim=2)


@dataclass(frozen=True)
class PromptRowsCache:
    """For a layer that computes the prompt's rows together with the tokens': only the tokens' reach the cache.

    Keys come as ``(B, H, P + T, C)``; the layer attends to ``(B, H, P + S, C)``.
    """

    num_prompt_tokens: int
    cache: Any

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> KeysValues:
        count = self.num_prompt_tokens
        token_keys, token_values = self.cache.update(keys[:, :, count:], values[:, :, count:], *args, **kwargs)
        return (
            torch.cat([keys[:, :, :count], token_keys], dim=2),
            torch.cat([values[:, :, :count], token_values], dim=2),
        )


def attention_layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Parent, attribute name and module of every self-attention layer, in order of the layers.

    Raises:
        MethodError: The model has none that is known by the conventions of transformers, or it has an encoder.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise MethodError(f"{type(model).__name__} has an encoder; soft prompts are for decoders")
    found = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if type(layer).__name__.endswith("Attention") and getattr(layer, "layer_idx", None) is not None
    ]
    if not found:
        raise MethodError(
            f"{type(model).__name__} has no attention layer to patch: looked for modules named ...Attention that know "
            "their layer_idx, as the decoders of transformers do"
        )
    yield from found


def prefix_mask(
    mask: torch.Tensor | None,
    num_prefix_tokens: int,
    hidden_states: torch.Tensor,
    cache: Any,
    layer: Any,
) -> torch.Tensor | None:
    """The attention mask with ``num_prefix_tokens`` columns in front that every token sees.

    A missing mask is built wherever tokens must not see each other's future. This matters: with more keys than queries
    and no mask, transformers' SDPA function takes the surplus for the empty end of a static cache and silently drops
    the newest keys.

    Args:
        mask: What the model passed: None, ``(B, S)`` for flash attention, or ``(B, 1, T, S)`` boolean or additive.
        num_prefix_tokens: P.
        hidden_states: ``(B, T, D)``, for T, device and dtype.
        cache: The layer's real cache, or None.
        layer: The attention layer, for its ``layer_idx`` and configuration.

    Returns:
        The mask for ``P + S`` keys; None for flash attention where no token is padding.
    """
    if mask is None:
        implementation = layer.config._attn_implementation
        if implementation.startswith("flash"):
            return None  # Flash attention aligns its causal mask to the last key.
        mask = causal_mask(hidden_states.shape[1], cache, layer, hidden_states.device)
        if implementation == "eager":
            hidden = torch.zeros_like(mask, dtype=hidden_states.dtype)
            mask = hidden.masked_fill(~mask, torch.finfo(hidden_states.dtype).min)
    visible = torch.ones if mask.dtype in (torch.bool, torch.int64) else torch.zeros
    columns = visible(*mask.shape[:-1], num_prefix_tokens, dtype=mask.dtype, device=mask.device)
    return torch.cat([columns, mask], dim=-1)


def causal_mask(num_tokens: int, cache: Any, layer: Any, device: torch.device) -> torch.Tensor:
    """Boolean ``(1, 1, T, S)``: token i of this call sees all that is cached and the call's tokens up to itself."""
    num_keys, key_offset, query_offset = num_tokens, 0, 0
    if cache is not None:
        num_keys, key_offset = cache.get_mask_sizes(num_tokens, layer.layer_idx)
        query_offset = cache.get_query_offset(layer.layer_idx)
    queries = torch.arange(num_tokens, device=device)[:, None] + query_offset
    keys = torch.arange(num_keys, device=device)[None, :] + key_offset
    return (keys <= queries)[None, None]


def keys_values_of(layer: nn.Module, hidden_states: torch.Tensor, **kwargs: Any) -> KeysValues:
    """The keys and values, each ``(B, H, T, C)``, that an attention layer makes of ``hidden_states``."""
    capture = KeyValueCapture()
    layer(hidden_states, attention_mask=None, past_key_values=capture, **kwargs)
    (keys_values,) = capture.captured
    return keys_values


def attend_with_prefix(
    layer: nn.Module, prefix: KeysValues, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Call an attention layer so that its tokens also attend to ``prefix``; returns what the layer returns."""
    kwargs = dict(kwargs)
    hidden_states = args[0] if args else kwargs["hidden_states"]
    cache = kwargs.get("past_key_values")
    kwargs["attention_mask"] = prefix_mask(
        kwargs.get("attention_mask"), prefix[0].shape[2], hidden_states, cache, layer
    )
    kwargs["past_key_values"] = PrefixedCache(prefix, cache)
    outputs: tuple[Any, ...] = layer(*args, **kwargs)
    return outputs
