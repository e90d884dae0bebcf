"""BitFit (Ben Zaken et al. 2022): only biases are trained."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from bench.method import Method, MethodConfig, MethodError, Range, SearchSpace
from methods.parts.blocks import is_state_space
from methods.parts.experts import expert_tensors
from methods.parts.joined_projections import SEPARATE
from methods.parts.transformer_parts import linear_layers
from methods.parts.weight_reads import uses_of


class BitFit(Method):
    """Trains all biases, and nothing else.

    Source: Ben Zaken et al. 2022, section 3 (all bias terms of the transformer, those of the norms included).

    Deviations: Llama and most later models have no biases. Their linear layers get biases that start at zero, so that
    step 0 is the base model; ``add_missing: false`` trains only existing biases. Key projections get none, because
    without rotary positions a bias on all keys cancels in the softmax. Layers of state-space parts get none either:
    these parts set padding to zero before they read it, and a bias would change that.
    """

    class Config(MethodConfig):
        """Settings of BitFit."""

        add_missing: bool = Field(
            True,
            description="give linear layers without a bias one that starts at zero, but for key projections, layers "
            "of state-space parts and the output head",
        )

    paper: ClassVar[str] = "Ben Zaken et al. 2022, arXiv:2106.10199"
    search_space: ClassVar[SearchSpace] = {"train.learning_rate": Range(low=1e-4, high=1e-2)}

    def patch(self, model: Any) -> nn.Module:
        uses = uses_of(model)
        biases = [
            parameter
            for inner, module in model.named_modules()
            for name, parameter in module.named_parameters(recurse=False)
            if (name == "bias" or (name.endswith("_bias") and expert_tensors(module)))
            and uses.has_part(f"{inner}.{name}")
        ]
        if self.config.add_missing:
            biases.extend(_added_biases(model))
        if not biases:
            remedy = "" if self.config.add_missing else "; set add_missing: true to give it some"
            raise MethodError(f"{type(model).__name__} has no bias to train{remedy}")
        for bias in biases:
            bias.requires_grad_(True)
        module: nn.Module = model
        return module


def _added_biases(model: Any) -> list[nn.Parameter]:
    """Give linear layers without a bias one of zeros, except key projections and state-space parts."""
    clear_padding = {id(inner) for module in model.modules() if is_state_space(module) for inner in module.modules()}
    added = []
    for layer in linear_layers(model):
        needs_none = layer.module.bias is not None or SEPARATE.get(layer.attribute) == "key"
        if not needs_none and id(layer.module) not in clear_padding:
            zeros = torch.zeros(layer.out_features, dtype=layer.like.dtype, device=layer.like.device)
            layer.module.bias = nn.Parameter(zeros)
            added.append(layer.module.bias)
    return added
