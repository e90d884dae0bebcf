"""LoRA inside the experts of a mixture whose matrices are 3-D tensors.

E experts, S tokens, I and O features that a matrix reads and writes, R rank.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from methods.parts.experts import AdaptedExperts, expert_tensors


class LoRAExperts(AdaptedExperts):
    """The experts of a mixture. Each adds ``scaling * B A dropout(x)`` to the output of each of its matrices.

    For each tensor of the experts there is a ``..._lora_A`` ``(E, R, I)`` and a ``..._lora_B`` ``(E, O, R)``. The
    product is computed from the inputs of each expert and not added to the matrices, so that low-precision weights do
    not round it.

    Args:
        base_experts: They stay frozen.
        rank: R.
        scaling: Factor of the low-rank product.
        dropout: Probability, on the input of A.
    """

    def __init__(self, base_experts: Any, rank: int, scaling: float, dropout: float) -> None:
        super().__init__(base_experts)
        self.scaling = scaling
        self.dropout = dropout
        self.tensors = expert_tensors(base_experts)
        for name in self.tensors:
            like = getattr(base_experts, name)
            experts, in_features, out_features = self.sizes(name)
            down = torch.empty(experts, rank, in_features, dtype=like.dtype, device=like.device)
            for expert in down:
                nn.init.kaiming_uniform_(expert, a=math.sqrt(5))
            up = torch.zeros(experts, out_features, rank, dtype=like.dtype, device=like.device)
            self.register_parameter(f"{name}_lora_A", nn.Parameter(down))
            self.register_parameter(f"{name}_lora_B", nn.Parameter(up))
        self._unmerged: dict[str, nn.Parameter] = {}

    def project(self, name: str, expert: int, x: torch.Tensor) -> torch.Tensor:
        output = super().project(name, expert, x)
        if self._unmerged:
            return output
        down, up = self._factors(name)
        x = nn.functional.dropout(x, self.dropout, self.training)
        low_rank = nn.functional.linear(x, down[expert])  # (S, R)
        return output + self.scaling * nn.functional.linear(low_rank, up[expert])

    def _factors(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        return getattr(self, f"{name}_lora_A"), getattr(self, f"{name}_lora_B")

    def merge(self) -> None:
        """Add the products to the matrices. :meth:`unmerge` restores them."""
        if self._unmerged:
            return
        merged: dict[str, nn.Parameter] = {}
        for name in self.tensors:
            weight: nn.Parameter = getattr(self.base_experts, name)
            down, up = self._factors(name)
            with torch.no_grad():
                product = self.scaling * (up @ down)  # (E, O, I)
                summed = weight + (product.mT if self.transposed else product)
            merged[name] = weight
            setattr(self.base_experts, name, nn.Parameter(summed, requires_grad=False))
        self._unmerged = merged

    def unmerge(self) -> None:
        """Put the matrices back, bit for bit."""
        for name, weight in self._unmerged.items():
            setattr(self.base_experts, name, weight)
        self._unmerged = {}
