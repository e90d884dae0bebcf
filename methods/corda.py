"""CorDA (Yang et al. 2024): LoRA that starts from the weight as seen through the inputs of its layer.

I input features of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn

from bench.method import MethodError
from methods.parts.layer_inputs import lora_layers, require_reached, run, watching_inputs
from methods.parts.lora_family import FactorConfig, StartedLoRA, remember_start_of_rank

# The covariance is inverted with this share of its mean variance added, doubled until the inverse is good enough.
DAMPING, WORST_INVERSE = 0.01, 0.05


class ContextOrientedLoRA(StartedLoRA):
    """LoRA that starts from singular vectors of the weight times the covariance of what the layer reads.

    Source: Yang et al. 2024, section 3, in the form of peft (inputs of an example divided by their largest, damped
    inverse). ``mode: instruction`` trains the largest components, ``knowledge`` the smallest. The base weight
    stays as it is: the product of the start, which is stored, is taken off what the layer puts out.

    Deviations: none in the function. The examples are training examples; for ``knowledge`` the paper takes questions
    on what is to be kept.
    """

    class Config(FactorConfig):
        """Settings of CorDA."""

        mode: Literal["instruction", "knowledge"] = Field(
            "instruction", description="instruction: the largest components are trained; knowledge: the smallest"
        )
        examples: PositiveInt = Field(64, description="training examples that are looked at before the first step")

    paper: ClassVar[str] = "Yang et al. 2024, arXiv:2406.05223"

    @property
    def start_examples(self) -> int:
        return int(self.config.examples)

    def begin(self, name: str, layer: Any) -> None:
        remember_start_of_rank(layer, self.config.rank, name)

    def start_from(self, model: nn.Module, losses: Sequence[Callable[[], torch.Tensor]]) -> None:
        layers = lora_layers(model)
        sums: dict[str, torch.Tensor] = {}

        def see(name: str, x: torch.Tensor) -> None:
            x = x / x.max().abs()
            sums[name] = sums.get(name, torch.zeros_like(x[:1])) + x.T @ x

        with watching_inputs(layers, see):
            run(losses)
        require_reached(layers, sums, len(losses))
        for name, layer in layers.items():
            covariance, inverse = _inverted(sums.pop(name) / len(losses), name)
            with self.whole_base(layer):
                layer.start_from([self._factors(weight, covariance, inverse) for weight in layer.weights_of_parts()])

    def _factors(
        self, weight: torch.Tensor, covariance: torch.Tensor, inverse: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        left, values, right = torch.linalg.svd(weight @ covariance, full_matrices=False)
        rank = self.config.rank
        chosen = slice(rank) if self.config.mode == "instruction" else slice(len(values) - rank, None)
        root = (values[chosen] / self.scaling).sqrt()
        return root[:, None] * (right[chosen] @ inverse), left[:, chosen] * root


def _inverted(covariance: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A covariance ``(I, I)`` that can be inverted, and its inverse.

    Raises:
        MethodError: It has values that are not finite, or none but zeros. The message names the layer.
    """
    if not (covariance.isfinite().all() and covariance.any()):
        raise MethodError(
            f"{name}: the covariance of its inputs on these examples is not finite, or zero, so that nothing says "
            "where it starts; name other target_modules, or look at other examples"
        )
    unit, damping = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device), DAMPING
    while True:
        damped = covariance + damping * covariance.diagonal().mean() * unit
        inverse: torch.Tensor = torch.linalg.inv(damped)
        if float(torch.dist(damped @ inverse, unit)) < WORST_INVERSE:
            return damped, inverse
        damping *= 2
