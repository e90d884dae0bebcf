"""The part of the plugin that knows torch hooks, so that the package has more than one module."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Offset(nn.Module):
    """A vector ``(D,)`` that is added to what an embedding gives."""

    def __init__(self, like: torch.Tensor, std: float) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(like.shape[-1], dtype=like.dtype, device=like.device) * std)

    def hook(self, _: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return output + self.vector.to(output.dtype)
