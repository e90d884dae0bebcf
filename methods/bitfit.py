"""BitFit (Ben Zaken et al. 2022): only biases are trained."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from bench.method import Method, MethodConfig, MethodError, Range, SearchSpace
from methods.transformer_parts import SEPARATE, linear_layers


class BitFit(Method):
    """All biases are trained, and nothing else.

    Source: Ben Zaken et al. 2022, section 3 (all bias terms of the transformer, those of the norms included).

    Deviations: Llama and most later models have no biases. Their linear layers get some that start at zero, so that
    step 0 is the base model; ``add_missing: false`` trains only what is there. Key projections get none: without rotary
    positions, a bias on all keys cancels in the softmax.
    """

    class Config(MethodConfig):
        """Settings of BitFit."""

        add_missing: bool = Field(
            True,
            description="give linear layers without a bias one that starts at zero, but for key projections and the "
            "output head",
        )

    paper: ClassVar[str] = "Ben Zaken et al. 2022, arXiv:2106.10199"
    search_space: ClassVar[SearchSpace] = {"train.learning_rate": Range(low=1e-4, high=1e-2)}

    def patch(self, model: Any) -> nn.Module:
        if self.config.add_missing:
            for layer in linear_layers(model):
                if layer.module.bias is None and SEPARATE.get(layer.attribute) != "key":
                    zeros = torch.zeros(layer.out_features, dtype=layer.weight.dtype, device=layer.weight.device)
                    layer.module.bias = nn.Parameter(zeros)
        biases = [parameter for name, parameter in model.named_parameters() if name.split(".")[-1] == "bias"]
        if not biases:
            raise MethodError(f"{type(model).__name__} has no bias to train; set add_missing: true to give it some")
        for bias in biases:
            bias.requires_grad_(True)
        module: nn.Module = model
        return module
