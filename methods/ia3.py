"""(IA)^3 (Liu et al. 2022): trained factors on keys, values and the inner activations of feed-forward layers.

B batch, T tokens, I and O input and output features of a linear layer, F features, K trials that share the rows (1
unless they train in lanes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bench.method import (
    Lanes,
    Method,
    MethodError,
    PeftAdapter,
    Range,
    SearchSpace,
    computes_like,
    join_lanes,
    of_lanes,
)
from methods.parts.blocks import blocks
from methods.parts.experts import AdaptedExperts, require_known_experts
from methods.parts.roles import projections_in_every_block
from methods.parts.transformer_parts import LinearWrapper


class ScaledOutputLayer(LinearWrapper):
    """``base_layer(x)`` with some rows of its output multiplied by trained factors.

    Args:
        base_layer: ``nn.Linear`` or ``Conv1D``; it stays frozen.
        out_features: O.
        rows: The rows to scale, int64; as many factors are trained.
    """

    rows: torch.Tensor

    def __init__(self, base_layer: Any, out_features: int, rows: torch.Tensor) -> None:
        super().__init__(base_layer)
        self.out_features = out_features
        self.register_buffer("rows", rows.to(self.weight.device), persistent=False)
        self.ia3_scale = _ones(len(rows), computes_like(base_layer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.base_layer(x)  # (B, T, O)
        return scaled(output, of_lanes(self, ScaledOutputLayer.scale))

    def scale(self) -> torch.Tensor:
        """``(O,)``: the trained factors at their rows, one elsewhere."""
        scale: torch.Tensor = self.ia3_scale
        if len(scale) == self.out_features:
            return scale
        return scale.new_ones(self.out_features).index_copy(0, self.rows, scale)


class ScaledInputLayer(LinearWrapper):
    """``base_layer(scale * x)`` with a trained factor for each input feature.

    Args:
        base_layer: ``nn.Linear`` or ``Conv1D``; it stays frozen.
        in_features: I.
    """

    def __init__(self, base_layer: Any, in_features: int) -> None:
        super().__init__(base_layer)
        self.ia3_scale = _ones(in_features, computes_like(base_layer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.base_layer(scaled(x, of_lanes(self, lambda layer: layer.ia3_scale)))
        return output


class ScaledExperts(AdaptedExperts):
    """The experts of a mixture with trained factors on the inner activations of each.

    Args:
        base_experts: They stay frozen.
    """

    def __init__(self, base_experts: Any) -> None:
        super().__init__(base_experts)
        experts, in_features, _ = self.sizes("down_proj")
        like = base_experts.down_proj
        ones = torch.ones(experts, in_features, dtype=like.dtype, device=like.device)
        self.down_proj_ia3_scale = nn.Parameter(ones)  # named after the matrix that reads the scaled activations

    def inner(self, expert: int, features: torch.Tensor) -> torch.Tensor:
        return features * self.down_proj_ia3_scale[expert]


def scaled(features: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Features ``(B, T, F)`` times the factors ``(K, F)`` of each lane for its rows."""
    of_lane = features.reshape(len(scales), -1, scales.shape[1])  # (K, B T / K, F)
    return (of_lane * scales[:, None]).view(features.shape)


def shaped_for(scale: torch.Tensor, layer: LinearWrapper, side: Literal["input", "output"]) -> torch.Tensor:
    """Factors in a shape that can be multiplied by the weight ``(O, I)`` of a layer, or ``(I, O)`` of a ``Conv1D``."""
    is_column = (side == "output") != isinstance(layer.base_layer, Conv1D)
    return scale[:, None] if is_column else scale[None]


