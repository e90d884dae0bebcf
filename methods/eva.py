"""EVA (Paischer et al. 2024): LoRA that starts where the inputs of a layer vary most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import nn

from bench.method import MethodError
from methods.parts.layer_inputs import lora_layers, run, watching_inputs
from methods.parts.lora_family import LoRAConfig, LoRAFamily

# Tokens that are collected before the components are found anew.
TOKENS_AT_ONCE = 512


class ExplainedVarianceLoRA(LoRAFamily):
    """LoRA whose A starts as the principal components of what a layer reads on training examples.

    Source: Paischer et al. 2024, algorithm 1, with peft's incremental principal components. B starts at zero, so that
    the model starts as the base model.

    Deviations: every layer has the same rank (``rho: 1`` in peft's words; the paper also moves ranks between layers),
    and a fixed number of examples is looked at instead of waiting until the components stay.
    """

    class Config(LoRAConfig):
        """Settings of EVA."""

        examples: PositiveInt = Field(64, description="training examples that are looked at before the first step")

    paper: ClassVar[str] = "Paischer et al. 2024, arXiv:2410.07170"

    @property
    def start_examples(self) -> int:
        return int(self.config.examples)

    def begin(self, name: str, layer: Any) -> None:
        inputs = layer.lora_A.shape[1]
        if self.config.rank > inputs:
            raise MethodError(
                f"rank: {self.config.rank} is more than {name} has principal components, one for each of its {inputs} "
                "inputs"
            )

    def start_from(self, model: nn.Module, losses: Sequence[Callable[[], torch.Tensor]]) -> None:
        layers = lora_layers(model)
        found = {name: _Components(self.config.rank) for name in layers}
        with watching_inputs(layers, lambda name, x: found[name].see(x)):
            run(losses)
        for name, layer in layers.items():
            components = found[name].end(name)
            layer.lora_A.copy_(components.repeat(len(layer.part_sizes), 1))


class _Components:
    """Principal components of inputs that come bit by bit."""

    def __init__(self, rank: int) -> None:
        from peft.utils.incremental_pca import IncrementalPCA

        self.rank = rank
        self._found: Any = IncrementalPCA(n_components=rank)
        self._pending: list[torch.Tensor] = []

    def see(self, x: torch.Tensor) -> None:
        self._pending.append(x)
        if sum(map(len, self._pending)) >= max(TOKENS_AT_ONCE, self.rank):
            self._fit()

    def _fit(self) -> None:
        self._found.partial_fit(torch.cat(self._pending))
        self._pending = []

    def end(self, name: str) -> torch.Tensor:
        """The components ``(R, I)``."""
        if sum(map(len, self._pending)) >= self.rank:  # fewer tell of no component more
            self._fit()
        if not hasattr(self._found, "components_"):
            raise MethodError(f"examples: {name} has read fewer tokens than rank: {self.rank}; look at more examples")
        components: torch.Tensor = self._found.components_
        return components
