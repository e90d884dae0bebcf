"""ALiBi (Press et al. 2022) with a prefix: scores fall with the distance of a key; the prefix is right before the text.

Families differ in its form. BLOOM and Falcon count a key's distance from the first real token of its row and pass it to
each layer; Falcon also adds it to the mask. MPT counts columns backwards from the last key, so that its prefix has to
be between padding and text.

B batch, H heads, T tokens in this call, S tokens attended to (cached and new), P prefix.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch

from methods.parts.attention_sites import AttentionSite, has_distance_bias


def counts_columns(site: AttentionSite) -> bool:
    """Whether a layer computes a key's distance from its column (MPT)."""
    return has_distance_bias(site) and "alibi" not in site.names.others


def first_real_columns(mask: torch.Tensor) -> torch.Tensor:
    """``(B,)``, the column of each row's first token, of a mask ``(B, 1, T, S)`` that is true where keys are hidden."""
    return (mask[:, 0, -1].logical_not().cumsum(-1) == 0).sum(-1)


def lengthen(site: AttentionSite, call: dict[str, Any], num_prefix_tokens: int) -> None:
    """Add the prefix's distances to the arguments of a call whose mask already has columns for the prefix in front.

    Args:
        site: A layer that gets its biases as an argument.
        call: Arguments by name; ``alibi`` is ``(B H, 1, S)`` or ``(B, H, 1, S)``.
        num_prefix_tokens: P.
    """
    alibi = call.get("alibi")
    if alibi is None:
        return
    columns = _columns(site, num_prefix_tokens, alibi)  # (H, 1, P)
    if alibi.dim() == 3:
        columns = columns.repeat(len(alibi) // len(columns), 1, 1)
    else:
        columns = columns.expand(len(alibi), -1, -1, -1)
        if (mask := call[site.names.mask]) is not None and mask.shape[1] > 1:  # a mask for each head contains biases
            scaled = (columns / math.sqrt(site.layer.head_dim)).to(mask.dtype)
            in_front = mask[..., :num_prefix_tokens] + scaled
            call[site.names.mask] = torch.cat([in_front, mask[..., num_prefix_tokens:]], dim=-1)
    call["alibi"] = torch.cat([columns, alibi], dim=-1)


def _columns(site: AttentionSite, num_prefix_tokens: int, like: torch.Tensor) -> torch.Tensor:
    """``(H, 1, P)``: biases of the positions -P to -1, where the first token has position 0."""
    build = sys.modules[type(site.layer).__module__].build_alibi_tensor
    mask = torch.ones(1, num_prefix_tokens + 1, dtype=torch.long, device=like.device)
    after: torch.Tensor = build(mask, site.layer.num_heads, like.dtype)  # (H, 1, P + 1) at 0 to P
    return -after[..., 1:].flip(-1)
