"""Moves trained tensors from their start, at which many methods compute the same as the base model."""

from __future__ import annotations

from typing import Any

import torch

from bench.method import trained_parameters


def disturb(model: Any) -> None:
    """Add random numbers to the trained tensors."""
    with torch.no_grad():
        for _, parameter in trained_parameters(model):
            parameter += 0.2 * torch.randn_like(parameter)
