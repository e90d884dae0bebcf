"""Modules of base models that have a faster equal."""

from __future__ import annotations

from typing import Any

from torch import nn


def use_fused_activations(model: Any) -> None:
    """Replace GPT-2's GELU, eight operations in Python, by one kernel of the same formula.

    ``gelu_new`` and the tanh approximation of torch are the same function (Hendrycks & Gimpel 2016, section 2),
    equal to rounding in value and gradient. For the backward pass the kernel keeps its input, the operations keep four
    tensors of that size.
    """
    from transformers.activations import NewGELUActivation

    slow = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is NewGELUActivation
    ]
    for parent, name in slow:
        setattr(parent, name, nn.GELU(approximate="tanh"))
