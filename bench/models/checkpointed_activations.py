"""Activation checkpointing: activations are computed again in the backward pass, which saves memory and takes time."""

from __future__ import annotations

from typing import Any


def compute_activations_twice(model: Any, **settings: Any) -> None:
    """Switch activation checkpointing on. Before transformers 5.18 its name was gradient checkpointing.

    Args:
        model: A model of transformers.
        settings: Settings of ``torch.utils.checkpoint``. Reentrant checkpoints, whose input needs a gradient, are off.
    """
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False, **settings})