def _ones(size: int, like: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(torch.ones(size, dtype=like.dtype, device=like.device))


class IA3(Method):
    """Multiplies keys, values and inner feed-forward activations by trained factors, which start at one.

    Source: Liu et al. 2022, section 3.3. Cross-attention has its own factors, as in the paper's T0.

    Deviations: each expert of a mixture, which the paper does not have, has its own factors. (Hugging Face peft scales
    the queries of GPT-2 as well, because they share a layer with keys and values, and for some families queries instead
    of keys.)
    """

    paper: ClassVar[str] = "Liu et al. 2022, arXiv:2205.05638"
    search_space: ClassVar[SearchSpace] = {"train.learning_rate": Range(low=1e-3, high=1e-1)}

    def patch(self, model: Any) -> nn.Module:
        rows: dict[str, list[torch.Tensor]] = {}
        layers = {}
        for projection in projections_in_every_block(model, ("key", "value")):
            layers[projection.layer.name] = projection.layer
            rows.setdefault(projection.layer.name, []).append(projection.rows)
        parts = blocks(model)
        experts = [part for block in parts for part in block.experts]
        for part in experts:
            require_known_experts(part.name, part.module)
        for name, layer in layers.items():
            layer.replace(ScaledOutputLayer(layer.module, layer.out_features, torch.cat(rows[name])))
        for block in parts:
            for layer in (part.writer for part in block.feed_forward):
                layer.replace(ScaledInputLayer(layer.module, layer.in_features))
        for part in experts:
            setattr(part.parent, part.attribute, ScaledExperts(part.module))
        module: nn.Module = model
        return module

    @property
    def fusable(self) -> bool:
        return True

    def fuse(self, models: Sequence[nn.Module], lanes: Lanes) -> None:
        if any(isinstance(module, ScaledExperts) for module in models[0].modules()):
            raise MethodError("which tokens an expert gets depends on their values, so that trials cannot share them")
        join_lanes(models, lanes, ScaledOutputLayer, ScaledInputLayer)

    def merged_weights(self, model: Any) -> dict[str, torch.Tensor]:
        """Weights and biases with their rows multiplied by factors of outputs, or columns by factors of inputs."""
        merged: dict[str, torch.Tensor] = {}
        for name, layer in model.named_modules():
            if isinstance(layer, ScaledOutputLayer):
                merged[f"{name}.weight"] = shaped_for(layer.scale(), layer, "output") * layer.weight
                if layer.bias is not None:
                    merged[f"{name}.bias"] = layer.scale() * layer.bias
            elif isinstance(layer, ScaledInputLayer):
                merged[f"{name}.weight"] = shaped_for(layer.ia3_scale, layer, "input") * layer.weight
            elif isinstance(layer, ScaledExperts):
                scale, weight = layer.down_proj_ia3_scale, layer.base_experts.down_proj  # scale (E, F), F: inputs
                merged[f"{name}.down_proj"] = weight * (scale[:, :, None] if layer.transposed else scale[:, None])
        return {name: weight.detach() for name, weight in merged.items()}

    def to_peft(self, model: nn.Module) -> PeftAdapter:
        """IA3 of peft, with factors of one for the parts of an output that are not scaled."""
        if any(isinstance(module, ScaledExperts) for module in model.modules()):
            raise MethodError("Hugging Face peft has no factors on the inner activations of experts")
        outputs = {name: layer for name, layer in model.named_modules() if isinstance(layer, ScaledOutputLayer)}
        inputs = {name: layer for name, layer in model.named_modules() if isinstance(layer, ScaledInputLayer)}
        state = {name: layer.scale().detach()[:, None] for name, layer in outputs.items()}
        state |= {name: layer.ia3_scale.detach()[None] for name, layer in inputs.items()}
        config = {
            "peft_type": "IA3",
            "target_modules": list(state),
            "feedforward_modules": list(inputs),
            "fan_in_fan_out": any(
                isinstance(layer.base_layer, Conv1D) for layer in [*outputs.values(), *inputs.values()]
            ),
        }
        return PeftAdapter(config, {f"base_model.model.{name}.ia3_l": factors for name, factors in state.items()})
