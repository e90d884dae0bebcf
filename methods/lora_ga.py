"""LoRA-GA (Wang et al. 2024): LoRA that starts along the gradient of the weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

from bench.method import MethodError, whole
from methods.parts.layer_inputs import lora_layers, require_reached
from methods.parts.lora_family import FactorConfig, StartedLoRA, remember_start_of_rank, svd_factors

# In fp16 most gradients of a mean loss are below its range; so many times as large they are within it.
LOSS_SCALE_IN_FP16 = 2.0**10


class GradientLoRA(StartedLoRA):
    """LoRA whose A and B start from singular vectors of the gradient of the weight on training examples.

    Source: Wang et al. 2024, section 3.2, in the form of peft (``direction: ArB2r``, ``scale: stable``): A is the first
    R right vectors, B the next R left ones times their values and O^(1/4) / sqrt(gamma), for O adapted rows of the
    weight. The base weight stays as it is: the product of the start, which is stored, is taken off what the layer puts
    out.

    Under ZeRO 3 each rank holds the whole model while it starts.

    Deviations: singular values are exact, and gradients are taken without dropout. As in peft B is scaled by the
    singular values; the paper's own code scales A and B by constants alone. O is the number of outputs, as in the
    paper, also in layers that store their weight transposed (GPT-2), where peft takes the number of inputs for it.
    """

    class Config(FactorConfig):
        """Settings of LoRA-GA."""

        gamma: PositiveFloat = Field(16.0, description="the larger, the smaller B starts")
        examples: PositiveInt = Field(
            64, description="training examples whose gradients are averaged before the first step"
        )

    paper: ClassVar[str] = "Wang et al. 2024, arXiv:2407.05000"

    @property
    def start_examples(self) -> int:
        return int(self.config.examples)

    def begin(self, name: str, layer: Any) -> None:
        remember_start_of_rank(layer, 2 * self.config.rank, name)

    def start_from(self, model: nn.Module, losses: Sequence[Callable[[], torch.Tensor]]) -> None:
        layers = lora_layers(model)
        weights = {name: layer.base_layer.weight for name, layer in layers.items()}
        totals: dict[str, torch.Tensor] = {}
        # The whole model, because a backward pass reads weights that ranks hold in slices outside of any call.
        with whole(list(model.parameters())), _requiring_grad(list(weights.values())), torch.enable_grad():
            for loss in losses:
                for name, gradient in _gradients(loss(), weights):
                    totals[name] = totals[name] + gradient if name in totals else gradient
        require_reached(layers, totals, len(losses))
        rank = self.config.rank
        for name, layer in layers.items():
            factors = []
            total = totals.pop(name) / len(losses)
            if not total.isfinite().all():
                raise MethodError(f"{name}: the gradient that it would start along is not finite")
            for gradient in layer.rows_of_parts(total):
                scale = len(gradient) ** 0.25 / self.config.gamma**0.5
                left, values, right = svd_factors(gradient, 2 * rank, name)
                factors.append((right[:rank], scale * left[:, rank:] * values[rank:]))
            layer.start_from(factors)


def _gradients(loss: torch.Tensor, weights: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, torch.Tensor]]:
    """The gradients of a loss by those of the weights that it depends on, by name, in fp32 or more."""
    in_fp16 = any(weight.dtype == torch.float16 for weight in weights.values())
    scale = LOSS_SCALE_IN_FP16 if in_fp16 else 1.0
    if not loss.requires_grad:
        return
    gradients = torch.autograd.grad(loss * scale, list(weights.values()), allow_unused=True)
    for name, gradient in zip(weights, gradients, strict=True):
        if gradient is not None:
            yield name, gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / scale


@contextmanager
def _requiring_grad(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside the block frozen weights require grad."""
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(False)
