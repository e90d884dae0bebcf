"""LayerNorm tuning: only the scales and shifts of the norms are trained."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from bench.method import Method, Range, SearchSpace
from methods.parts.blocks import norms


class LayerNormTuning(Method):
    """Trains the scales of all norms, and their shifts if they have any.

    Source: Zhao et al. 2023, section 3 (the norms of the attention blocks), and for language models Qi et al. 2022,
    arXiv:2211.08682.

    Deviations: the norm after the last block is trained, too, and the norms of queries and keys if a model has them.
    """

    paper: ClassVar[str] = "Zhao et al. 2023, arXiv:2312.11420"
    search_space: ClassVar[SearchSpace] = {"train.learning_rate": Range(low=3e-4, high=3e-2)}

    def patch(self, model: Any) -> nn.Module:
        for _, norm in norms(model):
            norm.requires_grad_(True)
        module: nn.Module = model
        return module
