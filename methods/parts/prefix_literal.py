"""The specification of prefix tuning, literally: prompt embeddings are concatenated in front of the hidden states.

It is slower than :mod:`methods.parts.attention_prefix`, which has to equal it: every row of the batch holds a copy of
the prompt, and queries and outputs are computed for prompt positions and then cut off.

B batch, H heads, T tokens in this call, S tokens attended to (cached and new), P prompt tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import EncoderDecoderCache

from bench.method import MethodError
from methods.parts.attention_prefix import KeysValues, joined, prefix_bias, widen_mask
from methods.parts.attention_sites import AttentionSite, Rotary


@dataclass(frozen=True)
class PromptRowsCache:
    """The cache of a layer that computes keys of prompt and tokens together. Only those of tokens are cached.

    The layer makes keys ``(B, H, P + T, C)`` and attends to ``(B, H, P + S, C)``.
    """

    num_prompt_tokens: int
    cache: Any
    columns: torch.Tensor | None = None  # (B,) the column of keys before which the prompt is; None: in front

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> KeysValues:
        count = self.num_prompt_tokens
        token_keys, token_values = keys[:, :, count:], values[:, :, count:]
        if self.cache is not None:
            token_keys, token_values = self.cache.update(token_keys, token_values, *args, **kwargs)
        return (
            joined(keys[:, :, :count], token_keys, self.columns),
            joined(values[:, :, :count], token_values, self.columns),
        )

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        return 0 if self.cache is None else self.cache.get_seq_length(layer_idx)


def attend_literally(
    site: AttentionSite,
    prompt: torch.Tensor,
    rotary: Rotary | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    bias_source: Any = None,
    visible: torch.Tensor | None = None,
    others: Mapping[str, Any] | None = None,
) -> tuple[Any, ...]:
    """Call an attention layer on prompt and tokens; returns what the layer returns, for the tokens.

    Args:
        site: The layer and its role.
        prompt: ``(P, D)``.
        rotary: The prompt's rotation, for layers that rotate keys by position.
        args: Of the call.
        kwargs: Of the call.
        bias_source: The layer that makes the relative position bias which this one shares, if there is one.
        visible: ``(B, T)`` boolean, the tokens that see the prefix; None for all.
        others: Further arguments of the layer for the prompt; see LayerInput.
    """
    call = site.named(args, kwargs)
    columns = widen_mask(site, call, len(prompt), visible)
    hidden_states = call.pop("hidden_states")
    prompt = prompt.to(hidden_states.dtype).expand(len(hidden_states), -1, -1)  # (B, P, D)
    if site.role == "cross":
        return _cross_attend(site, prompt, hidden_states, call)
    return _self_attend(site, prompt, rotary, hidden_states, call, bias_source, columns, others or {})


def _self_attend(
    site: AttentionSite,
    prompt: torch.Tensor,
    rotary: Rotary | None,
    hidden_states: torch.Tensor,
    call: dict[str, Any],
    bias_source: Any,
    columns: torch.Tensor | None,
    others: Mapping[str, Any],
) -> tuple[Any, ...]:
    names, count = site.names, prompt.shape[1]
    call[names.mask] = with_prompt_rows(call[names.mask], count, columns, site.mask_hides)
    tokens_before = 0
    cache = call.get(names.cache)
    if cache is not None or columns is not None:
        cache = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        call[names.cache] = PromptRowsCache(count, cache, columns)
        tokens_before = call[names.cache].get_seq_length(site.layer.layer_idx)
    if names.has_position_bias and (bias := call.get("position_bias")) is not None:
        bias = torch.cat([prefix_bias(bias, count, bias_source, count + tokens_before), bias], dim=-1)
        rows = bias.new_zeros(*bias.shape[:-2], count, bias.shape[-1])
        call["position_bias"] = torch.cat([rows, bias], dim=-2)  # (1, H, P + T, P + S)
    if (token_rotary := call.get("position_embeddings")) is not None:
        call["position_embeddings"] = _joined_rotary(rotary, token_rotary)
    for name in names.others:  # such as positions and residuals, which have an entry for each token
        if name != "alibi" and isinstance(call.get(name), torch.Tensor) and isinstance(others.get(name), torch.Tensor):
            call[name] = joined_by_token(others[name], call[name], count, hidden_states.shape[1])
    output, *rest = site.layer(hidden_states=torch.cat([prompt, hidden_states], dim=1), **call)
    if names.has_position_bias:
        rest[0] = rest[0][..., count:, count:]
    return output[:, count:], *rest


def joined_by_token(prompt: torch.Tensor, tokens: torch.Tensor, num_prompt: int, num_tokens: int) -> torch.Tensor:
    """Join an argument for the prompt and for the tokens along the axis of tokens, if it has one.

    Args:
        prompt: The argument for the prompt, of one row.
        tokens: The argument for the tokens, of all rows.
        num_prompt: P.
        num_tokens: T.
    """
    sizes = zip(prompt.shape[1:], tokens.shape[1:], strict=False)
    axes = [axis for axis, size in enumerate(sizes, start=1) if size == (num_prompt, num_tokens)]
    if not axes:
        return tokens
    in_front = prompt.to(tokens.dtype).expand(len(tokens), *prompt.shape[1:])
    return torch.cat([in_front, tokens], dim=axes[0])


def _cross_attend(
    site: AttentionSite,
    prompt: torch.Tensor,
    hidden_states: torch.Tensor,
    kwargs: dict[str, Any],
) -> tuple[Any, ...]:
    """Put the prompt in front of the encoder's output, from which keys and values are made. No output is cut off."""
    names, count = site.names, prompt.shape[1]
    # Without a cache the layer makes the keys and values of the encoder's output anew in every step.
    kwargs[names.cache] = None
    kwargs["key_value_states"] = torch.cat([prompt, kwargs["key_value_states"]], dim=1)  # (B, P + S, D)
    if (bias := kwargs.get("position_bias")) is not None:
        kwargs["position_bias"] = torch.cat([prefix_bias(bias, count, None, 0), bias], dim=-1)
    output, *rest = site.layer(hidden_states=hidden_states, **kwargs)
    if names.has_position_bias:
        rest[0] = rest[0][..., count:]
    return output, *rest


