"""LISA (Pan et al. 2024): full fine-tuning of a few blocks at a time, drawn anew every so many steps."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import nn

from bench.method import Method, MethodConfig, MethodError, Range, SearchSpace, require_whole_weights
from methods.parts.blocks import block_modules


class LayerwiseSampling(Method):
    """Trains all weights outside of the blocks in every step, and those of a few blocks, drawn every so many steps.

    Source: Pan et al. 2024, algorithm 1, and ``DynamicLayerActivationCallback`` of OptimalScale/LMFlow: embeddings,
    output head and last norm are always trained; every ``every_steps`` steps ``num_layers`` blocks are drawn, each as
    likely as any other, and the others get no gradient. The defaults are LMFlow's.

    Deviations: a block that is drawn begins with moments of zero, so that the optimiser keeps those of the drawn ones
    only (LMFlow's callback leaves the moments of all that were ever drawn in place, and goes on with them). In an
    encoder-decoder model blocks of both stacks are drawn together.
    """

    class Config(MethodConfig):
        """Settings of LISA."""

        num_layers: PositiveInt = Field(2, description="how many blocks are trained at a time")
        every_steps: PositiveInt = Field(20, description="steps after which other blocks are drawn")

    paper: ClassVar[str] = "Pan et al. 2024, arXiv:2403.17919"
    search_space: ClassVar[SearchSpace] = {"train.learning_rate": Range(low=1e-5, high=1e-3)}

    def patch(self, model: Any) -> nn.Module:
        require_whole_weights(model, "lisa")
        count = len(block_modules(model))
        if self.config.num_layers > count:
            raise MethodError(f"num_layers: {self.config.num_layers} is more than the {count} blocks of this model")
        self._drawn = int(torch.randint(2**31, (1,), device="cpu"))  # the trial's seed decides which blocks come when
        module: nn.Module = model
        return module.requires_grad_(True)

    @property
    def trains_in_turns(self) -> bool:
        return True

    def idle(self, model: nn.Module, step: int) -> Collection[nn.Parameter]:
        blocks = block_modules(model)
        generator = torch.Generator().manual_seed(self._drawn + (step - 1) // self.config.every_steps)
        order = torch.randperm(len(blocks), generator=generator).tolist()
        drawn = {parameter for index in order[: self.config.num_layers] for parameter in blocks[index][1].parameters()}
        return [parameter for _, block in blocks for parameter in block.parameters() if parameter not in drawn]
