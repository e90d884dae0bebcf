"""Models that what is trained has moved: many methods start as the base model, which would hide what they compute."""

from __future__ import annotations

from typing import Any

import torch

from bench.method import trained_parameters


def disturb(model: Any) -> None:
    """Move what is trained off its start."""
    with torch.no_grad():
        for _, parameter in trained_parameters(model):
            parameter += 0.2 * torch.randn_like(parameter)
