"""Finds the rows of an attention layer's linear layers that are queries, keys and values.

If one linear layer makes several of them, the layout of its output follows the code of the family, and shapes do not
show it. A test checks each layout here with its family's model: it changes rows and looks at the effect on attention.

H heads, G key/value heads, C head channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch

Role = Literal["query", "key", "value"]
ROLES: tuple[Role, ...] = get_args(Role)
Rows = dict[Role, torch.Tensor]

# Linear layers with one role, by their attribute.
SEPARATE: dict[str, Role] = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "q_attn": "query",
    "q": "query",
    "k": "key",
    "v": "value",
    "Wq": "query",
    "Wk": "key",
    "Wv": "value",
    "query": "query",
    "key": "key",
    "value": "value",
    "query_proj": "query",
    "key_proj": "key",
    "value_proj": "value",
    "q_b_proj": "query",
}


def _thirds(_: Any, rows: torch.Tensor) -> Rows:
    """All queries, all keys, all values."""
    return dict(zip(ROLES, rows.chunk(3), strict=True))


def _gpt2(attention: Any, rows: torch.Tensor) -> Rows:
    """Thirds; cross-attention makes its queries elsewhere."""
    if attention.is_cross_attention:
        return dict(zip(("key", "value"), rows.chunk(2), strict=True))
    return _thirds(attention, rows)


def _grouped(attention: Any, rows: torch.Tensor) -> Rows:
    """All queries (H C), then keys and values of the key/value heads (G C each)."""
    size = attention.num_key_value_heads * attention.head_dim
    return dict(zip(ROLES, torch.split_with_sizes(rows, [len(rows) - 2 * size, size, size]), strict=True))


def _by_head(attention: Any, rows: torch.Tensor) -> Rows:
    """``(H, 3, C)``: query, key and value of the first head, of the second, ..."""
    heads = getattr(attention, "num_heads", None) or attention.num_attention_heads
    return {role: part.flatten() for role, part in zip(ROLES, rows.view(heads, 3, -1).unbind(1), strict=True)}


def _gpt_neox(attention: Any, rows: torch.Tensor) -> Rows:
    """``(H, 3, C)``; the layer knows C only."""
    parts = rows.view(-1, 3, attention.head_size).unbind(1)
    return {role: part.flatten() for role, part in zip(ROLES, parts, strict=True)}


def _falcon(attention: Any, rows: torch.Tensor) -> Rows:
    """By head; with shared keys and values ``(G, H / G + 2, C)``: the queries of a group, its key, its value."""
    if not attention.new_decoder_architecture and not attention.multi_query:
        return _by_head(attention, rows)
    groups = attention.num_kv_heads if attention.new_decoder_architecture else 1
    parts = rows.view(groups, -1, attention.head_dim)
    return {"query": parts[:, :-2].flatten(), "key": parts[:, -2].flatten(), "value": parts[:, -1].flatten()}


def _gpt_bigcode(attention: Any, rows: torch.Tensor) -> Rows:
    """All queries, one key, one value; without multi-query by head."""
    if not attention.multi_query:
        return _by_head(attention, rows)
    sizes = [attention.embed_dim, attention.kv_dim, attention.kv_dim]
    return dict(zip(ROLES, torch.split_with_sizes(rows, sizes), strict=True))


def _codegen(_: Any, rows: torch.Tensor) -> Rows:
    """``(4, 3, H C / 4)``: four parts for as many cores, in each queries, values, keys."""
    parts = rows.view(4, 3, -1).unbind(1)
    return {"query": parts[0].flatten(), "value": parts[1].flatten(), "key": parts[2].flatten()}


# Class and attribute of a layer that makes several roles, to the layout of its rows.
JOINED: Mapping[tuple[str, str], Callable[[Any, torch.Tensor], Rows]] = {
    ("GPT2Attention", "c_attn"): _gpt2,
    ("GPTBigCodeAttention", "c_attn"): _gpt_bigcode,
    ("MptAttention", "Wqkv"): _thirds,
    ("DbrxAttention", "Wqkv"): _grouped,
    ("Phi3Attention", "qkv_proj"): _grouped,
    ("Phi4MultimodalAttention", "qkv_proj"): _grouped,
    ("GPTNeoXAttention", "query_key_value"): _gpt_neox,
    ("GPTNeoXJapaneseAttention", "query_key_value"): _by_head,
    ("BloomAttention", "query_key_value"): _by_head,
    ("PersimmonAttention", "query_key_value"): _by_head,
    ("FalconAttention", "query_key_value"): _falcon,
    ("CodeGenAttention", "qkv_proj"): _codegen,
    ("MiniMaxLightningAttention", "qkv_proj"): _by_head,
}


def rows_by_role(attention: Any, attribute: str, num_rows: int) -> Rows:
    """The rows of a linear layer's output that are queries, keys and values; empty if it makes none of them.

    In multi-head latent attention (DeepSeek) these are the rows made from the latent vectors, and the part of the keys
    that is rotated; rows that are latent vectors have no role.

    Args:
        attention: The attention layer.
        attribute: Of the linear layer, in the attention layer.
        num_rows: Output features of the linear layer.
    """
    rows = torch.arange(num_rows)
    for kind in type(attention).__mro__:
        if (layout := JOINED.get((kind.__name__, attribute))) is not None:
            return layout(attention, rows)
    if attribute == "kv_b_proj":  # (H, channels of a key without its rotated part + channels of a value)
        sizes = [attention.qk_nope_head_dim, attention.v_head_dim]
        key, value = torch.split_with_sizes(rows.view(-1, sum(sizes)), sizes, dim=1)
        return {"key": key.flatten(), "value": value.flatten()}
    if attribute == "kv_a_proj_with_mqa":
        return {"key": rows[attention.kv_lora_rank :]}
    role = SEPARATE.get(attribute)
    if role is None:
        return {}
    if attribute == "q_proj" and _has_gated_queries(attention, num_rows):
        # (H, 2, C): the query of a head and its gate on what the head reads (Qwen3-Next).
        return {"query": rows.view(-1, 2, attention.head_dim)[:, 0].flatten()}
    return {role: rows}


def _has_gated_queries(attention: Any, num_rows: int) -> bool:
    if hasattr(attention, "kv_b_proj") or not hasattr(attention, "head_dim"):
        return False
    heads = getattr(getattr(attention, "config", None), "num_attention_heads", None)
    return heads is not None and num_rows == 2 * heads * attention.head_dim
