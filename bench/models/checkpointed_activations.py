"""Activations that are computed a second time in the backward pass, which takes time and saves memory."""

from __future__ import annotations

from typing import Any


def compute_activations_twice(model: Any, **settings: Any) -> None:
    """Turn activation checkpointing on. Before transformers 5.18 it was called gradient checkpointing.

    Args:
        model: Of transformers.
        settings: Of ``torch.utils.checkpoint``; reentrant checkpoints, which need an input with a gradient, are off.
    """
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False, **settings})
