"""DoRA (Liu et al. 2024): directions by LoRA, lengths of rows trained apart.

O output features, I input features.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bench.method import Lanes, MethodError, PeftAdapter, dequantized
from methods.parts.lora_family import FactorConfig, LoRAFamily
from methods.parts.lora_layer import LoRALayer


class DoRALayer(LoRALayer):
    """Rows of the weight with a direction, ``W + scaling * B A``, and a trained length.

    The length that the sum has is taken for a constant in the backward pass (section 4.3 of the paper).
    """

    def __init__(self, base_layer: Any, *sizes: Any) -> None:
        super().__init__(base_layer, *sizes)
        lengths = sum(self.part_sizes)
        self.magnitude = nn.Parameter(self.lora_B.new_ones(lengths))

    def direction(self) -> torch.Tensor:
        """``(O, I)``: the base weight with the product added."""
        weight = dequantized(self.base_layer, self.lora_A.dtype)
        weight = weight.T if isinstance(self.base_layer, Conv1D) else weight
        direction: torch.Tensor = weight + self.scaling * (self.up() @ self.down())
        return direction

    def start(self) -> None:
        """Let each row begin at the length that it has."""
        with torch.no_grad():
            self.magnitude.copy_(self._adapted(self.direction().norm(dim=1)))

    def _adapted(self, of_rows: torch.Tensor) -> torch.Tensor:
        return of_rows if self.rows is None else of_rows[self.rows]

    def scale(self) -> torch.Tensor:
        """``(O,)``: by how much each row is longer than its direction; 1 where it is not adapted."""
        with torch.no_grad():
            length = self._adapted(self.direction().norm(dim=1))
        scale = self.magnitude / length
        return scale if self.rows is None else scale.new_ones(self.out_features).index_copy(0, self.rows, scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._unmerged:
            merged: torch.Tensor = self.base_layer(x)
            return merged
        output: torch.Tensor = self.base_layer(x)  # (B, T, O)
        bias = self.base_layer.bias
        without = output if bias is None else output - bias
        low_rank = nn.functional.linear(nn.functional.linear(x, self.down()), self.up())
        scaled = self.scale() * (without + self.scaling * low_rank)
        return scaled if bias is None else scaled + bias

    def merged_weight(self) -> torch.Tensor:
        merged: torch.Tensor = self.scale()[:, None] * self.direction()
        return merged.T if isinstance(self.base_layer, Conv1D) else merged


class DoRA(LoRAFamily):
    """LoRA for the direction of each row of a weight, and a trained length for each row.

    Source: Liu et al. 2024, equations 5 and 11: the length of the direction is a constant in the backward pass, so that
    gradients are estimates on purpose. A row is what makes one output.

    Deviations: none. Equal to peft's ``use_dora``. Of a joined layer the rows of the adapted parts alone have lengths.
    On quantised base weights lengths are those of the dequantised ones.
    """

    class Config(FactorConfig):
        """Settings of DoRA."""

    paper: ClassVar[str] = "Liu et al. 2024, arXiv:2402.09353"
    layer_class: ClassVar[type[LoRALayer]] = DoRALayer
    estimates_gradients: ClassVar[bool] = True

    def begin(self, name: str, layer: Any) -> None:
        if not layer.lora_A.is_meta:
            layer.start()

    @property
    def fusable(self) -> bool:
        return False

    def fuse(self, models: Any, lanes: Lanes) -> None:
        raise MethodError("DoRA has a weight of its own for each trial, so that trials cannot share a pass")

    def to_peft(self, model: nn.Module) -> PeftAdapter:
        found = super().to_peft(model)
        for name, layer in model.named_modules():
            if isinstance(layer, DoRALayer):
                lengths = layer.direction().norm(dim=1).detach()
                whole = layer.magnitude.detach()
                if layer.rows is not None:
                    whole = lengths.index_copy(0, layer.rows, whole)
                found.state[f"base_model.model.{name}.lora_magnitude_vector"] = whole
        return PeftAdapter({**found.config, "use_dora": True}, found.state)
