"""Attention of query heads that share keys and values, without copying these for every head, and its gradient on a CPU.

B rows, G key/value heads, H query heads, T tokens in this call, L positions attended to, C head channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

SHARED_HEADS_ATTENTION = "tuneoff_shared_heads"
# ``(B, H, T, C)``, ``(B, G, L, C)``, ``(B, G, L, C)`` to ``(B, T, H, C)``.
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
FLASH_ATTENTION = ("flash_attention_2", "flash_attention_3")


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

    With a mask and more than one query token, transformers' own function copies keys and values for every query head of
    a group, and the copies are kept for the backward pass. Where half precision would make the gradient slow, it is
    taken in fp32 and rounded.

    Args:
        module: The attention layer.
        query: ``(B, H, T, C)``.
        key: ``(B, G, L, C)``.
        value: ``(B, G, L, C)``.
        attention_mask: ``(B or 1, 1, T, L)``. With None, which means causal, and with masks for each head, the function
            of transformers is called.
        dropout: 0 outside training.
        scaling: Factor of the scores; None is ``C ** -0.5``.
        kwargs: Other arguments. With a bias or a cap on scores, the function of transformers is called.

    Returns:
        ``(B, T, H, C)``.
    """
    plain = all(kwargs.get(name) is None for name in ("position_bias", "softcap", "cache"))
    slow = query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16) and dropout == 0
    if slow and plain and torch.is_grad_enabled() and not torch.compiler.is_compiling():

        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            mask = attention_mask
            if mask is not None and mask.is_floating_point():
                mask = mask.to(query.dtype)
            return shared_heads_attention(module, query, key, value, mask, dropout, scaling, **kwargs)[0]

        return GradientInFp32.apply(attend, query, key, value), None  # type: ignore[no-untyped-call]
    if query.shape[1] == key.shape[1] or attention_mask is None or attention_mask.shape[1] > 1 or not plain:
        outputs: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return outputs
    if query.device.type == "cpu":  # the CPU kernel groups heads itself, those of GPUs only without a mask
        output = nn.functional.scaled_dot_product_attention(
            query, key, value, attention_mask, dropout, scale=scaling, enable_gqa=True
        )
    else:
        output = heads_as_rows(query, key, value, attention_mask, dropout, scaling)
    return output.transpose(1, 2).contiguous(), None


class GradientInFp32(torch.autograd.Function):
    """Attention in half precision whose gradient is taken in fp32, of what it computes once more from its inputs.

    On a CPU torch 2.13 takes the gradient of its kernel five times as long in half precision as in fp32.
    """

    @staticmethod
    def forward(ctx: Any, attend: Attend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        ctx.attend = attend
        ctx.save_for_backward(query, key, value)
        return attend(query, key, value)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs = [saved.detach().float().requires_grad_() for saved in ctx.saved_tensors]
        with torch.enable_grad():
            output = ctx.attend(*inputs)
        exact = torch.autograd.grad(output, inputs, gradients[0].float())
        return None, *(gradient.to(saved.dtype) for gradient, saved in zip(exact, ctx.saved_tensors, strict=True))


def heads_as_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """Attention ``(B, H, T, C)`` that treats the heads of a group as one head with H / G times as many tokens."""
    rows, heads, tokens, channels = query.shape
    groups = heads // key.shape[1]
    output = nn.functional.scaled_dot_product_attention(
        query.reshape(rows, key.shape[1], groups * tokens, channels),
        key,
        value,
        attention_mask.repeat(1, 1, groups, 1),
        dropout,
        scale=scaling,
    )
    return output.reshape(query.shape)


AttentionInterface.register(SHARED_HEADS_ATTENTION, shared_heads_attention)
AttentionMaskInterface.register(SHARED_HEADS_ATTENTION, sdpa_mask)


@contextmanager
def sharing_heads(*models: nn.Module) -> Iterator[None]:
    """Inside the block layers that use transformers' SDPA use :func:`shared_heads_attention`."""
    with _attention_replaced(models, ("sdpa",), SHARED_HEADS_ATTENTION):
        yield


@contextmanager
def masked_instead_of_flash(model: nn.Module) -> Iterator[None]:
    """Inside the block layers that use flash attention use SDPA: the same function, which takes masks of one's own."""
    with _attention_replaced([model], FLASH_ATTENTION, "sdpa"):
        yield


@contextmanager
def _attention_replaced(models: Sequence[nn.Module], names: Sequence[str], other: str) -> Iterator[None]:
    configs: dict[int, Any] = {
        id(module.config): module.config
        for model in models
        for module in model.modules()
        if getattr(getattr(module, "config", None), "_attn_implementation", None) in names
    }
    before = {key: config._attn_implementation for key, config in configs.items()}
    for config in configs.values():
        config._attn_implementation = other
    try:
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
