"""The layer of LoRA and its relatives: a trained low-rank matrix added to a frozen linear layer.

B batch, T tokens, I and O input and output features of a linear layer, R rank, N number of adapted parts of its output,
K trials that share the rows (1 unless they train in lanes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bench.method import MethodError, computes_like, lane_modules, of_lanes, stored_in
from methods.parts.transformer_parts import LinearWrapper


class LoRALayer(LinearWrapper):
    """``base_layer(x) + scaling * (B A - start_B start_A) dropout(x)``, without the second product by default.

    Of a joined layer, parts of the output can be adapted apart, each with an A and a B of its own: these are stacked
    in ``lora_A`` ``(N R, I)`` and ``lora_B`` (rows of all parts, R). For a whole output N is 1.

    Where A and B start at something else than zero, their product at the start is taken off again, as if the base
    weight were less by it: the layer starts as the base layer, and the base weight stays as it is. ``start_A`` and
    ``start_B``, of the shapes of A and B, are frozen and stored.

    Args:
        base_layer: ``nn.Linear`` or ``Conv1D``; it stays frozen.
        in_features: I.
        out_features: O.
        parts: Rows of the output that each part adapts, int64; None for the whole output.
        rank: R.
        scaling: Factor of the low-rank product.
        dropout: Probability, on the input of A.
    """

    rows: torch.Tensor | None
    start_A: torch.Tensor | None
    start_B: torch.Tensor | None

    def __init__(
        self,
        base_layer: Any,
        in_features: int,
        out_features: int,
        parts: Sequence[torch.Tensor] | None,
        rank: int,
        scaling: float,
        dropout: float,
    ) -> None:
        super().__init__(base_layer)
        self.scaling = scaling
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.part_sizes = [out_features] if parts is None else [len(part) for part in parts]
        beside = computes_like(base_layer)
        like: dict[str, Any] = {"dtype": beside.dtype, "device": beside.device}
        rows = None if parts is None else torch.cat(list(parts)).to(like["device"])
        self.register_buffer("rows", rows, persistent=False)
        self.out_features = out_features
        self.lora_A = nn.Parameter(torch.empty(len(self.part_sizes) * rank, in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(sum(self.part_sizes), rank, **like))
        self.register_buffer("start_A", None)
        self.register_buffer("start_B", None)
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self._unmerged: tuple[nn.Parameter, ...] = ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.base_layer(x)  # (B, T, O)
        if self._unmerged:
            return output
        x = x if self.dropout is None else self.dropout(x)
        lanes = lane_modules(self)
        if len(lanes) > 1:
            down, up = of_lanes(self, LoRALayer.down), of_lanes(self, LoRALayer.up)
            low_rank = x.reshape(len(lanes), -1, x.shape[-1]) @ down.mT  # (K, B T / K, N R)
            added = torch.baddbmm(
                output.reshape(len(lanes), -1, self.out_features), low_rank, up.mT, alpha=self.scaling
            )
            return added.view(output.shape)
        (lane,) = lanes
        low_rank = nn.functional.linear(x, lane.down())  # (B, T, N R), twice as many with a start
        added = torch.addmm(output.flatten(0, -2), low_rank.flatten(0, -2), lane.up().T, alpha=self.scaling)
        return added.view(output.shape)

    def down(self) -> torch.Tensor:
        """``(N R, I)``, or ``(2 N R, I)`` with a start: A of every part."""
        return self.lora_A if self.start_A is None else torch.cat([self.lora_A, self.start_A])

    def up(self) -> torch.Tensor:
        """``(O, N R)``, or ``(O, 2 N R)`` with a start: B of every part at its rows and columns, zero elsewhere."""
        up = self._placed(self.lora_B)
        return up if self.start_B is None else torch.cat([up, -self._placed(self.start_B)], dim=1)

    def _placed(self, of_parts: torch.Tensor) -> torch.Tensor:
        if self.rows is None:
            return of_parts
        parts = torch.split_with_sizes(of_parts, self.part_sizes)
        blocks: torch.Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
        return blocks.new_zeros(self.out_features, blocks.shape[1]).index_copy(0, self.rows, blocks)

    def begin_at(self, factors: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Have A and B start at these: for each part A ``(R, I)`` and B (its rows, R)."""
        with torch.no_grad():
            self.lora_A.copy_(torch.cat([down for down, _ in factors]))
            self.lora_B.copy_(torch.cat([up for _, up in factors]))

    def start_from(self, factors: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Have A and B start at these, as :meth:`begin_at`, and take their product off what the layer puts out."""
        self.begin_at(factors)
        self.remember_start()

    def remember_start(self) -> None:
        """Take what A and B are now for their start."""
        self.start_A, self.start_B = self.lora_A.detach().clone(), self.lora_B.detach().clone()

    def weights_of_parts(self) -> list[torch.Tensor]:
        """The base weight of each part (its rows, I), in fp32 or more; whole, see :func:`bench.method.whole`."""
        if (kind := stored_in(self.base_layer)) is not None:
            raise MethodError(
                f"weights that are stored in {kind} cannot be taken apart for a start; leave model.quantization out"
            )
        weight = self.base_layer.weight.detach()
        return self.rows_of_parts(weight.to(torch.promote_types(weight.dtype, torch.float32)))

    def rows_of_parts(self, of_weight: torch.Tensor) -> list[torch.Tensor]:
        """Of what has the shape of the base weight, the rows of each part, ``(its rows, I)``."""
        rows_first = of_weight.T if isinstance(self.base_layer, Conv1D) else of_weight
        if self.rows is None:
            return [rows_first]
        return [rows_first[rows] for rows in torch.split_with_sizes(self.rows, self.part_sizes)]

    def merge(self) -> None:
        """Add the product to the base weight, so that the layer costs nothing extra. The weight itself is kept."""
        if self._unmerged:
            return
        if (kind := stored_in(self.base_layer)) is not None:
            raise MethodError(
                f"weights that are stored in {kind} cannot take up what is trained; dequantise them first"
            )
        weight: nn.Parameter = self.base_layer.weight
        with torch.no_grad():
            merged = self.merged_weight()
        self._unmerged = (weight,)
        self.base_layer.weight = nn.Parameter(merged, requires_grad=False)

    def merged_weight(self) -> torch.Tensor:
        """What the base weight would be for the base layer to compute what this one does."""
        weight: nn.Parameter = self.base_layer.weight
        product = self.scaling * (self.up() @ self.down())
        return weight + (product.T if isinstance(self.base_layer, Conv1D) else product)

    def unmerge(self) -> None:
        """Put the base weight back, bit for bit."""
        if self._unmerged:
            (self.base_layer.weight,) = self._unmerged
            self._unmerged = ()
