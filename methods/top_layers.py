"""Fine-tuning of the top blocks only: the baseline FT-top2 of Li & Liang 2021."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, PositiveInt
from torch import nn

from bench.method import Method, MethodConfig, MethodError, Range, SearchSpace, require_whole_weights
from methods.parts.blocks import block_modules


class TopLayers(Method):
    """Trains all weights of the top blocks, and nothing else.

    Source: Li & Liang 2021, section 5.2 (FT-top2; 25.19 M parameters of GPT-2 medium: two blocks, without the last norm
    and the output head).

    Deviations: none for decoders. In an encoder-decoder model the top blocks of the decoder are trained.
    """

    class Config(MethodConfig):
        """Settings of fine-tuning the top blocks."""

        num_layers: PositiveInt = Field(2, description="how many blocks are trained, counted from the output")

    paper: ClassVar[str] = "Li & Liang 2021, arXiv:2101.00190"
    search_space: ClassVar[SearchSpace] = {"train.learning_rate": Range(low=1e-5, high=1e-3)}

    def patch(self, model: Any) -> nn.Module:
        stack = block_modules(model.get_decoder())
        if self.config.num_layers > len(stack):
            raise MethodError(
                f"num_layers: {self.config.num_layers} is more than the {len(stack)} blocks of this model"
            )
        for _, block in stack[-self.config.num_layers :]:
            require_whole_weights(block, "top_layers")
            block.requires_grad_(True)
        module: nn.Module = model
        return module