def with_prompt_rows(
    mask: torch.Tensor | None,
    num_prompt_tokens: int,
    columns: torch.Tensor | None = None,
    true_hides: bool = False,
) -> torch.Tensor | None:
    """Add rows for the prompt's own queries, which see only the prompt. Their outputs are cut off.

    Args:
        mask: ``(B, 1 or H, T, P + S)``, or for flash attention ``(B, P + S)`` or None, which need no rows.
        num_prompt_tokens: P.
        columns: ``(B,)`` the key before which the prompt is; None: in front.
        true_hides: Whether a boolean mask is true where a key is hidden.

    Returns:
        ``(B, 1 or H, P + T, P + S)``, or a mask that needs no rows.
    """
    if mask is None or mask.dim() == 2:
        return mask
    hidden, seen = (true_hides, not true_hides) if mask.dtype == torch.bool else (torch.finfo(mask.dtype).min, 0.0)
    rows = torch.full_like(mask[..., :1, :], hidden).repeat(1, 1, num_prompt_tokens, 1)
    if columns is None:
        rows[..., :num_prompt_tokens] = seen
    else:
        at = torch.arange(mask.shape[-1], device=mask.device)
        of_prompt = (at >= columns[:, None]) & (at < columns[:, None] + num_prompt_tokens)  # (B, P + S)
        rows = rows.masked_fill(of_prompt[:, None, None], seen)
    return torch.cat([rows, mask], dim=-2)


def _joined_rotary(prompt_rotary: Rotary | None, rotary: Rotary | torch.Tensor) -> Rotary | torch.Tensor:
    if prompt_rotary is None:
        raise MethodError("the layer rotates its keys by position, and there is no rotation for the prompt")
    whole = tuple(
        torch.cat([prompt_part.to(part.dtype).expand(len(part), -1, -1), part], dim=1)
        for prompt_part, part in zip(prompt_rotary, (rotary,) if torch.is_tensor(rotary) else rotary, strict=True)
    )
    return whole[0] if torch.is_tensor(rotary) else whole
