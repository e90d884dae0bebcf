"""What the method adds to the model, so that the package has more than one module."""

from __future__ import annotations

import torch
from torch import nn


class Offset(nn.Module):
    """A vector ``(D,)`` that is added to what an embedding gives."""

    def __init__(self, like: torch.Tensor, std: float) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(like.shape[-1], dtype=like.dtype, device=like.device) * std)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings + self.vector.to(embeddings.dtype)
