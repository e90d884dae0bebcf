"""LoRA within the experts of a mixture whose matrices are tensors of three dimensions.

E experts, S tokens, I and O features that a matrix reads and writes, R rank.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from methods.experts import AdaptedExperts, expert_tensors


class ExpertFactors(nn.Module):
    """``scaling * B A dropout(x)`` for each expert, with an A and a B of its own.

    Args:
        sizes: E, I and O.
        rank: R.
        scaling: Factor of the low-rank product.
        dropout: Probability, on the input of A.
        like: Tensor whose dtype and device the parameters get.
    """

    def __init__(
        self, sizes: tuple[int, int, int], rank: int, scaling: float, dropout: float, like: torch.Tensor
    ) -> None:
        super().__init__()
        experts, in_features, out_features = sizes
        options: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        self.scaling = scaling
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.lora_A = nn.Parameter(torch.empty(experts, rank, in_features, **options))
        self.lora_B = nn.Parameter(torch.zeros(experts, out_features, rank, **options))
        for expert in self.lora_A:
            nn.init.kaiming_uniform_(expert, a=math.sqrt(5))

    def forward(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        """``(S, I)`` to ``(S, O)``."""
        x = x if self.dropout is None else self.dropout(x)
        low_rank = nn.functional.linear(x, self.lora_A[expert])
        return self.scaling * nn.functional.linear(low_rank, self.lora_B[expert])

    def product(self) -> torch.Tensor:
        """``(E, O, I)``: what is added to the matrices."""
        return self.scaling * (self.lora_B @ self.lora_A)


class LoRAExperts(AdaptedExperts):
    """The experts of a mixture with a low-rank product added to each of their matrices.

    The product is computed from each expert's inputs and never as a matrix, so that nothing of it is lost in the
    rounding of low-precision weights.

    Args:
        base_experts: They stay frozen.
        rank: R.
        scaling: Factor of the low-rank product.
        dropout: Probability, on the input of A.
    """

    def __init__(self, base_experts: Any, rank: int, scaling: float, dropout: float) -> None:
        super().__init__(base_experts)
        self.factors = nn.ModuleDict(
            {
                name: ExpertFactors(self.sizes(name), rank, scaling, dropout, getattr(base_experts, name))
                for name in expert_tensors(base_experts)
            }
        )
        self._unmerged: dict[str, nn.Parameter] = {}

    def project(self, name: str, expert: int, x: torch.Tensor) -> torch.Tensor:
        output = super().project(name, expert, x)
        factors: torch.Tensor = self.factors[name](expert, x)
        return output + factors

    def forward(self, hidden_states: torch.Tensor, *routing: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        if self._unmerged:
            merged: torch.Tensor = self.base_experts(hidden_states, *routing, **named)
            return merged
        return super().forward(hidden_states, *routing, **named)

    def merge(self) -> None:
        """Add the products to the matrices, which are kept."""
        if self._unmerged:
            return
        for name, factors in self.factors.items():
            weight: nn.Parameter = getattr(self.base_experts, name)
            with torch.no_grad():
                product = factors.product()  # type: ignore[operator]
                merged = weight + (product.mT if self.transposed else product)
            self._unmerged[name] = weight
            setattr(self.base_experts, name, nn.Parameter(merged, requires_grad=False))

    def unmerge(self) -> None:
        """Put the matrices back, bit for bit."""
        for name, weight in self._unmerged.items():
            setattr(self.base_experts, name, weight)
        self._unmerged = {}
