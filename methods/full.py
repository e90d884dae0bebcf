"""Full fine-tuning: every weight of the base model is trained."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from bench.method import Method, Range, SearchSpace, require_whole_weights


class FullFineTuning(Method):
    """Trains every weight of the base model."""

    search_space: ClassVar[SearchSpace] = {"train.learning_rate": Range(low=1e-5, high=1e-3)}

    def patch(self, model: Any) -> nn.Module:
        require_whole_weights(model, "full")
        module: nn.Module = model
        return module.requires_grad_(True)
