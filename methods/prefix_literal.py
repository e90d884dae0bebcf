"""The specification of prefix tuning, to the letter: prompt embeddings concatenated in front of the hidden states.

Slower than :mod:`methods.attention_prefix`, which has to equal it: every row of the batch carries a copy of the prompt,
and queries and outputs are computed for prompt positions only to be cut off.

B batch, H heads, T tokens in this call, S tokens attended to (cached and new), P prompt tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import EncoderDecoderCache

from bench.method import MethodError
from methods.attention_prefix import KeysValues, prefix_bias, prefix_mask
from methods.attention_sites import AttentionSite

Rotary = tuple[torch.Tensor, torch.Tensor]


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

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        return self.cache.get_seq_length(layer_idx)


def attend_literally(
    site: AttentionSite,
    prompt: torch.Tensor,
    rotary: Rotary | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    bias_source: Any = None,
    visible: torch.Tensor | None = None,
) -> tuple[Any, ...]:
    """Call an attention layer on prompt and tokens; returns what the layer returns, for the tokens.

    Args:
        site: The layer and its role.
        prompt: ``(P, D)``.
        rotary: Of the prompt, for layers that rotate keys by position.
        args: Of the call.
        kwargs: Of the call.
        bias_source: The layer that makes the relative position bias which this one shares, if there is one.
        visible: ``(B, T)`` boolean, the tokens that see the prompt; None for all.
    """
    kwargs = dict(kwargs)
    hidden_states = args[0] if args else kwargs.pop("hidden_states")
    prompt = prompt.to(hidden_states.dtype).expand(len(hidden_states), -1, -1)  # (B, P, D)
    names = site.names
    kwargs[names.mask] = prefix_mask(
        kwargs.get(names.mask), prompt.shape[1], hidden_states, kwargs.get(names.cache), site.layer, visible
    )
    if site.role == "cross":
        return _cross_attend(site, prompt, hidden_states, args[1:], kwargs)
    return _self_attend(site, prompt, rotary, hidden_states, args[1:], kwargs, bias_source)


def _self_attend(
    site: AttentionSite,
    prompt: torch.Tensor,
    rotary: Rotary | None,
    hidden_states: torch.Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    bias_source: Any,
) -> tuple[Any, ...]:
    names, count = site.names, prompt.shape[1]
    kwargs[names.mask] = with_prompt_rows(kwargs[names.mask], count)
    tokens_before = 0
    if (cache := kwargs.get(names.cache)) is not None:
        cache = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        tokens_before = cache.get_seq_length(site.layer.layer_idx)
        kwargs[names.cache] = PromptRowsCache(count, cache)
    if (bias := kwargs.get("position_bias")) is not None:
        bias = torch.cat([prefix_bias(bias, count, bias_source, count + tokens_before), bias], dim=-1)
        rows = bias.new_zeros(*bias.shape[:-2], count, bias.shape[-1])
        kwargs["position_bias"] = torch.cat([rows, bias], dim=-2)  # (1, H, P + T, P + S)
    if (token_rotary := kwargs.get("position_embeddings")) is not None:
        kwargs["position_embeddings"] = _joined_rotary(rotary, token_rotary)
    output, *rest = site.layer(torch.cat([prompt, hidden_states], dim=1), *args, **kwargs)
    if names.has_position_bias:
        rest[0] = rest[0][..., count:, count:]
    return output[:, count:], *rest


def _cross_attend(
    site: AttentionSite,
    prompt: torch.Tensor,
    hidden_states: torch.Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Any, ...]:
    """Keys and values are the encoder's output: the prompt goes in front of that, and no output is cut off."""
    names, count = site.names, prompt.shape[1]
    # Without a cache the layer makes the keys and values of the encoder's output anew in every step.
    kwargs[names.cache] = None
    kwargs["key_value_states"] = torch.cat([prompt, kwargs["key_value_states"]], dim=1)  # (B, P + S, D)
    if (bias := kwargs.get("position_bias")) is not None:
        kwargs["position_bias"] = torch.cat([prefix_bias(bias, count, None, 0), bias], dim=-1)
    output, *rest = site.layer(hidden_states, *args, **kwargs)
    if names.has_position_bias:
        rest[0] = rest[0][..., count:]
    return output, *rest


def with_prompt_rows(mask: torch.Tensor | None, num_prompt_tokens: int) -> torch.Tensor | None:
    """Add rows for the prompt's own queries, which see the prompt only; their outputs are cut off.

    Args:
        mask: ``(B, 1, T, P + S)``, or for flash attention ``(B, P + S)`` or None, which need no rows.
        num_prompt_tokens: P.

    Returns:
        ``(B, 1, P + T, P + S)``, or the mask as it came.
    """
    if mask is None or mask.dim() == 2:
        return mask
    hidden, seen = (False, True) if mask.dtype == torch.bool else (torch.finfo(mask.dtype).min, 0.0)
    rows = torch.full_like(mask[..., :1, :], hidden).repeat(1, 1, num_prompt_tokens, 1)
    rows[..., :num_prompt_tokens] = seen
    return torch.cat([rows, mask], dim=-2)


def _joined_rotary(prompt_rotary: Rotary | None, rotary: Rotary) -> tuple[torch.Tensor, ...]:
    if prompt_rotary is None:
        raise MethodError("the layer rotates its keys by position, and there is no rotation for the prompt")
    return tuple(
        torch.cat([prompt_part.to(part.dtype).expand(len(part), -1, -1), part], dim=1)
        for prompt_part, part in zip(prompt_rotary, rotary, strict=True)
    )
